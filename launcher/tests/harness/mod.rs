//! Plays init for the launcher: a throwaway mount namespace with the guest's directories, a cgroup, a root file system of
//! busybox, and launchers born as init bears them.
//!
//! Needs root, Debian's `busybox-static`, and a cgroup v2 hierarchy. What is missing is a printed reason to skip, and a
//! failure where `CI=true`.
#![allow(dead_code)]

use nacre_protocols::frame;
use nacre_protocols::init_launcher::*;
use nacre_protocols::names::{KATA_RUN_DIR, LAYERS_DIR, STORE_DIR, UPPER_DIR};
use nacre_sys::process::{Child, PidNamespace, Program, Spawn, spawn};
use nacre_sys::{memfd, mounting, seqpacket};
use rustix::fs::{Mode as FileMode, OFlags};
use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags};
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::UnshareFlags;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const ROOTFS: &str = "/run/kata-containers/shared/containers/box/rootfs";
pub const ALL_CAPABILITIES: u64 = 0x1ff_ffff_ffff;
/// What docker gives (`CAP_CHOWN` … `CAP_AUDIT_WRITE`).
pub const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;
const BUSYBOX: &str = "/bin/busybox";
/// How long a launcher may take for anything here.
const PATIENCE: Duration = Duration::from_secs(20);

/// The guest as one test sees it. The mount namespace belongs to the test's thread.
pub struct Guest {
    cgroup: PathBuf,
    cgroup_fd: OwnedFd,
    /// Of storage, which launchers may use.
    pub kinds: u32,
    /// A program that starts launchers, and its arguments before theirs.
    pub wrapper: Vec<String>,
}

impl Guest {
    /// `None`, with the reason printed, where this machine cannot run the test.
    pub fn new() -> Option<Self> {
        match Self::try_new() {
            Ok(guest) => Some(guest),
            Err(reason) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("cannot run: {reason}"),
            Err(reason) => {
                eprintln!("skipped: {reason}");
                None
            }
        }
    }

