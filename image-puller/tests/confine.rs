//! What the two processes cannot do once they are confined: each forbidden act is tried in a child of this test.
//!
//! Needs root, to start the children as another user without capabilities.

use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

use nacre_puller::confine;
use rustix::net::{AddressFamily, SocketType};

const PROCESS: &str = "NACRE_TEST_PROCESS";
const ACT: &str = "NACRE_TEST_ACT";
const STORE: &str = "NACRE_TEST_STORE";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Works,
    /// An error comes back: landlock.
    Refused,
    /// SIGSYS: seccomp.
    Killed,
}
use Outcome::{Killed, Refused, Works};

/// Act, outcome in the fetcher, outcome in the indexer.
const TABLE: &[(&str, Outcome, Outcome)] = &[
    ("allocate", Works, Works),
    ("start a thread", Works, Works),
    ("write into the store", Works, Refused),
    ("make a directory in the store", Works, Killed),
    ("make a symlink in the store", Killed, Killed),
    ("read another file", Refused, Refused),
    ("write another file", Refused, Refused),
    ("list /proc", Refused, Refused),
    ("make a TCP socket", Works, Killed),
    ("listen on TCP", Killed, Killed),
    ("make a UDP socket with bind", Killed, Killed),
    ("make a unix socket", Killed, Killed),
    ("make a vsock socket", Killed, Killed),
    ("make a netlink socket", Killed, Killed),
    ("execute a program", Killed, Killed),
    ("signal another process", Killed, Killed),
    ("unshare a user namespace", Killed, Killed),
    ("change the mode of a file", Killed, Killed),
];

/// A child that is born while another test copies its program holds that file open for writing until its exec, and the
/// other exec would be refused (ETXTBSY, execve(2)).
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn forbidden_acts_are_refused_or_kill() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "starting confined children needs root");
        return eprintln!("skipped: starting confined children needs root");
    }
    let store = tempfile::tempdir().unwrap();
    rustix::fs::chown(store.path(), Some(rustix::fs::Uid::from_raw(65532)), None).unwrap();
    // The child must reach the test binary, wherever the build directory is.
    let program = store.path().join("confine-test");
    let copying = ONE_AT_A_TIME.lock();
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    drop(copying);
    for &(act, in_fetcher, in_indexer) in TABLE {
        for (process, expected) in [("fetcher", in_fetcher), ("indexer", in_indexer)] {
            let status = try_in_child(&program, store.path(), process, act);
            let outcome = match (status.code(), status.signal()) {
                (Some(0), _) => Works,
                (Some(99), _) => Refused,
                (None, Some(31)) => Killed,
                _ => panic!("{process}: {act}: {status}"),
            };
            assert_eq!(outcome, expected, "{process}: {act}");
        }
    }
}

#[test]
fn a_process_with_capabilities_does_not_start() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: having capabilities needs root");
    }
    let _starting = ONE_AT_A_TIME.lock();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "confined_child", "--nocapture"])
        .envs([(PROCESS, "indexer"), (ACT, "allocate"), (STORE, "/")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("CHOWN"), "{text}");
}

fn try_in_child(program: &Path, store: &Path, process: &str, act: &str) -> ExitStatus {
    let setpriv =
        ["--reuid=65532", "--regid=65532", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"];
    Command::new("setpriv")
        .args(setpriv)
        .arg(program)
        .args(["--exact", "confined_child", "--test-threads=1"])
        .env(PROCESS, process)
        .env(ACT, act)
        .env(STORE, store)
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap()
}

/// What `try_in_child` runs; by itself there is nothing to try.
#[test]
fn confined_child() {
    let (Ok(process), Ok(act)) = (std::env::var(PROCESS), std::env::var(ACT)) else { return };
    let store = std::env::var_os(STORE).unwrap();
    let confined = match process.as_str() {
        "fetcher" => confine::fetcher(store.as_ref()),
        _ => confine::indexer(),
    };
    let code = match confined.map(|()| attempt(&act, store.as_ref())) {
        Err(error) => {
            eprintln!("{error}");
            1
        }
        Ok(Ok(())) => 0,
        Ok(Err(_)) => 99,
    };
    std::process::exit(code);
}

fn attempt(act: &str, store: &Path) -> io::Result<()> {
    let socket = |family, kind| rustix::net::socket(family, kind, None).map(drop).map_err(io::Error::from);
    match act {
        "allocate" => {
            let mut much = vec![1u8; 32 << 20];
            much.resize(48 << 20, 2);
            assert_eq!(much[much.len() - 1], 2);
            Ok(())
        }
        "start a thread" => std::thread::Builder::new().spawn(|| ()).map(|thread| thread.join().unwrap()),
        "write into the store" => std::fs::write(store.join("file"), "x"),
        "make a directory in the store" => {
            let _ = std::fs::remove_dir(store.join("directory"));
            std::fs::create_dir(store.join("directory"))
        }
        "make a symlink in the store" => std::os::unix::fs::symlink("x", store.join("link")),
        "read another file" => std::fs::read("/etc/passwd").map(drop),
        "write another file" => std::fs::write("/tmp/nacre-confine-test", "x"),
        "list /proc" => std::fs::read_dir("/proc").map(drop),
        "make a TCP socket" => match TcpStream::connect("127.0.0.1:1") {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            other => other.map(drop),
        },
        "listen on TCP" => TcpListener::bind("127.0.0.1:0").map(drop),
        "make a UDP socket with bind" => UdpSocket::bind("127.0.0.1:0").map(drop),
        "make a unix socket" => socket(AddressFamily::UNIX, SocketType::STREAM),
        "make a vsock socket" => socket(AddressFamily::VSOCK, SocketType::STREAM),
        "make a netlink socket" => socket(AddressFamily::NETLINK, SocketType::RAW),
        "execute a program" => Command::new("/bin/true").status().map(drop),
        "signal another process" => {
            let init = rustix::process::Pid::INIT;
            rustix::process::test_kill_process(init).map_err(io::Error::from)
        }
        "unshare a user namespace" =>
        {
            #[allow(deprecated, reason = "nothing is shared with this process afterwards")]
            rustix::thread::unshare(rustix::thread::UnshareFlags::NEWUSER).map_err(io::Error::from)
        }
        "change the mode of a file" => {
            rustix::fs::chmod(store.join("file"), rustix::fs::Mode::RWXU).map_err(io::Error::from)
        }
        other => panic!("no act {other:?}"),
    }
}
