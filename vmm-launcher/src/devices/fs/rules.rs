//! What of a request is let through. Pure functions over numbers and names.

use std::ffi::CStr;
use std::io;

use fuse_backend_rs::abi::fuse_abi::stat64;

/// Bytes of one name (`NAME_MAX`).
const MAX_NAME_BYTES: usize = 255;
/// Bytes of an extended attribute (`XATTR_SIZE_MAX`), and of a list of names (`XATTR_LIST_MAX`).
pub const MAX_XATTR_BYTES: u32 = 65_536;
/// Bytes of directory entries in one reply.
pub const MAX_READDIR_BYTES: u32 = 1 << 20;
/// Who the guest sees where the owner is not the user that runs nacre.
pub const NOBODY: u32 = 65_534;

/// The error with this number.
pub fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// A name must be one component that goes down.
pub fn check_name(name: &CStr) -> io::Result<()> {
    let bytes = name.to_bytes();
    if bytes.len() > MAX_NAME_BYTES {
        return Err(errno(libc::ENAMETOOLONG));
    }
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(errno(libc::EINVAL));
    }
    Ok(())
}

/// The flags of an open that the host acts on; the others are the guest kernel's business.
pub fn open_flags(flags: u32) -> u32 {
    const ACTED_ON: i32 = libc::O_ACCMODE
        | libc::O_APPEND
        | libc::O_TRUNC
        | libc::O_NONBLOCK
        | libc::O_DSYNC
        | libc::O_SYNC
        | libc::O_DIRECTORY;
    // O_SYNC and O_DIRECTORY share no bit with O_TMPFILE's own once O_CREAT and the rest are gone.
    flags & ACTED_ON.cast_unsigned()
}

/// Whether an open with these flags can change the file.
pub fn opens_for_writing(flags: u32) -> bool {
    let flags = flags.cast_signed();
    flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0
}

/// Permission bits without the set-id bits; directories keep the sticky bit.
pub fn safe_mode(mode: u32) -> u32 {
    mode & 0o1777
}

/// The type and mode of a node to be made; devices are refused.
pub fn node_mode(mode: u32) -> io::Result<u32> {
    match mode & libc::S_IFMT {
        kind @ (0 | libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK) => Ok(kind | mode & 0o777),
        _ => Err(errno(libc::EPERM)),
    }
}

/// Only `user.` attributes: the others mean something to the host (capabilities, labels, access lists).
pub fn check_xattr(name: &CStr) -> io::Result<()> {
    if name.to_bytes().starts_with(b"user.") { Ok(()) } else { Err(errno(libc::EOPNOTSUPP)) }
}

/// The names of a list that [`check_xattr`] lets through.
pub fn visible_xattrs(names: &[u8]) -> Vec<u8> {
    names.split_inclusive(|b| *b == 0).filter(|name| name.starts_with(b"user.")).flatten().copied().collect()
}

/// The users of the host as the guest sees them.
#[derive(Clone, Copy, Debug)]
pub struct Ids {
    uid: u32,
    gid: u32,
}

impl Ids {
    /// This process's user.
    pub fn of_this_process() -> Ids {
        Ids { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// The user that runs nacre becomes root, the others nobody; set-id bits are not shown.
    pub fn show(self, attr: &mut stat64) {
        attr.st_uid = if attr.st_uid == self.uid { 0 } else { NOBODY };
        attr.st_gid = if attr.st_gid == self.gid { 0 } else { NOBODY };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;

    #[test]
    fn only_plain_names_pass() {
        let long = "x".repeat(256);
        let cases = [
            ("a", 0),
            ("..a", 0),
            ("a\nb", 0),
            ("", libc::EINVAL),
            (".", libc::EINVAL),
            ("..", libc::EINVAL),
            ("a/b", libc::EINVAL),
            ("/etc", libc::EINVAL),
            ("../x", libc::EINVAL),
            (&long, libc::ENAMETOOLONG),
        ];
        for (name, expected) in cases {
            let result = check_name(&CString::new(name).unwrap());
            assert_eq!(result.map_or_else(|e| e.raw_os_error().unwrap(), |()| 0), expected, "{name}");
        }
    }

    #[test]
    fn open_flags_cannot_create_or_follow() {
        let hostile =
            libc::O_CREAT | libc::O_EXCL | libc::O_TMPFILE | libc::O_PATH | libc::O_NOATIME | libc::O_ASYNC;
        assert_eq!(open_flags(hostile.cast_unsigned()), libc::O_DIRECTORY.cast_unsigned());
        assert_eq!(open_flags(u32::MAX) & libc::O_CREAT.cast_unsigned(), 0);
        assert!(opens_for_writing(libc::O_TRUNC.cast_unsigned()));
        assert!(!opens_for_writing(libc::O_APPEND.cast_unsigned()));
    }

    #[test]
    fn nodes_and_modes_are_harmless() {
        assert_eq!(node_mode(libc::S_IFREG | 0o6755).unwrap(), libc::S_IFREG | 0o755);
        for kind in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFDIR, libc::S_IFLNK] {
            assert!(node_mode(kind | 0o644).is_err());
        }
        assert_eq!(safe_mode(0o107_777), 0o1777);
    }

    #[test]
    fn xattrs_of_the_host_stay_hidden() {
        assert_eq!(
            visible_xattrs(b"security.capability\0user.a\0system.posix_acl_access\0user.b\0"),
            b"user.a\0user.b\0"
        );
        assert!(check_xattr(c"security.capability").is_err());
        assert!(check_xattr(c"user.x").is_ok());
    }
}
