//! This program's own file, out of reach of the containers that it makes (CVE-2019-5736).
//!
//! A container can get hold of the file that is about to become its command: `#!/proc/self/exe` makes the kernel execute
//! it once more inside, and then `/proc/1/exe` leads to it, wherever it lies. With the capabilities that containers have,
//! it could be written there, and the next container would run the attacker's program as root of the host.
//!
//! Neither a copy nor a second start of this program is needed against it. A mount has its own read-only flag, and
//! `/proc/self/exe` remembers by which mount a program was executed. So the file is cloned into a mount of its own
//! that is read-only and attached nowhere, this program is laid over its own memory once more from there (the same pages
//! of the same file), and the kernel is told that this is now what is executed (prctl(2), `PR_SET_MM_EXE_FILE`). Whoever
//! then follows `/proc/PID/exe` ends in a mount that cannot be written through, and that no path leads around.

use crate::error::{Context, Result, refused};
use nacre_sys::mounting::set_attributes;
use nacre_sys::own_binary::{exec_again, replace_own_file};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags, open, statvfs};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, OpenTreeFlags, open_tree};
use std::os::fd::{AsRawFd, OwnedFd};

const OWN: &str = "/proc/self/exe";

/// Comes back with the file out of reach, or not at all.
pub fn protect() -> Result<()> {
    if is_read_only()? {
        return Ok(());
    }
    let file =
        open_through_read_only_mount().doing(|| "making this program's own file read-only".to_owned())?;
    match replace_own_file(&file) {
        Ok(()) => {}
        // Without CAP_SYS_RESOURCE the memory cannot be exchanged; then it is executed from there, once.
        Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
            return Err(exec_again(&file))
                .doing(|| "executing this program from a read-only mount".to_owned());
        }
        Err(error) => return Err(error).doing(|| "exchanging this program's own file".to_owned()),
    }
    if is_read_only()? { Ok(()) } else { Err(refused("this program's own file could not be made read-only")) }
}

fn is_read_only() -> Result<bool> {
    let stat = statvfs(OWN).doing(|| format!("looking at {OWN}"))?;
    Ok(stat.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn open_through_read_only_mount() -> std::io::Result<OwnedFd> {
    let mount =
        open_tree(rustix::fs::CWD, OWN, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID;
    set_attributes(&mount, false, flags, MountAttrFlags::empty(), MountPropagationFlags::empty())?;
    Ok(open(format!("/proc/self/fd/{}", mount.as_raw_fd()), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}
