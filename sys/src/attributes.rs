//! Attributes of this process that no library sets: scheduling, I/O priority, memory policy, personality, processors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct sched_attr` (sched_setattr(2)) in its first form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SchedulerAttributes {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    /// In nanoseconds.
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// `IOPRIO_WHO_PROCESS`.
const THIS_PROCESS: i32 = 1;

pub fn set_scheduler(attributes: SchedulerAttributes) -> io::Result<()> {
    let attributes = SchedulerAttributes { size: size_of::<SchedulerAttributes>() as u32, ..attributes };
    // SAFETY: a live structure that says its own size, for the calling thread.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

/// Class and level (ioprio_set(2)).
pub fn set_io_priority(priority: u16) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, THIS_PROCESS, 0, i32::from(priority)) })
}

/// Bit n of word w is node 64 w + n (set_mempolicy(2)).
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> io::Result<()> {
    // The kernel reads one bit less than it is told.
    let bits = if nodes.is_empty() { 0 } else { nodes.len() * 64 + 1 };
    // SAFETY: the kernel reads `bits` - 1 bits, which `nodes` has.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, nodes.as_ptr(), bits) })
}

pub fn set_personality(personality: u32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_personality, libc::c_ulong::from(personality)) })
}

/// Bit n of word w is processor 64 w + n (sched_setaffinity(2)).
pub fn set_processors(set: &[u64]) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as it is told, which `set` has.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(set), set.as_ptr()) })
}

/// `setdomainname(2)`.
pub fn set_domain_name(name: &str) -> io::Result<()> {
    // SAFETY: as many bytes as are said.
    check(unsafe { libc::syscall(libc::SYS_setdomainname, name.as_ptr(), name.len()) })
}

/// The kind of namespace that a descriptor is one of, as its CLONE_* flag (ioctl_ns(2)).
pub fn namespace_kind(namespace: BorrowedFd<'_>) -> io::Result<u32> {
    /// `NS_GET_NSTYPE` of `linux/nsfs.h`.
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: this request takes no argument.
    let kind = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 { Err(io::Error::last_os_error()) } else { Ok(kind.cast_unsigned()) }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_namespace_tells_its_kind() {
        for (name, kind) in [("net", libc::CLONE_NEWNET), ("user", libc::CLONE_NEWUSER)] {
            let file = std::fs::File::open(format!("/proc/self/ns/{name}")).unwrap();
            assert_eq!(namespace_kind(file.as_fd()).unwrap(), kind.cast_unsigned());
        }
        assert!(namespace_kind(std::fs::File::open("/dev/null").unwrap().as_fd()).is_err());
    }
}
