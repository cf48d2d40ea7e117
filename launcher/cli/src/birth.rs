//! The birth of a process: a child of this program that becomes the container's, and what it reports until it has.

use crate::error::{Context, Result, refused};
use nacre_launcher::error::LaunchError;
use nacre_launcher::status::StatusSocket;
use nacre_protocols::frame;
use nacre_protocols::init_launcher::{LaunchFailure, LaunchStage, STATUS_MAX, Status};
use nacre_sys::seqpacket;
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// In the child: what is left to do when the command was not executed.
pub fn life(status: &StatusSocket, apply: impl FnOnce() -> nacre_launcher::error::Result<()>) -> u8 {
    // Until the command is executed, nobody but who may trace anything looks into this process.
    let result = set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| LaunchError::system(LaunchStage::Rights, error, "making this process unreadable"))
        .and_then(|()| apply());
    let Err(error) = result else { return 0 };
    let code = match error.stage {
        LaunchStage::Exec if error.errno == Errno::NOENT.raw_os_error() => 127,
        LaunchStage::Exec => 126,
        _ => 125,
    };
    if status.send(&Status::Failed(error.clone().into_failure()), None).is_err() {
        eprintln!("nacre-launcher: {error}");
    }
    code
}

/// What came on the status socket next.
pub enum Told {
    /// With the master of its terminal.
    Ready(Option<OwnedFd>),
    /// Waits for hooks, its root not changed yet.
    Prepared,
    Failed(LaunchFailure),
    /// Executed, or dead.
    Closed,
}

pub fn listen(socket: &OwnedFd) -> Result<Told> {
    let mut buffer = vec![0; STATUS_MAX];
    let received = seqpacket::receive(socket, &mut buffer).doing(|| "hearing from the child".to_owned())?;
    let Some((length, fds)) = received else { return Ok(Told::Closed) };
    match frame::decode(buffer.get(..length).unwrap_or_default(), STATUS_MAX) {
        Ok(Status::Ready) => Ok(Told::Ready(fds.into_iter().next())),
        Ok(Status::Prepared) => Ok(Told::Prepared),
        Ok(Status::Failed(failure)) => Ok(Told::Failed(failure)),
        Ok(Status::Done(_)) | Err(_) => Err(refused("the child reported what this launcher does not know")),
    }
}

/// Hands the master of a terminal to whoever listens at the socket (runc's protocol: one message, one descriptor).
pub fn send_console(socket: &Path, master: &OwnedFd) -> Result<()> {
    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType, connect, sendmsg, socket_with,
    };
    let send = || -> Result<(), Errno> {
        let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        connect(&stream, &SocketAddrUnix::new(socket)?)?;
        let fds = [master.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let name = std::io::IoSlice::new(b"/dev/ptmx");
        sendmsg(&stream, &[name], &mut control, SendFlags::NOSIGNAL).map(drop)
    };
    send().doing(|| format!("sending the terminal to {}", socket.display()))
}

/// At once: who sees the file sees the number.
pub fn write_pid_file(path: &Path, pid: u32) -> Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".draft");
    let write = || {
        std::fs::File::create(&draft)?.write_all(pid.to_string().as_bytes())?;
        std::fs::rename(&draft, path)
    };
    write().doing(|| format!("writing {}", path.display()))
}

/// Descriptors 3 to 2 + `count` are the command's; every other one that was inherited is closed. First of all that this
/// program opens or closes.
pub fn take_descriptors(count: u8) -> Result<Vec<OwnedFd>> {
    let numbers: Vec<i32> = (3..3 + i32::from(count)).collect();
    let doing = || "taking over descriptors".to_owned();
    let taken = nacre_sys::exec::take_over(&numbers).doing(doing)?;
    let mut all = Vec::with_capacity(taken.len());
    for (number, fd) in numbers.into_iter().zip(taken) {
        all.push(
            fd.ok_or_else(|| refused(format!("--preserve-fds {count}: descriptor {number} is not open")))?,
        );
    }
    // What this program opens must not lie where they will be put in the end: the places stay taken until then.
    for (fd, number) in all.iter().zip(3..) {
        std::mem::forget(fcntl_dupfd_cloexec(fd, number).doing(doing)?);
    }
    Ok(all)
}
