//! The layer store on the scratch disk.
//!
//! ```text
//! layers/<diff_id>/layer.tar     the plain tar, whose sha256 is the directory's name
//! layers/<diff_id>/index.erofs   its EROFS index
//! unchecked/<diff_id>/…          the same, from an earlier boot
//! blobs/<blob digest>            record: this compressed blob was seen to become that layer, with its sizes
//! images/<digest of reference>   record: what that reference was when it was pulled
//! roots/<digest of manifest>     for the launcher, where the sandbox was booted for some images: diff_ids of one of them
//! tmp/<number>/                  a layer under way
//! boot                           the boot in which what is in `layers` was checked
//! ```
//!
//! A layer appears by one rename, after both digests matched; a record appears, also by rename, after its layer. A layer
//! counts as present only through a record, so that an image cannot claim a layer by naming its diff_id beside some
//! other blob. What a killed pull left in `tmp` is swept at start.
//!
//! A store on a disk of one sandbox alone is never read after a crash of the machine, and a crash of this process loses no
//! rename: nothing is synced. On a *kept* disk every file and directory is synced before the rename that depends on it, so
//! that what is there after a power cut is whole. It is believed no more than a registry all the same: at the first start in
//! a boot all layers become `unchecked`, and each is hashed and indexed again from its tar before it is used
//! ([`crate::pull`]). What the records of a kept disk say decides only what has to be fetched, listed and removed.

mod collect;
mod record;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use collect::{Collected, Contents, Needed};
pub use record::{
    IMAGE_RECORD_BYTES_MAX, ImageRecord, LAYER_RECORD_BYTES_MAX, layer_line, parse_image, parse_layer,
};

use nacre_protocols::names::ROOTS;

use crate::digest::Digest;
use crate::registry::transport::Cancel;

const TAR: &str = "layer.tar";
const INDEX: &str = "index.erofs";
const LAYERS: &str = "layers";
const UNCHECKED: &str = "unchecked";
const BLOBS: &str = "blobs";
const IMAGES: &str = "images";
const TEMPORARY: &str = "tmp";
const BOOT: &str = "boot";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("layer store: cannot {operation} {path}: {source}")]
    Io { operation: &'static str, path: String, source: io::Error },
    #[error("the store's quota of {quota} bytes is reached: it has {used}, and {wanted} more are wanted")]
    Quota { quota: u64, used: u64, wanted: u64 },
    #[error("cancelled")]
    Cancelled,
}

impl StoreError {
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_disk_full(source))
    }
}

pub fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What kind of store it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// A name of this boot, if the disk outlives it: what was checked under another name is checked again.
    pub boot: Option<String>,
    /// Bytes that layers may take; what the disk has, without one.
    pub quota: Option<u64>,
}

/// What is known of a layer in the store; sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredLayer {
    pub diff_id: Digest,
    pub tar: u64,
    pub index: u64,
}

pub struct Store {
    root: PathBuf,
    is_kept: bool,
    quota: Option<u64>,
    /// Bytes of all layers, checked or not.
    used: AtomicU64,
    next: AtomicU32,
    /// Layers that somebody is fetching.
    claimed: Mutex<HashSet<Digest>>,
    released: Condvar,
    /// Layers of the images that are being pulled, each with the number of pulls: they are not collected.
    pinned: Mutex<HashMap<Digest, usize>>,
}

