//! What the two processes cannot do once they are confined: each forbidden act is tried in a child of this test.
//!
//! Needs root, to start the children as another user without capabilities.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

use nacre_puller::confine;
use rustix::net::{AddressFamily, SocketType};

const PROCESS: &str = "NACRE_TEST_PROCESS";
const ACT: &str = "NACRE_TEST_ACT";
const STORE: &str = "NACRE_TEST_STORE";

/// The one port that the fetcher may connect to. Nobody listens there.
const PORT: u16 = 1;

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
    ("connect to a port of the pull", Works, Killed),
    ("connect to a port of the pull over IPv6", Works, Killed),
    ("connect to another port", Refused, Killed),
    ("connect to another port over IPv6", Refused, Killed),
    ("connect to another port by what it sends", Killed, Killed),
    ("connect to another port by a message that it sends", Killed, Killed),
    ("make a socket of another protocol", Killed, Killed),
    ("listen on TCP", Killed, Killed),
    ("make a UDP socket with bind", Killed, Killed),
    ("make a unix socket", Killed, Killed),
    ("make a vsock socket", Killed, Killed),
    ("make a netlink socket", Killed, Killed),
    ("execute a program", Killed, Killed),
    ("signal another process", Killed, Killed),
    ("unshare a user namespace", Killed, Killed),
    ("change the mode of a file", Killed, Killed),
    ("change the owner of a file", Killed, Killed),
    ("link a file into the store", Killed, Killed),
    ("make a device", Killed, Killed),
    ("move a file out of the store", Refused, Killed),
    ("remove a file elsewhere", Refused, Killed),
    ("mount", Killed, Killed),
    ("enter another root", Killed, Killed),
    ("make a memory file", Killed, Killed),
    ("make a raw socket", Killed, Killed),
    ("make a packet socket", Killed, Killed),
    ("make a crypto socket", Killed, Killed),
    ("make a pair of sockets", Killed, Killed),
    ("open another process", Killed, Killed),
    ("raise a limit", Killed, Killed),
    ("become another user", Killed, Killed),
    ("read an attribute", Killed, Killed),
    ("leave the store by a link", Refused, Refused),
];

/// Every system call that comes back at all, whatever its arguments. All others kill.
const COMMON_CALLS: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_recvmsg,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_clone,
    // Answered with "no such call".
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_exit_group,
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    libc::SYS_getrandom,
    // For the indexer answered with "not allowed".
    libc::SYS_openat,
];
const FETCHER_CALLS: &[i64] = &[
    libc::SYS_connect,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pipe2,
    libc::SYS_clock_nanosleep,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_statfs,
    libc::SYS_mkdir,
    libc::SYS_rename,
    libc::SYS_fsync,
    libc::SYS_unlink,
    libc::SYS_rmdir,
    libc::SYS_getdents64,
];
const INDEXER_CALLS: &[i64] = &[libc::SYS_pwrite64, libc::SYS_ftruncate];
/// Their arguments are looked at, and what the test gives is not among those that are let through: mmap and mprotect (never
/// executable), socket (TCP and UDP), sendto and sendmsg (no MSG_FASTOPEN), ioctl and fcntl (one command each).
const LOOKED_AT: &[i64] = &[
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_socket,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_ioctl,
    libc::SYS_fcntl,
];
/// Not asked for. The thread that asks for its own end gets it, and whoever waits for its answer waits in vain. The kernel
/// lets uretprobe(2) and uprobe(2) through without asking a filter (kernel/seccomp.c, from
/// Linux 6.14 on): they serve only its own trampolines.
const NOT_ASKED: &[i64] = &[libc::SYS_exit, 335, 336];
/// Beyond the last call of Linux 6.12, and then some.
const CALLS_END: i64 = 480;
const CALL: &str = "call ";

/// A child that is born while another test copies its program holds that file open for writing until its exec, and the
/// other exec would be refused (ETXTBSY, execve(2)).
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// A store of the puller's user, and this program in it: a child must reach it, wherever the build directory is.
fn store_with_program() -> Option<(tempfile::TempDir, std::path::PathBuf)> {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "starting confined children needs root");
        eprintln!("skipped: starting confined children needs root");
        return None;
    }
    let store = tempfile::tempdir().unwrap();
    rustix::fs::chown(store.path(), Some(rustix::fs::Uid::from_raw(65532)), None).unwrap();
    let program = store.path().join("confine-test");
    let copying = ONE_AT_A_TIME.lock();
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    drop(copying);
    Some((store, program))
}

