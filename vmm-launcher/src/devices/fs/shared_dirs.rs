//! The file system that the guest mounts: a root with one directory per share.
//!
//! An inode number is the share's number (from 1) in the top 8 bits and the share's own inode below; the root is 1.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, FsOptions, OpenOptions, SetattrValid, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, GetxattrReply, ListxattrReply, ROOT_ID, ZeroCopyReader,
    ZeroCopyWriter,
};

use super::rules::{
    Ids, MAX_READDIR_BYTES, MAX_XATTR_BYTES, check_name, check_xattr, errno, node_mode, open_flags,
    opens_for_writing, safe_mode, visible_xattrs,
};
use super::share::OpenShare;
use super::tracker::Tracker;
use super::{FsError, MAX_NAME_BYTES, MAX_SHARES, Share};

const SHARE_SHIFT: u32 = 56;
const INODE_MASK: u64 = (1 << SHARE_SHIFT) - 1;
/// The root never changes.
const ROOT_CACHE_TIME: Duration = Duration::from_secs(3600);
type Opened = (Option<u64>, OpenOptions, Option<u32>);

/// The shares of a VM.
pub struct SharedDirs {
    shares: Vec<OpenShare>,
    ids: Ids,
    tracker: Tracker,
}

impl SharedDirs {
    /// Opens every share. `max_files` is the number of descriptors that this process may have.
    ///
    /// # Errors
    /// A name is not usable, or something cannot be opened.
    pub fn open(shares: &[Share], max_files: u64) -> Result<SharedDirs, FsError> {
        if shares.len() > MAX_SHARES {
            return Err(FsError::TooManyShares(shares.len()));
        }
        let mut open: Vec<OpenShare> = Vec::with_capacity(shares.len());
        for share in shares {
            check_share_name(&share.name)?;
            if open.iter().any(|other| other.name.to_bytes() == share.name.as_bytes()) {
                return Err(FsError::NameTwice(share.name.clone()));
            }
            open.push(OpenShare::open(share)?);
        }
        Ok(SharedDirs { shares: open, ids: Ids::of_this_process(), tracker: Tracker::new(max_files) })
    }

    pub(super) fn shares(&self) -> &[OpenShare] {
        &self.shares
    }

    /// The share of an inode, and the inode within it.
    fn route(&self, inode: u64) -> io::Result<(&OpenShare, u64)> {
        let number = usize::try_from(inode >> SHARE_SHIFT).unwrap_or(0);
        let inner = inode & INODE_MASK;
        match number.checked_sub(1).and_then(|index| self.shares.get(index)) {
            Some(share) if inner != 0 => Ok((share, inner)),
            // The root has no files and takes none.
            _ if inode == ROOT_ID => Err(errno(libc::EPERM)),
            _ => Err(errno(libc::EBADF)),
        }
    }

    /// Puts an entry of the share around `like` into the guest's numbering and counts it.
    fn adopt(&self, like: u64, share: &OpenShare, mut entry: Entry) -> io::Result<Entry> {
        let inner = entry.inode;
        if inner == 0 {
            return Ok(entry);
        }
        let inode = like & !INODE_MASK | inner;
        let wrong_kind = share.is_single_file() && entry.attr.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let counted = if wrong_kind { Err(errno(libc::ENOENT)) } else { self.tracker.looked_up(inode) };
        if let Err(error) = counted {
            share.files.forget(&host_context(), inner, 1);
            return Err(error);
        }
        entry.inode = inode;
        entry.attr.st_ino = inode;
        self.ids.show(&mut entry.attr);
        Ok(entry)
    }

    fn show(&self, inode: u64, mut attr: stat64) -> stat64 {
        attr.st_ino = inode;
        self.ids.show(&mut attr);
        attr
    }

    /// Makes room for a handle, opens, and takes the room back when that fails.
    fn opening<T>(&self, open: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.tracker.open()?;
        open().inspect_err(|_| self.tracker.close())
    }

    fn root_attr() -> stat64 {
        let mut attr = Entry::default().attr;
        attr.st_ino = ROOT_ID;
        attr.st_mode = libc::S_IFDIR | 0o755;
        attr.st_nlink = 2;
        attr.st_blksize = 4096;
        attr
    }

    fn share_entry(&self, index: usize, share: &OpenShare) -> io::Result<Entry> {
        let inode = (index as u64 + 1) << SHARE_SHIFT | ROOT_ID;
        let (attr, timeout) = share.files.getattr(&host_context(), ROOT_ID, None)?;
        Ok(Entry {
            inode,
            attr: self.show(inode, attr),
            attr_timeout: timeout,
            entry_timeout: ROOT_CACHE_TIME,
            ..Entry::default()
        })
    }