impl Store {
    /// Opens the store in an existing directory, and sweeps what was left half done.
    pub fn open(root: &Path, options: &Options) -> Result<Self, StoreError> {
        let store = Self {
            root: root.to_owned(),
            is_kept: options.boot.is_some(),
            quota: options.quota,
            used: AtomicU64::new(0),
            next: AtomicU32::new(0),
            claimed: Mutex::default(),
            released: Condvar::new(),
            pinned: Mutex::default(),
        };
        for name in [LAYERS, UNCHECKED, BLOBS, IMAGES, ROOTS, TEMPORARY] {
            let path = root.join(name);
            // The launcher, who mounts, is root; nobody else has business here.
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("create", &path, error));
                }
                _ => {}
            }
        }
        store.sweep()?;
        if let Some(boot) = &options.boot {
            store.distrust(boot)?;
        }
        store.used.store(store.measure()?, Ordering::Relaxed);
        Ok(store)
    }

    /// The layer that this blob was seen to become, if it is still there as it was.
    pub fn find(&self, blob: &Digest, diff_id: &Digest) -> Option<StoredLayer> {
        let layer = self.recorded(blob, diff_id)?;
        let size = |name| fs::metadata(self.layer_path(diff_id).join(name)).ok().map(|file| file.len());
        (is_tar_size(size(TAR)?, layer.tar) && size(INDEX)? == layer.index).then_some(layer)
    }

    /// The tar of a layer that an earlier boot has left, to be hashed and indexed again.
    pub fn find_unchecked(&self, blob: &Digest, diff_id: &Digest) -> Option<(File, StoredLayer)> {
        let layer = self.recorded(blob, diff_id)?;
        let path = self.unchecked_path(diff_id).join(TAR);
        let is_plain = fs::symlink_metadata(&path).ok()?.is_file();
        let file = is_plain.then(|| File::open(&path).ok())??;
        is_tar_size(file.metadata().ok()?.len(), layer.tar).then_some((file, layer))
    }

    /// An earlier boot's layer is not what it should be, or is there anew.
    pub fn drop_unchecked(&self, diff_id: &Digest) -> Result<(), StoreError> {
        self.remove_layer(&self.unchecked_path(diff_id))
    }

    fn recorded(&self, blob: &Digest, diff_id: &Digest) -> Option<StoredLayer> {
        let record = record::read(&self.record_path(blob), LAYER_RECORD_BYTES_MAX)?;
        parse_layer(&record).filter(|layer| layer.diff_id == *diff_id)
    }

    /// Waits until nobody else fetches this layer, then takes it. Who gets it looks again whether it is there now.
    pub fn claim(&self, diff_id: Digest, cancel: &Cancel) -> Result<Claim<'_>, StoreError> {
        const LOOK_AT_CANCEL: Duration = Duration::from_millis(200);
        let mut claimed = lock(&self.claimed);
        while !claimed.insert(diff_id) {
            if cancel.is_set() {
                return Err(StoreError::Cancelled);
            }
            let waited = self.released.wait_timeout(claimed, LOOK_AT_CANCEL);
            claimed = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(Claim { store: self, diff_id })
    }

    /// Holds these layers against [`Store::collect`], until it is dropped.
    pub fn pin(&self, layers: Vec<Digest>) -> Pin<'_> {
        let mut pinned = lock(&self.pinned);
        for layer in &layers {
            *pinned.entry(*layer).or_default() += 1;
        }
        Pin { store: self, layers }
    }

    /// Bytes that are free for us, and bytes of the whole file system.
    pub fn space(&self) -> Option<(u64, u64)> {
        let space = rustix::fs::statvfs(&self.root).ok()?;
        Some((space.f_bavail.saturating_mul(space.f_frsize), space.f_blocks.saturating_mul(space.f_frsize)))
    }

    /// Fails if `wanted` bytes more would be more than the quota. Gives how many more there may be.
    pub fn check_quota(&self, wanted: u64) -> Result<u64, StoreError> {
        let Some(quota) = self.quota else { return Ok(u64::MAX) };
        let used = self.used.load(Ordering::Relaxed);
        let left = quota.saturating_sub(used);
        if wanted > left { Err(self.over_quota(wanted)) } else { Ok(left) }
    }

    pub fn over_quota(&self, wanted: u64) -> StoreError {
        let used = self.used.load(Ordering::Relaxed);
        StoreError::Quota { quota: self.quota.unwrap_or(u64::MAX), used, wanted }
    }

    /// What this reference is, for who lists the store.
    pub fn write_image(&self, image: &ImageRecord) -> Result<(), StoreError> {
        let path = self.image_path(&image.image.reference);
        // What somebody wanted to have kept stays so when somebody else only uses it.
        let before = record::read(&path, IMAGE_RECORD_BYTES_MAX).as_deref().and_then(parse_image);
        let mut image = image.clone();
        image.keep |= before.is_some_and(|before| before.keep);
        let Some(bytes) = image.encode() else {
            return Err(failed("encode", &path, io::ErrorKind::InvalidData.into()));
        };
        self.write_file(&path, &bytes)
    }

    /// Lets a container have these layers, and all of them in this order, for its root.
    pub fn write_root(&self, manifest: &Digest, layers: &[Digest]) -> Result<(), StoreError> {
        let bytes: Vec<u8> = layers.iter().flat_map(|layer| *layer.as_bytes()).collect();
        self.write_file(&self.root.join(ROOTS).join(manifest.hex()), &bytes)
    }

    fn sweep(&self) -> Result<(), StoreError> {
        for path in list(&self.root.join(TEMPORARY))? {
            remove_temporary(&path).map_err(|error| failed("sweep", &path, error))?;
        }
        Ok(())
    }

    /// In a new boot no layer is checked. Whatever is interrupted here begins again at the next start: the boot's name comes
    /// last.
    fn distrust(&self, boot: &str) -> Result<(), StoreError> {
        let name = self.root.join(BOOT);
        if record::read(&name, record::BOOT_BYTES_MAX).is_some_and(|found| found == boot.as_bytes()) {
            return Ok(());
        }
        for path in list(&self.root.join(LAYERS))? {
            let Some(file_name) = path.file_name() else { continue };
            let to = self.root.join(UNCHECKED).join(file_name);
            self.remove_layer(&to)?;
            fs::rename(&path, &to).map_err(|error| failed("set aside", &path, error))?;
        }
        self.sync(&self.root.join(UNCHECKED))?;
        self.sync(&self.root.join(LAYERS))?;
        self.write_file(&name, boot.as_bytes())
    }

    /// First out of the way by one rename, so that no half of it is ever taken for a layer.
    fn remove_layer(&self, path: &Path) -> Result<(), StoreError> {
        let temporary = self.temporary();
        match fs::rename(path, &temporary) {
            Ok(()) => remove_temporary(&temporary).map_err(|error| failed("remove", path, error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("remove", path, error)),
        }
    }

    fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join(LAYERS).join(diff_id.hex())
    }

    fn unchecked_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join(UNCHECKED).join(diff_id.hex())
    }

    fn record_path(&self, blob: &Digest) -> PathBuf {
        self.root.join(BLOBS).join(blob.hex())
    }

    fn image_path(&self, reference: &str) -> PathBuf {
        self.root.join(IMAGES).join(Digest::of(reference.as_bytes()).hex())
    }

    fn temporary(&self) -> PathBuf {
        self.root.join(TEMPORARY).join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    fn write_record(&self, blob: &Digest, layer: &StoredLayer) -> Result<(), StoreError> {
        self.write_file(&self.record_path(blob), layer_line(layer).as_bytes())
    }

    /// Whole or not at all.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let temporary = self.temporary();
        fs::write(&temporary, bytes).map_err(|error| failed("write", &temporary, error))?;
        self.sync(&temporary)?;
        fs::rename(&temporary, path).map_err(|error| failed("commit", path, error))?;
        self.sync(path.parent().unwrap_or(&self.root))
    }

    /// A file, or the names in a directory; nothing to do where the disk does not outlive its machine.
    fn sync(&self, path: &Path) -> Result<(), StoreError> {
        if !self.is_kept {
            return Ok(());
        }
        File::open(path).and_then(|file| file.sync_all()).map_err(|error| failed("sync", path, error))
    }
}