    fn try_new() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("needs root".to_owned());
        }
        if !Path::new(BUSYBOX).exists() {
            return Err("needs /bin/busybox (Debian package busybox-static)".to_owned());
        }
        let hierarchy = cgroup2().ok_or("needs a cgroup v2 hierarchy")?;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cgroup = hierarchy.join(format!("nacre-launcher-test-{}-{number}", std::process::id()));
        fs::create_dir(&cgroup).map_err(|error| format!("needs to make {}: {error}", cgroup.display()))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let cgroup_fd = rustix::fs::open(&cgroup, flags, FileMode::empty()).unwrap();
        make_namespace();
        let guest = Self { cgroup, cgroup_fd, kinds: storage::ALL, wrapper: Vec::new() };
        make_rootfs(Path::new(ROOTFS));
        Ok(guest)
    }

    pub fn has_file(&self, name: &str) -> bool {
        self.cgroup.join(name).exists()
    }

    pub fn read_file(&self, name: &str) -> String {
        fs::read_to_string(self.cgroup.join(name)).unwrap()
    }

    pub fn launch(&self, mode: Mode, plan: &Plan) -> Launched {
        self.launch_with(mode, plan, ALL_CAPABILITIES, None, &[])
    }

    pub fn exec(&self, target: &Launched, process: Process) -> Launched {
        let plan = Plan::Exec(Box::new(ExecPlan { process }));
        self.launch_with(Mode::Exec, &plan, ALL_CAPABILITIES, Some(target.child.pidfd.as_fd()), &[])
    }

    pub fn launch_with(
        &self,
        mode: Mode,
        plan: &Plan,
        ceiling: u64,
        target: Option<BorrowedFd<'_>>,
        inherited: &[BorrowedFd<'_>],
    ) -> Launched {
        let plan = memfd::sealed("plan", &frame::encode(plan, PLAN_MAX).unwrap()).unwrap();
        self.launch_plan(mode, plan, ceiling, target, inherited)
    }

    pub fn launch_plan(
        &self,
        mode: Mode,
        plan: OwnedFd,
        ceiling: u64,
        target: Option<BorrowedFd<'_>>,
        inherited: &[BorrowedFd<'_>],
    ) -> Launched {
        let (status, theirs) = seqpacket::pair().unwrap();
        let (gate, gate_write) = std::io::pipe().unwrap();
        let (output, output_write) = std::io::pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        let mut fds = vec![
            (null.as_fd(), 0),
            (output_write.as_fd(), 1),
            (output_write.as_fd(), 2),
            (theirs.as_fd(), fd::STATUS),
            (plan.as_fd(), fd::PLAN),
        ];
        let contained = matches!(mode, Mode::Create | Mode::Exec | Mode::Helper);
        if contained {
            fds.push((self.cgroup_fd.as_fd(), fd::CGROUP));
        }
        if matches!(mode, Mode::Create | Mode::Helper) {
            fds.push((gate.as_fd(), fd::GATE));
        }
        fds.extend(target.map(|target| (target, fd::TARGET)));
        fds.extend(inherited.iter().copied().zip(fd::INHERITED..));
        // NACRE_LAUNCHER: another build of it, such as the static one of the guest image.
        let program = std::env::var("NACRE_LAUNCHER");
        let program = program.as_deref().unwrap_or(env!("CARGO_BIN_EXE_nacre-guest-launcher"));
        let (ceiling, kinds) = (format!("{ceiling:x}"), format!("{:x}", self.kinds));
        let own = [program, mode.word(), &ceiling, &kinds];
        let words = self.wrapper.iter().map(String::as_str).chain(own);
        let words: Vec<CString> = words.map(|word| CString::new(word).unwrap()).collect();
        let args: Vec<&CStr> = words.iter().map(CString::as_c_str).collect();
        let child = spawn(&Spawn {
            program: Program::At(&words[0]),
            args: &args,
            env: &[],
            fds: &fds,
            cgroup: contained.then_some(self.cgroup_fd.as_fd()),
            pid_namespace: match (mode, target) {
                (Mode::Create | Mode::Helper, _) => PidNamespace::New,
                (_, Some(target)) => PidNamespace::Of(target),
                _ => PidNamespace::Same,
            },
            unprivileged: None,
        })
        .unwrap();
        Launched {
            child,
            status,
            gate: Some(gate_write.into()),
            output: OwnedFd::from(output).into(),
            ended: None,
        }
    }

    /// Another cgroup in the place of this one, as init makes and removes one with each container.
    pub fn renew_cgroup(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = fs::remove_dir(&self.cgroup) {
            assert!(Instant::now() < deadline, "the cgroup is in use: {error}");
            std::thread::sleep(Duration::from_millis(1));
        }
        fs::create_dir(&self.cgroup).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.cgroup_fd = rustix::fs::open(&self.cgroup, flags, FileMode::empty()).unwrap();
    }

    /// Creates, starts and waits. What it printed, and its exit code.
    pub fn run(&self, plan: ContainerPlan) -> (String, u8) {
        self.launch(Mode::Create, &Plan::Create(Box::new(plan))).run()
    }

    /// The failure of a create that must fail.
    pub fn refuse(&self, plan: ContainerPlan) -> LaunchFailure {
        let mut launched = self.launch(Mode::Create, &Plan::Create(Box::new(plan)));
        launched.ready().expect_err("the create should have failed")
    }

    pub fn storage(&self, steps: Vec<StorageStep>) -> Result<(), LaunchFailure> {
        match self.launch(Mode::Storage, &Plan::Storage(steps)).next_status() {
            Some((Status::Done(Outcome::Applied), _)) => Ok(()),
            Some((Status::Failed(failure), _)) => Err(failure),
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        while fs::remove_dir(&self.cgroup).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A launcher, or what it has become.
pub struct Launched {
    pub child: Child,
    status: OwnedFd,
    gate: Option<OwnedFd>,
    output: File,
    ended: Option<u8>,
}

impl Launched {
    pub fn next_status(&self) -> Option<(Status, Vec<OwnedFd>)> {
        let mut buffer = vec![0; STATUS_MAX];
        let (length, fds) = seqpacket::receive(&self.status, &mut buffer).unwrap()?;
        Some((frame::decode(&buffer[..length], STATUS_MAX).unwrap(), fds))
    }

    /// Waits for Ready; gives the terminal's master, if there is one.
    pub fn ready(&mut self) -> Result<Option<OwnedFd>, LaunchFailure> {
        match self.next_status() {
            Some((Status::Ready, fds)) => Ok(fds.into_iter().next()),
            Some((Status::Failed(failure), _)) => Err(failure),
            other => panic!("{other:?}: {}", self.output()),
        }
    }

    pub fn open_gate(&mut self) {
        File::from(self.gate.take().unwrap()).write_all(b"g").unwrap();
    }

    pub fn close_gate(&mut self) {
        self.gate = None;
    }

    /// After the gate: nothing when the command was executed.
    pub fn executed(&self) -> Result<(), LaunchFailure> {
        match self.next_status() {
            None => Ok(()),
            Some((Status::Failed(failure), _)) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    pub fn run(mut self) -> (String, u8) {
        self.ready().unwrap();
        self.open_gate();
        self.executed().unwrap();
        self.finish()
    }

    /// The rest of [`Self::run`], after Ready.
    pub fn run_on(mut self) -> (String, u8) {
        self.open_gate();
        self.executed().unwrap();
        self.finish()
    }

    /// An exec, which has no gate.
    pub fn run_exec(mut self) -> (String, u8) {
        self.ready().unwrap();
        self.executed().unwrap();
        self.finish()
    }

    pub fn start(&mut self) {
        self.ready().unwrap();
        self.open_gate();
        self.executed().unwrap();
    }

    pub fn finish(mut self) -> (String, u8) {
        let output = self.output();
        (output, self.wait())
    }

    pub fn output(&mut self) -> String {
        let mut bytes = Vec::new();
        self.output.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.pid as i32).unwrap()
    }

    pub fn kill(&mut self) -> u8 {
        let _ = rustix::process::kill_process(self.pid(), Signal::KILL);
        self.wait()
    }

    pub fn wait(&mut self) -> u8 {
        if let Some(code) = self.ended {
            return code;
        }
        let (_, status) = rustix::process::waitpid(Some(self.pid()), WaitOptions::empty()).unwrap().unwrap();
        let code = status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap()) as u8;
        self.ended = Some(code);
        code
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.kill();
        }
    }
}

/// Where a cgroup v2 hierarchy is mounted.
pub fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    Some(line.split(' ').nth(1)?.into())
}

/// A mount namespace of this thread alone, with a fresh `/run` as init makes it.
fn make_namespace() {
    nacre_sys::exec::unshare(UnshareFlags::NEWNS).unwrap();
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY, FileMode::empty()).unwrap();
    let none = MountAttrFlags::empty();
    mounting::set_attributes(root, true, none, none, MountPropagationFlags::PRIVATE).unwrap();
    rustix::mount::mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), c"mode=755").unwrap();
    for directory in [KATA_RUN_DIR, LAYERS_DIR, UPPER_DIR, STORE_DIR, "/run/kata-containers/sandbox"] {
        fs::create_dir_all(directory).unwrap();
    }
    fs::set_permissions(UPPER_DIR, fs::Permissions::from_mode(0o711)).unwrap();
}

