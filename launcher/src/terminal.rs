//! A terminal from the container's own devpts (ioctl_tty(2), pts(4)).

use crate::error::{Context, Result};
use crate::filesystem::{attach, clone_mount};
use crate::tree::Tree;
use nacre_protocols::init_launcher::{LaunchStage, TerminalSize};
use rustix::fs::{FileType, OFlags, Uid, fchown, fstat, fstatfs, makedev};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::io;
use std::os::fd::OwnedFd;

const STAGE: LaunchStage = LaunchStage::Terminal;
/// `DEVPTS_SUPER_MAGIC` (`linux/magic.h`).
const DEVPTS_MAGIC: i64 = 0x1cd1;

pub struct Terminal {
    pub master: OwnedFd,
    slave: OwnedFd,
}

impl Terminal {
    /// Opens a fresh pair, owned by the user of the command.
    pub fn open(root: &Tree, size: TerminalSize, owner: u32) -> Result<Self> {
        let attempt = || -> io::Result<Self> {
            let master = open_multiplexer(root)?;
            unlockpt(&master)?;
            // The peer by ioctl and not by its path, which the container could have replaced.
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let slave = ioctl_tiocgptpeer(&master, flags)?;
            fchown(&slave, Some(Uid::from_raw(owner)), None)?;
            if size.rows != 0 || size.columns != 0 {
                let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
                tcsetwinsize(&master, size)?;
            }
            Ok(Self { master, slave })
        };
        attempt().at(STAGE, || "opening a terminal in the container's /dev/pts".to_owned())
    }

    /// Makes it `/dev/console` too.
    pub fn bind_console(&self, root: &Tree) -> Result<()> {
        root.make_file("/dev/console")
            .and_then(|place| attach(clone_mount(&self.slave, false)?, place))
            .at(STAGE, || "binding the terminal to /dev/console".to_owned())
    }

    /// Makes it the controlling terminal of this session, and its standard streams. Gives the master back.
    pub fn become_standard(self) -> Result<OwnedFd> {
        let attempt = || -> io::Result<()> {
            rustix::process::ioctl_tiocsctty(&self.slave)?;
            rustix::stdio::dup2_stdin(&self.slave)?;
            rustix::stdio::dup2_stdout(&self.slave)?;
            rustix::stdio::dup2_stderr(&self.slave)?;
            Ok(())
        };
        attempt().at(STAGE, || "taking the terminal as controlling terminal".to_owned())?;
        Ok(self.master)
    }
}

/// Checked to be a devpts' multiplexer before it is opened with what that may do, and again as it was opened.
fn open_multiplexer(root: &Tree) -> io::Result<OwnedFd> {
    const PATH: &str = "/dev/pts/ptmx";
    check_multiplexer(&root.open_plain(PATH, OFlags::PATH)?)?;
    let opened = root.open_plain(PATH, OFlags::RDWR | OFlags::NOCTTY)?;
    check_multiplexer(&opened)?;
    Ok(opened)
}

fn check_multiplexer(found: &OwnedFd) -> io::Result<()> {
    let stat = fstat(found)?;
    let is_multiplexer = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == makedev(5, 2)
        && fstatfs(found)?.f_type == DEVPTS_MAGIC;
    if is_multiplexer { Ok(()) } else { Err(Errno::NOTTY.into()) }
}
