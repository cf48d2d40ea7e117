//! The two processes of the program, confined as in the guest, over their real edges.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use nacre_protocols::agent_puller::{
    FETCHER_FD, FRAME_MAX, INDEXER_FD, OPENING_MAX, Opening, Pull, PullFailureKind, PulledImage,
    Reply as Answer, Request as Ask,
};
use nacre_protocols::{fetcher_indexer, frame, names};
use nacre_puller::digest::Digest;
use nacre_sys::process::{Child, PidNamespace, Program, Spawn, spawn};
use nacre_sys::seqpacket;

use crate::common::{MANIFEST_TYPE, TestImage, ports};

pub struct Puller {
    pub agent: Option<OwnedFd>,
    pub fetcher: Child,
    pub indexer: Child,
    directory: Folder,
}

/// A store's directory, and the program beside it, that may outlive a puller.
pub type Folder = std::sync::Arc<tempfile::TempDir>;

/// How the processes are started.
#[derive(Default)]
pub struct Start {
    /// Words before the store's path.
    pub words: Vec<String>,
    /// In the directory of an earlier one.
    pub within: Option<Folder>,
    /// What the fetcher may connect to besides the servers of this test.
    pub ports: Vec<u16>,
    /// `fetcher` or `index`, and words of `strace` to run it under.
    pub traced: Option<(&'static str, Vec<String>)>,
}

/// A child that is born while another test copies its program holds that file open for writing until its exec, and the
/// other exec would be refused (ETXTBSY, execve(2)).
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

impl Puller {
    /// `None`, with a word why, where it cannot be started.
    pub fn start() -> Option<Self> {
        Self::start_with(|_| (), &Start::default())
    }

    /// `prepare` may do something to the store's directory first.
    pub fn start_with(prepare: impl FnOnce(&Path), start: &Start) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "starting the puller's processes needs root");
            eprintln!("skipped: starting the puller's processes needs root");
            return None;
        }
        let _copying_and_starting = ONE_AT_A_TIME.lock();
        let directory = start.within.clone().unwrap_or_else(|| {
            let directory = tempfile::tempdir().unwrap();
            std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .unwrap();
            std::fs::copy(program_path(), directory.path().join("nacre-puller")).unwrap();
            let store = directory.path().join("store");
            std::fs::create_dir(&store).unwrap();
            prepare(&store);
            rustix::fs::chown(&store, Some(rustix::fs::Uid::from_raw(names::FETCHER_UID)), None).unwrap();
            directory.into()
        });
        let program = directory.path().join("nacre-puller");
        let store = directory.path().join("store");
        let (agent, fetcher_end) = seqpacket::pair().unwrap();
        let (to_indexer, indexer_end) = seqpacket::pair().unwrap();
        let words = |process: &str, rest: Vec<String>| {
            let mut words = match &start.traced {
                Some((traced, options)) if *traced == process => {
                    let strace = ["/usr/bin/strace", "-qq", "-f", "-o", "/dev/null"].map(str::to_owned);
                    strace.into_iter().chain(options.clone()).collect()
                }
                _ => Vec::new(),
            };
            words.push(program.to_str().unwrap().to_owned());
            words.extend(rest);
            words
        };
        let fds = [(indexer_end.as_fd(), fetcher_indexer::FETCHER_FD)];
        let indexer = run(&words("index", vec!["index".into()]), &fds, names::INDEXER_UID);
        let fds = [(fetcher_end.as_fd(), FETCHER_FD), (to_indexer.as_fd(), INDEXER_FD)];
        let rest = start.words.iter().cloned().chain([store.to_str().unwrap().to_owned()]).collect();
        let fetcher = run(&words("fetcher", rest), &fds, names::FETCHER_UID);
        let opening = Opening { ports: [start.ports.clone(), ports::for_puller()].concat() };
        seqpacket::send(&agent, &frame::encode(&opening, OPENING_MAX).unwrap(), &[]).unwrap();
        Some(Self { agent: Some(agent), fetcher, indexer, directory })
    }

    pub fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    pub fn folder(&self) -> Folder {
        self.directory.clone()
    }

    pub fn pull(&self, id: u32, pull: Pull) -> Result<PulledImage, (PullFailureKind, String)> {
        self.try_pull(id, pull).expect("the fetcher is gone")
    }

    /// `None` if the puller dies.
    pub fn try_pull(&self, id: u32, pull: Pull) -> Option<Result<PulledImage, (PullFailureKind, String)>> {
        self.try_send(&Ask::Pull { id, pull: Box::new(pull) }).ok()?;
        loop {
            match self.receive()? {
                Answer::Done { id: of, image } => {
                    assert_eq!(of, id);
                    return Some(Ok(*image));
                }
                Answer::Failed { id: of, failure } => {
                    assert_eq!(of, id);
                    return Some(Err((failure.kind, failure.message)));
                }
                _ => {}
            }
        }
    }

    pub fn send(&self, ask: &Ask) {
        self.try_send(ask).unwrap();
    }

    fn try_send(&self, ask: &Ask) -> std::io::Result<()> {
        seqpacket::send(self.agent.as_ref().unwrap(), &frame::encode(ask, FRAME_MAX).unwrap(), &[])
    }

    /// `None` when the fetcher is gone.
    pub fn receive(&self) -> Option<Answer> {
        let mut buffer = vec![0; FRAME_MAX];
        let (length, _) = match seqpacket::receive(self.agent.as_ref().unwrap(), &mut buffer) {
            // It left something unread (unix(7)).
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
            received => received.unwrap()?,
        };
        Some(frame::decode(&buffer[..length], FRAME_MAX).unwrap())
    }

    pub fn layer(&self, diff_id: &names::Sha256, file: &str) -> Vec<u8> {
        std::fs::read(self.store().join("layers").join(diff_id.to_string()).join(file)).unwrap()
    }

    pub fn kill(&self, child: &Child) {
        let _ = nacre_sys::process::signal(child.pidfd.as_fd(), 9);
    }

    pub fn fetcher_code(&self) -> Option<i32> {
        wait(&self.fetcher).exit_status()
    }

    /// Waits until both are gone, however.
    pub fn wait(mut self) {
        self.agent = None;
        for child in [&self.fetcher, &self.indexer] {
            wait(child);
        }
    }

    /// Closes the agent's end; both must then end well by themselves.
    pub fn end(mut self) {
        self.agent = None;
        for child in [&self.fetcher, &self.indexer] {
            let status = wait(child);
            assert_eq!((status.exit_status(), status.terminating_signal()), (Some(0), None));
        }
    }
}

