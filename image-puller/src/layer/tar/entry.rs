use super::super::error::HeaderProblem;
use super::header::Header;

/// One entry of a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As the archive has it: not cleaned, any bytes but NUL.
    pub path: Vec<u8>,
    pub kind: Kind,
    /// The target of a symbolic link, or the path that a hard link goes to.
    pub link: Vec<u8>,
    /// Permission bits, with set-id and sticky: 12 bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Bytes of the file as it is read, holes included.
    pub size: u64,
    /// Where in the tar the data begins, in bytes: always a multiple of 512.
    pub data_offset: u64,
    /// Bytes of data in the tar, holes and padding excluded.
    pub data_bytes: u64,
    /// The parts of a sparse file that are not holes, in order; their data lies packed from `data_offset` on.
    pub segments: Option<Vec<Segment>>,
    /// Names with values, each name once.
    pub xattrs: Vec<Xattr>,
}

/// The full name of an extended attribute, and its value.
pub type Xattr = (Box<[u8]>, Box<[u8]>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// Seconds since the epoch, possibly before it, and nanoseconds after them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    pub seconds: i64,
    /// Always less than 10^9.
    pub nanoseconds: u32,
}

/// A part of a sparse file that has data, in bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub len: u64,
}

pub fn kind(header: &Header, path: &[u8]) -> Result<Kind, HeaderProblem> {
    Ok(match header.type_flag() {
        // Archives older than POSIX have no type for a directory.
        0 if path.ends_with(b"/") => Kind::Directory,
        // POSIX: whoever does not know what "contiguous" would mean takes '7' as a regular file.
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => return Err(HeaderProblem::Type(other)),
    })
}

pub fn device(header: &Header, kind: Kind) -> Result<(u32, u32), HeaderProblem> {
    if !matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
        return Ok((0, 0));
    }
    let part = |field: super::header::Field| {
        u32::try_from(header.number(field)?).map_err(|_| HeaderProblem::Number(field.name))
    };
    Ok((part(Header::DEV_MAJOR)?, part(Header::DEV_MINOR)?))
}