#[test]
fn forbidden_acts_are_refused_or_kill() {
    let Some((store, program)) = store_with_program() else { return };
    // As a kept disk could have it.
    std::os::unix::fs::symlink("/etc/passwd", store.path().join("leaves")).unwrap();
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
fn no_system_call_comes_back_that_is_not_on_the_list() {
    let Some((store, program)) = store_with_program() else { return };
    for (process, own) in [("fetcher", FETCHER_CALLS), ("indexer", INDEXER_CALLS)] {
        let mut wrong = Vec::new();
        for number in (0..CALLS_END).filter(|number| !NOT_ASKED.contains(number)) {
            let status = try_in_child(&program, store.path(), process, &format!("{CALL}{number}"));
            let came_back = status.signal() != Some(31);
            let listed = COMMON_CALLS.contains(&number) || own.contains(&number);
            if came_back != listed {
                wrong.push(format!("call {number}: {status}"));
            }
        }
        assert!(wrong.is_empty(), "{process}: {wrong:?}");
        assert!(LOOKED_AT.iter().all(|number| !own.contains(number)), "{process}");
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
        "fetcher" => confine::fetcher(store.as_ref(), &[PORT]),
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

/// Whether something answers, be it that nobody listens.
fn connect(ip: IpAddr, port: u16) -> io::Result<()> {
    match TcpStream::connect((ip, port)) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        other => other.map(drop),
    }
}

fn attempt(act: &str, store: &Path) -> io::Result<()> {
    let socket = |family, kind| rustix::net::socket(family, kind, None).map(drop).map_err(io::Error::from);
    if let Some(number) = act.strip_prefix(CALL) {
        // An error is as good as success: it came back.
        let _ = nacre_sys::probe::call_with_nonsense(number.parse().unwrap());
        return Ok(());
    }
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
        "connect to a port of the pull" => connect(Ipv4Addr::LOCALHOST.into(), PORT),
        "connect to a port of the pull over IPv6" => connect(Ipv6Addr::LOCALHOST.into(), PORT),
        "connect to another port" => connect(Ipv4Addr::LOCALHOST.into(), PORT + 1),
        "connect to another port over IPv6" => connect(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), PORT + 1),
        "connect to another port by what it sends" => {
            let tcp = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
            let flags = rustix::net::SendFlags::from_bits_retain(libc::MSG_FASTOPEN as u32);
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT + 1));
            rustix::net::sendto(&tcp, b"x", flags, &address).map(drop).map_err(io::Error::from)
        }
        "connect to another port by a message that it sends" => {
            let tcp = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
            let flags = rustix::net::SendFlags::from_bits_retain(libc::MSG_FASTOPEN as u32);
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT + 1));
            let (bytes, mut control) = ([io::IoSlice::new(b"x")], Default::default());
            rustix::net::sendmsg_addr(&tcp, &address, &bytes, &mut control, flags)
                .map(drop)
                .map_err(io::Error::from)
        }
        "make a socket of another protocol" => {
            const MPTCP: std::num::NonZeroU32 = std::num::NonZeroU32::new(262).unwrap();
            let protocol = rustix::net::Protocol::from_raw(MPTCP);
            rustix::net::socket(AddressFamily::INET, SocketType::STREAM, Some(protocol))
                .map(drop)
                .map_err(io::Error::from)
        }
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
        "change the owner of a file" => {
            let owner = Some(rustix::fs::Uid::from_raw(65532));
            rustix::fs::chown(store.join("file"), owner, None).map_err(io::Error::from)
        }
        "link a file into the store" => std::fs::hard_link(store.join("file"), store.join("second")),
        "make a device" => {
            let kind = rustix::fs::FileType::CharacterDevice;
            let path = store.join("device");
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, rustix::fs::Mode::RUSR, 0)
                .map_err(io::Error::from)
        }
        "move a file out of the store" => {
            let _ = std::fs::write(store.join("moved"), "x");
            std::fs::rename(store.join("moved"), "/tmp/nacre-confine-moved")
        }
        "remove a file elsewhere" => std::fs::remove_file("/tmp/nacre-confine-no-such-file"),
        "mount" => rustix::mount::mount("x", store, "tmpfs", rustix::mount::MountFlags::empty(), None)
            .map_err(io::Error::from),
        "enter another root" => rustix::process::chroot(store).map_err(io::Error::from),
        "make a memory file" => {
            rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::empty()).map(drop).map_err(io::Error::from)
        }
        "make a raw socket" => socket(AddressFamily::INET, SocketType::RAW),
        "make a packet socket" => socket(AddressFamily::PACKET, SocketType::DGRAM),
        "make a crypto socket" => socket(AddressFamily::from_raw(libc::AF_ALG as u16), SocketType::SEQPACKET),
        "make a pair of sockets" => nacre_sys::seqpacket::pair().map(drop),
        "open another process" => {
            let flags = rustix::process::PidfdFlags::empty();
            rustix::process::pidfd_open(rustix::process::Pid::INIT, flags).map(drop).map_err(io::Error::from)
        }
        "raise a limit" => {
            let limit = rustix::process::Rlimit { current: Some(1), maximum: Some(1) };
            rustix::process::setrlimit(rustix::process::Resource::Nproc, limit).map_err(io::Error::from)
        }
        "become another user" => {
            rustix::thread::set_thread_uid(rustix::fs::Uid::from_raw(1)).map_err(io::Error::from)
        }
        "read an attribute" => {
            let mut value = [0u8; 16];
            rustix::fs::getxattr(store, "user.x", &mut value).map(drop).map_err(io::Error::from)
        }
        "leave the store by a link" => std::fs::read(store.join("leaves")).map(drop),
        other => panic!("no act {other:?}"),
    }
}