    fn list_root(&self, offset: u64, add: &mut dyn FnMut(DirEntry) -> io::Result<usize>) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, share) in self.shares.iter().enumerate().skip(start) {
            let number = index as u64 + 1;
            let entry = DirEntry {
                ino: number << SHARE_SHIFT | ROOT_ID,
                offset: number,
                type_: u32::from(libc::DT_DIR),
                name: share.name.to_bytes(),
            };
            if add(entry)? == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// Every request is carried out as the user that runs nacre: 0 means "do not switch" to the crate below.
pub(super) fn host_context() -> Context {
    Context { uid: 0, gid: 0, pid: 0 }
}

fn check_share_name(name: &str) -> Result<(), FsError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(plain) {
        return Err(FsError::Name(name.to_owned()));
    }
    Ok(())
}

impl FileSystem for SharedDirs {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        let wanted = FsOptions::ASYNC_READ
            | FsOptions::PARALLEL_DIROPS
            | FsOptions::BIG_WRITES
            | FsOptions::AUTO_INVAL_DATA
            | FsOptions::MAX_PAGES
            | FsOptions::ATOMIC_O_TRUNC;
        Ok(capable & wanted)
    }

    fn lookup(&self, _ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        if parent == ROOT_ID {
            let found = self.shares.iter().enumerate().find(|(_, share)| share.name.as_c_str() == name);
            let (index, share) = found.ok_or_else(|| errno(libc::ENOENT))?;
            return self.share_entry(index, share);
        }
        let (share, inner) = self.route(parent)?;
        share.check_shown(inner, name)?;
        self.adopt(parent, share, share.files.lookup(&host_context(), inner, name)?)
    }

    fn forget(&self, _ctx: &Context, inode: u64, count: u64) {
        if let Ok((share, inner)) = self.route(inode) {
            let taken = self.tracker.forget(inode, count);
            if taken > 0 {
                share.files.forget(&host_context(), inner, taken);
            }
        }
    }

    fn getattr(&self, _ctx: &Context, inode: u64, handle: Option<u64>) -> io::Result<(stat64, Duration)> {
        if inode == ROOT_ID {
            return Ok((Self::root_attr(), ROOT_CACHE_TIME));
        }
        let (share, inner) = self.route(inode)?;
        let (attr, timeout) = share.files.getattr(&host_context(), inner, handle)?;
        Ok((self.show(inode, attr), timeout))
    }

    fn setattr(
        &self,
        ctx: &Context,
        inode: u64,
        mut attr: stat64,
        handle: Option<u64>,
        mut valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        let (share, inner) = self.route(inode)?;
        share.check_directory(inner)?;
        if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
            // The guest may set the owner that it sees already, and no other.
            let (shown, _) = self.getattr(ctx, inode, handle)?;
            let uid_kept = !valid.contains(SetattrValid::UID) || attr.st_uid == shown.st_uid;
            let gid_kept = !valid.contains(SetattrValid::GID) || attr.st_gid == shown.st_gid;
            if !uid_kept || !gid_kept {
                return Err(errno(libc::EPERM));
            }
            valid.remove(SetattrValid::UID | SetattrValid::GID);
        }
        attr.st_mode = safe_mode(attr.st_mode);
        let (attr, timeout) = share.files.setattr(&host_context(), inner, attr, handle, valid)?;
        Ok((self.show(inode, attr), timeout))
    }

    fn readlink(&self, _ctx: &Context, inode: u64) -> io::Result<Vec<u8>> {
        let (share, inner) = self.route(inode)?;
        share.files.readlink(&host_context(), inner)
    }

    fn symlink(&self, _ctx: &Context, target: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        let (share, inner) = self.route(parent)?;
        share.check_directory(inner)?;
        self.adopt(parent, share, share.files.symlink(&host_context(), target, inner, name)?)
    }

    fn mknod(
        &self,
        _ctx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        _rdev: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        check_name(name)?;
        let (share, inner) = self.route(parent)?;
        share.check_directory(inner)?;
        let mode = node_mode(mode)?;
        self.adopt(parent, share, share.files.mknod(&host_context(), inner, name, mode, 0, umask)?)
    }

    fn mkdir(&self, _ctx: &Context, parent: u64, name: &CStr, mode: u32, umask: u32) -> io::Result<Entry> {
        check_name(name)?;
        let (share, inner) = self.route(parent)?;
        share.check_directory(inner)?;
        self.adopt(parent, share, share.files.mkdir(&host_context(), inner, name, safe_mode(mode), umask)?)
    }

    fn unlink(&self, _ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        check_name(name)?;
        let (share, inner) = self.route(parent)?;
        share.check_directory(inner)?;
        share.files.unlink(&host_context(), inner, name)
    }

    fn rmdir(&self, _ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        check_name(name)?;
        let (share, inner) = self.route(parent)?;
        share.check_directory(inner)?;
        share.files.rmdir(&host_context(), inner, name)
    }

    fn rename(
        &self,
        _ctx: &Context,
        olddir: u64,
        oldname: &CStr,
        newdir: u64,
        newname: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        check_name(oldname)?;
        check_name(newname)?;
        let (share, from) = self.route(olddir)?;
        let (other, to) = self.route(newdir)?;
        if !std::ptr::eq(share, other) {
            return Err(errno(libc::EXDEV));
        }
        share.check_directory(from)?;
        share.check_directory(to)?;
        // A whiteout is a device node.
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 {
            return Err(errno(libc::EINVAL));
        }
        share.files.rename(&host_context(), from, oldname, to, newname, flags)
    }

    fn link(&self, _ctx: &Context, inode: u64, newparent: u64, newname: &CStr) -> io::Result<Entry> {
        check_name(newname)?;
        let (share, inner) = self.route(inode)?;
        let (other, parent) = self.route(newparent)?;
        if !std::ptr::eq(share, other) {
            return Err(errno(libc::EXDEV));
        }
        share.check_directory(parent)?;
        let linked = share.files.link(&host_context(), inner, parent, newname);
        // Before Linux 6.10 linking by descriptor needs a capability and says ENOENT without it.
        let linked =
            linked.map_err(|e| if e.raw_os_error() == Some(libc::ENOENT) { errno(libc::EPERM) } else { e });
        self.adopt(newparent, share, linked?)
    }

    fn open(&self, _ctx: &Context, inode: u64, flags: u32, fuse_flags: u32) -> io::Result<Opened> {
        let (share, inner) = self.route(inode)?;
        if opens_for_writing(flags) {
            share.check_writable()?;
        }
        self.opening(|| share.files.open(&host_context(), inner, open_flags(flags), fuse_flags))
    }

    fn create(
        &self,
        _ctx: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        check_name(name)?;
        let (share, inner) = self.route(parent)?;
        share.check_directory(inner)?;
        let exclusive = args.flags & libc::O_EXCL.cast_unsigned();
        let create = libc::O_CREAT.cast_unsigned();
        let args = CreateIn {
            flags: open_flags(args.flags) & !libc::O_DIRECTORY.cast_unsigned() | exclusive | create,
            mode: safe_mode(args.mode) & 0o777,
            ..args
        };
        let (entry, handle, options, backing) =
            self.opening(|| share.files.create(&host_context(), inner, name, args))?;
        let found = entry.inode;
        match self.adopt(parent, share, entry) {
            Ok(entry) => Ok((entry, handle, options, backing)),
            Err(error) => {
                // The handle goes with the inode that could not be kept.
                if let Some(handle) = handle {
                    let _ = share.files.release(&host_context(), found, 0, handle, false, false, None);
                }
                self.tracker.close();
                Err(error)
            }
        }
    }

    fn read(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        w: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        let (share, inner) = self.route(inode)?;
        share.files.read(&host_context(), inner, handle, w, size, offset, owner, open_flags(flags))
    }

    fn write(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        r: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        delayed: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        let (share, inner) = self.route(inode)?;
        share.check_writable()?;
        let flags = open_flags(flags);
        share.files.write(&host_context(), inner, handle, r, size, offset, owner, delayed, flags, fuse_flags)
    }

    fn flush(&self, _ctx: &Context, inode: u64, handle: u64, owner: u64) -> io::Result<()> {
        let (share, inner) = self.route(inode)?;
        share.files.flush(&host_context(), inner, handle, owner)
    }

    fn fsync(&self, _ctx: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        let (share, inner) = self.route(inode)?;
        share.files.fsync(&host_context(), inner, datasync, handle)
    }

    fn fallocate(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let (share, inner) = self.route(inode)?;
        share.check_writable()?;
        share.files.fallocate(&host_context(), inner, handle, mode, offset, length)
    }

    fn release(
        &self,
        _ctx: &Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        flock: bool,
        owner: Option<u64>,
    ) -> io::Result<()> {
        let (share, inner) = self.route(inode)?;
        share.files.release(&host_context(), inner, flags, handle, flush, flock, owner)?;
        self.tracker.close();
        Ok(())
    }

    fn statfs(&self, _ctx: &Context, inode: u64) -> io::Result<statvfs64> {
        let first = || self.shares.first().map(|share| (share, ROOT_ID)).ok_or_else(|| errno(libc::ENOSYS));
        let (share, inner) = if inode == ROOT_ID { first()? } else { self.route(inode)? };
        share.files.statfs(&host_context(), inner)
    }

    fn setxattr(&self, _ctx: &Context, inode: u64, name: &CStr, value: &[u8], flags: u32) -> io::Result<()> {
        let (share, inner) = self.route(inode)?;
        share.check_directory(inner)?;
        check_xattr(name)?;
        share.files.setxattr(&host_context(), inner, name, value, flags)
    }

    fn getxattr(&self, _ctx: &Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        let (share, inner) = self.route(inode)?;
        share.check_not_around_a_file(inner)?;
        check_xattr(name)?;
        share.files.getxattr(&host_context(), inner, name, size.min(MAX_XATTR_BYTES))
    }

    fn listxattr(&self, _ctx: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        let (share, inner) = self.route(inode)?;
        share.check_not_around_a_file(inner)?;
        let ListxattrReply::Names(names) = share.files.listxattr(&host_context(), inner, MAX_XATTR_BYTES)?
        else {
            return Err(errno(libc::EIO));
        };
        let names = visible_xattrs(&names);
        let len = u32::try_from(names.len()).unwrap_or(u32::MAX);
        match size {
            0 => Ok(ListxattrReply::Count(len)),
            size if size < len => Err(errno(libc::ERANGE)),
            _ => Ok(ListxattrReply::Names(names)),
        }
    }

    fn removexattr(&self, _ctx: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        let (share, inner) = self.route(inode)?;
        share.check_directory(inner)?;
        check_xattr(name)?;
        share.files.removexattr(&host_context(), inner, name)
    }

    fn opendir(&self, _ctx: &Context, inode: u64, _flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        if inode == ROOT_ID {
            return Ok((None, OpenOptions::empty()));
        }
        let (share, inner) = self.route(inode)?;
        if share.is_around_a_file(inner) {
            return Ok((None, OpenOptions::empty()));
        }
        self.opening(|| share.files.opendir(&host_context(), inner, libc::O_RDONLY.cast_unsigned()))
    }

    fn readdir(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        if inode == ROOT_ID {
            return self.list_root(offset, add_entry);
        }
        let (share, inner) = self.route(inode)?;
        if share.is_around_a_file(inner) {
            if let Some((name, ino)) = share.only_entry().filter(|_| offset == 0) {
                let ino = inode & !INODE_MASK | ino & INODE_MASK;
                let type_ = u32::from(libc::DT_REG);
                add_entry(DirEntry { ino, offset: 1, type_, name: name.to_bytes() })?;
            }
            return Ok(());
        }
        let size = size.min(MAX_READDIR_BYTES);
        share.files.readdir(&host_context(), inner, handle, size, offset, &mut |mut entry| {
            entry.ino = inode & !INODE_MASK | entry.ino & INODE_MASK;
            add_entry(entry)
        })
    }

    fn fsyncdir(&self, _ctx: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        let (share, inner) = self.route(inode)?;
        if share.is_around_a_file(inner) {
            return Ok(());
        }
        share.files.fsyncdir(&host_context(), inner, datasync, handle)
    }

    fn releasedir(&self, _ctx: &Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        if inode == ROOT_ID {
            return Ok(());
        }
        let (share, inner) = self.route(inode)?;
        if share.is_around_a_file(inner) {
            return Ok(());
        }
        share.files.releasedir(&host_context(), inner, flags, handle)?;
        self.tracker.close();
        Ok(())
    }

    fn access(&self, _ctx: &Context, inode: u64, mask: u32) -> io::Result<()> {
        if inode == ROOT_ID {
            return Ok(());
        }
        let (share, inner) = self.route(inode)?;
        if mask.cast_signed() & libc::W_OK != 0 {
            share.check_writable()?;
        }
        share.files.access(&host_context(), inner, mask)
    }

    fn lseek(&self, _ctx: &Context, inode: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        let (share, inner) = self.route(inode)?;
        share.files.lseek(&host_context(), inner, handle, offset, whence)
    }
}

#[cfg(test)]
mod tests;
