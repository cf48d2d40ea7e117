//! The scratch space: a disk formatted here, or a tmpfs; with the puller's store and the containers' writable layers.

use super::kept::{self, Found};
use super::{INERT, STAGE};
use crate::error::{Context, LaunchError, Result};
use crate::ext4::{self, Options};
use crate::filesystem::{FilesystemContext, attach};
use crate::tree::Tree;
use nacre_protocols::names::{FETCHER_UID, LAYERS_DIR, SCRATCH_DIR, STORE_DIR, UPPER_DIR};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, SeekFrom, Uid, chmodat, chownat, openat, seek};
use rustix::mount::MountAttrFlags;
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// The volume label by which a scratch disk is known as one of ours.
const LABEL: &str = "nacre-scratch";
/// The start of the disk that is looked at: the superblock is 1024 bytes at 1024.
pub const HEAD_BYTES: usize = 4096;
// Offsets in the disk (`Documentation/filesystems/ext4/super.rst`).
const MAGIC_AT: usize = 1024 + 0x38;
const STATE_AT: usize = 1024 + 0x3a;
const LABEL_AT: usize = 1024 + 0x78;
const LABEL_BYTES: usize = 16;
const EXT4_MAGIC: u16 = 0xef53;
/// Unmounted in order, and no errors seen.
const CLEAN: u16 = 1;

/// Formats the disk, unless it is one of ours that was unmounted in order, and mounts it.
pub fn disk(device: &str) -> Result<()> {
    let (disk, head) = open(device)?;
    if !is_ours(&head) {
        format(&disk, device, &head, None)?;
    }
    drop(disk);
    mount_disk(device)
}

/// A disk that outlives the sandbox: it has a journal, which the kernel replays after a machine that was killed. It is
/// formatted when it is blank, and only then: what is on it otherwise is whole and ours, or an error that says what it is.
pub fn kept_disk(device: &str) -> Result<()> {
    let (disk, head) = open(device)?;
    let bytes = size(&disk, device)?;
    match kept::judge(&head, bytes) {
        Found::Blank => format(&disk, device, &head, Some(kept::journal_blocks(bytes)))?,
        Found::Ours => {}
        Found::Other(what) => {
            let message = format!("the kept disk {device} is not used: {what}");
            return Err(LaunchError::refused(STAGE, message));
        }
    }
    drop(disk);
    mount_disk(device).map_err(|error| kept::explain(error, device))?;
    // What an earlier boot has left that a container could be made of, or be made to hold.
    super::remove::all_roots()?;
    super::remove::all_writable()
}

fn mount_disk(device: &str) -> Result<()> {
    // Deleted layers give their room back to the host's file.
    let options = [format!("source={device}"), "discard".to_owned()];
    mount("ext4", &options, INERT | MountAttrFlags::MOUNT_ATTR_NOATIME)
}

fn open(device: &str) -> Result<(File, [u8; HEAD_BYTES])> {
    let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
    // Exclusive: fails for a disk that is mounted.
    let disk = openat(CWD, device, flags, Mode::empty())
        .map(File::from)
        .at(STAGE, || format!("opening the scratch disk {device}"))?;
    let head = read_head(&disk).at(STAGE, || format!("reading the scratch disk {device}"))?;
    Ok((disk, head))
}

fn size(disk: &File, device: &str) -> Result<u64> {
    seek(disk, SeekFrom::End(0)).at(STAGE, || format!("asking the size of {device}"))
}

/// A tmpfs of at most `bytes`.
pub fn tmpfs(bytes: u64) -> Result<()> {
    let options = ["source=scratch".to_owned(), format!("size={bytes}"), "mode=711".to_owned()];
    mount("tmpfs", &options, INERT | MountAttrFlags::MOUNT_ATTR_NOATIME)
}

fn mount(kind: &str, options: &[String], attributes: MountAttrFlags) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let place = Tree::guest("/")?.make_directory(SCRATCH_DIR)?;
        let context = FilesystemContext::open(kind)?;
        options.iter().try_for_each(|option| context.option(option))?;
        attach(context.mount(attributes)?, place)
    };
    attempt().at(STAGE, || format!("mounting {kind} at {SCRATCH_DIR}"))?;
    furnish().at(STAGE, || format!("making the directories of {SCRATCH_DIR}"))
}

/// The store belongs to the fetcher alone; what lies beside it to nobody but root.
fn furnish() -> io::Result<()> {
    for (path, mode, owner) in
        [(STORE_DIR, 0o700, FETCHER_UID), (UPPER_DIR, 0o711, 0), (LAYERS_DIR, 0o755, 0)]
    {
        let made: OwnedFd = Tree::guest("/")?.make_directory(path)?;
        let (parent, name) = Tree::guest("/")?.make_parent(path)?;
        drop(made);
        chownat(
            &parent,
            name,
            Some(Uid::from_raw(owner)),
            Some(Gid::from_raw(owner)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        chmodat(&parent, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    Ok(())
}

/// With a journal it is a kept disk.
fn format(disk: &File, device: &str, head: &[u8], journal_blocks: Option<u32>) -> Result<()> {
    let random = random().at(STAGE, || "getting random numbers".to_owned())?;
    let (uuid, hash_seed) = random;
    let mut options = Options::new(uuid, hash_seed);
    options.label = if journal_blocks.is_some() { kept::LABEL } else { LABEL }.to_owned();
    options.journal_blocks = journal_blocks;
    // A disk that begins with something may have anything behind it.
    options.zero = head.iter().any(|byte| *byte != 0);
    ext4::format(disk, size(disk, device)?, &options)
        .map(drop)
        .map_err(|error| LaunchError::refused(STAGE, format!("formatting {device}: {error}")))
}

fn random() -> io::Result<([u8; 16], [u8; 16])> {
    let mut bytes = [[0; 16]; 2];
    for part in &mut bytes {
        // Names of a volume and of its directory hashes are no secrets: this must not wait for entropy at boot.
        getrandom(part.as_mut_slice(), GetRandomFlags::INSECURE)?;
    }
    let [uuid, hash_seed] = bytes;
    Ok((uuid, hash_seed))
}

fn read_head(disk: &File) -> io::Result<[u8; HEAD_BYTES]> {
    let mut head = [0; HEAD_BYTES];
    disk.read_exact_at(&mut head, 0)?;
    Ok(head)
}

fn is_ours(head: &[u8; HEAD_BYTES]) -> bool {
    let number =
        |at: usize| head.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_le_bytes);
    let mut label = [0; LABEL_BYTES];
    for (to, from) in label.iter_mut().zip(LABEL.bytes()) {
        *to = from;
    }
    number(MAGIC_AT) == Some(EXT4_MAGIC)
        && number(STATE_AT) == Some(CLEAN)
        && head.get(LABEL_AT..LABEL_AT + LABEL_BYTES) == Some(label.as_slice())
}