/// Holds layers that a pull needs.
pub struct Pin<'a> {
    store: &'a Store,
    layers: Vec<Digest>,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut pinned = lock(&self.store.pinned);
        for layer in &self.layers {
            if let Some(count) = pinned.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    pinned.remove(layer);
                }
            }
        }
    }
}

/// The right to fetch one layer; given back when dropped.
pub struct Claim<'a> {
    store: &'a Store,
    diff_id: Digest,
}

impl Claim<'_> {
    /// Makes a directory for the two files.
    pub fn begin(&self) -> Result<Pending<'_>, StoreError> {
        let directory = self.store.temporary();
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(|error| failed("create", &directory, error))?;
        // From here on, dropped means removed.
        let pending = Pending { claim: self, directory, committed: false };
        Ok(pending)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(&self.store.claimed).remove(&self.diff_id);
        self.store.released.notify_all();
    }
}

/// A layer that is being laid down.
pub struct Pending<'a> {
    claim: &'a Claim<'a>,
    directory: PathBuf,
    committed: bool,
}

impl Pending<'_> {
    /// Readable and writable.
    pub fn create_tar(&self) -> Result<File, StoreError> {
        self.create(TAR)
    }

    /// Readable and writable.
    pub fn create_index(&self) -> Result<File, StoreError> {
        self.create(INDEX)
    }

    /// Takes the tar of an earlier boot, which was just found to be right.
    pub fn take_unchecked(&self) -> Result<(), StoreError> {
        let store = self.claim.store;
        let from = store.unchecked_path(&self.claim.diff_id);
        fs::rename(from.join(TAR), self.directory.join(TAR))
            .map_err(|error| failed("take over", &from, error))?;
        store.remove_layer(&from)
    }

    /// To be called when the blob's and the tar's digests have matched, and only then. The files must have the sizes
    /// that the indexer said.
    pub fn commit(mut self, blob: &Digest, tar: u64, index: u64) -> Result<StoredLayer, StoreError> {
        let store = self.claim.store;
        let layer = StoredLayer { diff_id: self.claim.diff_id, tar, index };
        let mut bytes = 0;
        for (name, expected) in [(TAR, tar), (INDEX, index)] {
            let path = self.directory.join(name);
            let found = fs::metadata(&path).map_err(|error| failed("look at", &path, error))?;
            let size = found.len();
            if size != expected && !(name == TAR && is_tar_size(size, tar)) {
                let source =
                    io::Error::other(format!("it has {size} bytes, not the {expected} that were announced"));
                return Err(failed("commit", &path, source));
            }
            bytes += taken(&found);
            store.sync(&path)?;
        }
        store.check_quota(bytes)?;
        store.sync(&self.directory)?;
        let path = store.layer_path(&layer.diff_id);
        match fs::rename(&self.directory, &path) {
            Ok(()) => self.committed = true,
            // It is there already, from another compression of the same tar: the record is all that is new.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                return self.adopt(blob, &path, layer);
            }
            Err(error) => return Err(failed("commit", &path, error)),
        }
        store.used.fetch_add(bytes, Ordering::Relaxed);
        store.sync(&store.root.join(LAYERS))?;
        store.write_record(blob, &layer)?;
        Ok(layer)
    }

    fn adopt(&self, blob: &Digest, path: &Path, layer: StoredLayer) -> Result<StoredLayer, StoreError> {
        let index = path.join(INDEX);
        let index = fs::metadata(&index).map_err(|error| failed("look at", &index, error))?.len();
        let layer = StoredLayer { index, ..layer };
        self.claim.store.write_record(blob, &layer)?;
        Ok(layer)
    }

    fn create(&self, name: &str) -> Result<File, StoreError> {
        let path = self.directory.join(name);
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| failed("create", &path, error))
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.committed {
            // What cannot be removed now is swept at the next start.
            let _ = remove_temporary(&self.directory);
        }
    }
}

/// Removes a layer's directory, or a record's file: nothing else is made in `tmp`. A disk that is not ours alone may have
/// anything there; what does not go is an error.
fn remove_temporary(path: &Path) -> io::Result<()> {
    for file in [path.join(TAR), path.join(INDEX)] {
        match fs::remove_file(&file) {
            // The path is a record, or this file was not made yet.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::NotFound) => {}
            other => other?,
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        other => other,
    }
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(directory).map_err(|error| failed("list", directory, error))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths.collect::<Result<_, _>>().map_err(|error| failed("list", directory, error))
}

/// Bytes that a file takes of the disk.
fn taken(file: &fs::Metadata) -> u64 {
    const STAT_BLOCK_BYTES: u64 = 512;
    file.blocks().saturating_mul(STAT_BLOCK_BYTES)
}

/// A tar's file ends in up to 511 zeros more than the tar has: a block device is made of whole blocks.
fn is_tar_size(file: u64, tar: u64) -> bool {
    const BLOCK_BYTES: u64 = 512;
    file == tar || Some(file) == tar.checked_next_multiple_of(BLOCK_BYTES)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { operation, path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests;