fn wait(child: &Child) -> rustix::process::WaitIdStatus {
    let status = rustix::process::waitid(
        rustix::process::WaitId::PidFd(child.pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    );
    status.unwrap().unwrap()
}

/// The program that Cargo built, or a static one to be tried instead.
fn program_path() -> std::ffi::OsString {
    std::env::var_os("NACRE_TEST_PULLER").unwrap_or_else(|| env!("CARGO_BIN_EXE_nacre-puller").into())
}

fn run(words: &[String], fds: &[(BorrowedFd<'_>, i32)], uid: u32) -> Child {
    let words: Vec<CString> = words.iter().map(|word| CString::new(word.as_str()).unwrap()).collect();
    let args: Vec<&CStr> = words.iter().map(CString::as_c_str).collect();
    let spec = Spawn {
        program: Program::At(args[0]),
        args: &args,
        env: &[],
        fds,
        cgroup: None,
        pid_namespace: PidNamespace::Same,
        unprivileged: Some(uid),
    };
    spawn(&spec).unwrap()
}

fn shell(directory: &Path, script: &str) {
    let status = Command::new("sh").args(["-ec", script]).current_dir(directory).status().unwrap();
    assert!(status.success(), "{script}");
}

/// A tree with the common kinds of files in three compressions, and its plain tar.
pub fn archives(directory: &Path) -> (Vec<u8>, [(&'static str, Vec<u8>); 3]) {
    shell(
        directory,
        "mkdir -p tree/bin tree/etc tree/empty
         seq 200000 > tree/etc/numbers; echo one > tree/one; ln tree/one tree/two; ln -s ../one tree/bin/link
         chmod 4755 tree/one
         tar -C tree -cf layer.tar . ; gzip -k layer.tar; zstd -q -k layer.tar",
    );
    let read = |name| std::fs::read(directory.join(name)).unwrap();
    let plain = read("layer.tar");
    let compressed = [
        ("application/vnd.oci.image.layer.v1.tar", plain.clone()),
        ("application/vnd.oci.image.layer.v1.tar+gzip", read("layer.tar.gz")),
        ("application/vnd.oci.image.layer.v1.tar+zstd", read("layer.tar.zst")),
    ];
    (plain, compressed)
}

/// An image of one layer.
pub fn image(media_type: &str, blob: &[u8], diff_id: Digest) -> TestImage {
    let mut image = TestImage::with_diff_ids(&[blob], &[diff_id]);
    let manifest =
        String::from_utf8(image.parts[&format!("manifests/{}", image.manifest)].1.clone()).unwrap();
    let manifest = manifest.replace("application/vnd.oci.image.layer.v1.tar\"", &format!("{media_type}\""));
    image.manifest = image.document(MANIFEST_TYPE, &manifest);
    image.parts.insert("manifests/latest".into(), (MANIFEST_TYPE.into(), manifest.into()));
    image
}