/// A root file system with every applet of busybox and a few users.
pub fn make_rootfs(root: &Path) {
    for directory in ["bin", "etc", "home/app", "tmp", "secret", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    let applets = "sh cat ls id env pwd stat test sleep true echo mount grep readlink ulimit tty stty touch \
                   mkdir rm hostname head wc sort tr cut kill ps mknod dd chmod find setsid";
    for applet in applets.split_whitespace() {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), PASSWD).unwrap();
    fs::write(root.join("etc/group"), GROUP).unwrap();
    fs::write(root.join("secret/file"), "secret\n").unwrap();
    rustix::fs::chown(
        root.join("home/app"),
        Some(rustix::fs::Uid::from_raw(1000)),
        Some(rustix::fs::Gid::from_raw(1000)),
    )
    .unwrap();
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n\
    fetcher:x:2147352578:0::/:/bin/sh\n";
const GROUP: &str = "root:x:0:\napp:x:1000:\nvideo:x:44:app\naudio:x:63:app,other\n";

/// A process that runs `script`, as root with docker's capabilities.
pub fn shell(script: &str) -> Process {
    Process {
        args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec!["PATH=/bin".to_owned()],
        cwd: "/".to_owned(),
        user: User::Ids { uid: 0, gid: 0, additional: vec![] },
        terminal: None,
        capabilities: Capabilities {
            bounding: DEFAULT_CAPABILITIES,
            effective: DEFAULT_CAPABILITIES,
            inheritable: 0,
            permitted: DEFAULT_CAPABILITIES,
            ambient: 0,
        },
        rlimits: vec![],
        no_new_privileges: true,
        oom_score_adj: None,
        seccomp: None,
        umask: None,
        attributes: Default::default(),
    }
}

/// A container of [`ROOTFS`] that runs `script`, with what an OCI runtime mounts by default.
pub fn container(script: &str) -> ContainerPlan {
    ContainerPlan {
        id: "box".to_owned(),
        namespaces: Namespaces {
            pid: Namespace::Fresh,
            mount: Namespace::Fresh,
            cgroup: Namespace::Fresh,
            ipc: Namespace::Fresh,
            uts: Namespace::Fresh,
            ..Default::default()
        },
        hostname: Some("inside".to_owned()),
        domainname: None,
        rootfs: Rootfs::Guest(ROOTFS.to_owned()),
        rootfs_readonly: false,
        rootfs_propagation: Propagation::RecursivePrivate,
        mounts: default_mounts(),
        devices: default_devices(),
        device_rules: default_device_rules(),
        disks: vec![],
        masked_paths: vec!["/proc/kcore".to_owned(), "/proc/not-there".to_owned(), "/secret".to_owned()],
        readonly_paths: vec!["/proc/sys".to_owned()],
        cgroup: Default::default(),
        sysctls: vec![],
        net_devices: vec![],
        hooks: Default::default(),
        process: shell(script),
        inherited: 0,
    }
}

pub fn mount(destination: &str, kind: MountKind) -> Mount {
    let attributes = MountAttributes { no_suid: true, no_dev: true, no_exec: true, ..Default::default() };
    Mount {
        destination: destination.to_owned(),
        kind,
        attributes,
        changes: Default::default(),
        id_mapping: None,
        propagation: None,
    }
}

pub fn bind(source: &str, destination: &str) -> Mount {
    let kind = MountKind::Bind { source: source.to_owned(), recursive: true };
    Mount {
        destination: destination.to_owned(),
        kind,
        attributes: Default::default(),
        changes: Default::default(),
        id_mapping: None,
        propagation: None,
    }
}

pub fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn default_mounts() -> Vec<Mount> {
    let mut dev =
        mount("/dev", MountKind::Tmpfs { data: strings(&["mode=755", "size=65536k"]), copy_up: false });
    dev.attributes = MountAttributes { no_suid: true, access_time: AccessTime::Strict, ..Default::default() };
    let options = strings(&["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]);
    let mut pts = mount("/dev/pts", MountKind::Devpts { data: options });
    pts.attributes.no_dev = false;
    let mut sys = mount("/sys", MountKind::Sysfs);
    sys.attributes.read_only = true;
    let mut cgroup = mount("/sys/fs/cgroup", MountKind::Cgroup2);
    cgroup.attributes.read_only = true;
    vec![
        mount("/proc", MountKind::Proc { data: vec![] }),
        dev,
        pts,
        mount("/dev/shm", MountKind::Tmpfs { data: strings(&["mode=1777", "size=65536k"]), copy_up: false }),
        mount("/dev/mqueue", MountKind::Mqueue),
        sys,
        cgroup,
    ]
}

fn default_devices() -> Vec<DeviceNode> {
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)]
        .map(|(name, major, minor)| DeviceNode {
            path: format!("/dev/{name}"),
            kind: DeviceKind::Character,
            major,
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .to_vec()
}

fn default_device_rules() -> Vec<DeviceRule> {
    let rule = |allow, kind, major, minor, open| DeviceRule {
        allow,
        kind,
        major,
        minor,
        read: open,
        write: open,
        mknod: true,
    };
    let character = Some(DeviceKind::Character);
    let mut rules = vec![
        rule(false, None, None, None, true),
        rule(true, character, None, None, false),
        rule(true, Some(DeviceKind::Block), None, None, false),
        rule(true, character, Some(136), None, true),
    ];
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)] {
        rules.push(rule(true, character, Some(major), Some(minor), true));
    }
    rules
}
