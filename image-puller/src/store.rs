//! The layer store on the scratch disk.
//!
//! ```text
//! layers/<diff_id>/layer.tar     the plain tar, whose sha256 is the directory's name
//! layers/<diff_id>/index.erofs   its EROFS index
//! blobs/<blob digest>            record: this compressed blob was seen to become that layer, with its sizes
//! tmp/<number>/                  a layer under way
//! ```
//!
//! A layer appears by one rename, after both digests matched; a record appears, also by rename, after its layer. A layer
//! counts as present only through a record, so that an image cannot claim a layer by naming its diff_id beside some
//! other blob. Nothing is synced: the disk is made afresh for each sandbox and a store is never read after a crash
//! of the machine; a crash of this process loses no rename. What a killed pull left in `tmp` is swept at start.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::digest::Digest;
use crate::registry::transport::Cancel;

const TAR: &str = "layer.tar";
const INDEX: &str = "index.erofs";
/// Longest record in bytes; a real one has 64 digits and three numbers.
const RECORD_BYTES_MAX: usize = 160;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("layer store: cannot {operation} {path}: {source}")]
    Io { operation: &'static str, path: String, source: io::Error },
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

/// What is known of a layer in the store; sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredLayer {
    pub diff_id: Digest,
    pub tar: u64,
    pub index: u64,
}

pub struct Store {
    root: PathBuf,
    next: AtomicU32,
    /// Layers that somebody is fetching.
    claimed: Mutex<HashSet<Digest>>,
    released: Condvar,
}

impl Store {
    /// Opens the store in an existing directory, and sweeps what was left half done.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self {
            root: root.to_owned(),
            next: AtomicU32::new(0),
            claimed: Mutex::default(),
            released: Condvar::new(),
        };
        for name in ["layers", "blobs", "tmp"] {
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
        Ok(store)
    }

    /// The layer that this blob was seen to become, if it is still there as it was.
    pub fn find(&self, blob: &Digest, diff_id: &Digest) -> Option<StoredLayer> {
        let record = fs::read(self.record_path(blob)).ok()?;
        let layer = parse_record(&record).filter(|layer| layer.diff_id == *diff_id)?;
        let size = |name| fs::metadata(self.layer_path(diff_id).join(name)).ok().map(|file| file.len());
        (is_tar_size(size(TAR)?, layer.tar) && size(INDEX)? == layer.index).then_some(layer)
    }

    /// Waits until nobody else fetches this layer, then takes it. Who gets it looks again whether it is there now.
    pub fn claim(&self, diff_id: Digest, cancel: &Cancel) -> Result<Claim<'_>, StoreError> {
        const LOOK_AT_CANCEL: Duration = Duration::from_millis(200);
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        while !claimed.insert(diff_id) {
            if cancel.is_set() {
                return Err(StoreError::Cancelled);
            }
            let waited = self.released.wait_timeout(claimed, LOOK_AT_CANCEL);
            claimed = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(Claim { store: self, diff_id })
    }

    /// Bytes that are free for us, and bytes of the whole file system.
    pub fn space(&self) -> Option<(u64, u64)> {
        let space = rustix::fs::statvfs(&self.root).ok()?;
        Some((space.f_bavail.saturating_mul(space.f_frsize), space.f_blocks.saturating_mul(space.f_frsize)))
    }

    fn sweep(&self) -> Result<(), StoreError> {
        let tmp = self.root.join("tmp");
        let entries = fs::read_dir(&tmp).map_err(|error| failed("list", &tmp, error))?;
        for entry in entries {
            let path = entry.map_err(|error| failed("list", &tmp, error))?.path();
            remove_temporary(&path).map_err(|error| failed("sweep", &path, error))?;
        }
        Ok(())
    }

    fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    fn record_path(&self, blob: &Digest) -> PathBuf {
        self.root.join("blobs").join(blob.hex())
    }

    fn temporary(&self) -> PathBuf {
        self.root.join("tmp").join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    fn write_record(&self, blob: &Digest, layer: &StoredLayer) -> Result<(), StoreError> {
        let temporary = self.temporary();
        let line = format!("{} {} {}\n", layer.diff_id.hex(), layer.tar, layer.index);
        fs::write(&temporary, line).map_err(|error| failed("write", &temporary, error))?;
        let path = self.record_path(blob);
        fs::rename(&temporary, &path).map_err(|error| failed("commit", &path, error))
    }
}

/// The right to fetch one layer; given back when dropped.
pub struct Claim<'a> {
    store: &'a Store,
    diff_id: Digest,
}

impl Claim<'_> {
    /// Makes the two empty files.
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
        self.store.claimed.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.diff_id);
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

    /// To be called when the blob's and the tar's digests have matched, and only then. The files must have the sizes
    /// that the indexer said.
    pub fn commit(mut self, blob: &Digest, tar: u64, index: u64) -> Result<StoredLayer, StoreError> {
        let store = self.claim.store;
        let layer = StoredLayer { diff_id: self.claim.diff_id, tar, index };
        for (name, expected) in [(TAR, tar), (INDEX, index)] {
            let path = self.directory.join(name);
            let size = fs::metadata(&path).map_err(|error| failed("look at", &path, error))?.len();
            if size != expected && !(name == TAR && is_tar_size(size, tar)) {
                let source =
                    io::Error::other(format!("it has {size} bytes, not the {expected} that were announced"));
                return Err(failed("commit", &path, source));
            }
        }
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

/// Removes a layer's directory, or a record's file: nothing else is made in `tmp`.
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

/// A tar's file ends in up to 511 zeros more than the tar has: a block device is made of whole blocks.
fn is_tar_size(file: u64, tar: u64) -> bool {
    const BLOCK_BYTES: u64 = 512;
    file == tar || file == tar.next_multiple_of(BLOCK_BYTES)
}

/// `<64 digits> <tar bytes> <index bytes>` and a newline.
fn parse_record(bytes: &[u8]) -> Option<StoredLayer> {
    if bytes.len() > RECORD_BYTES_MAX {
        return None;
    }
    let mut words = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?.split(' ');
    let diff_id = Digest::from_hex(words.next()?).ok()?;
    let layer = StoredLayer { diff_id, tar: words.next()?.parse().ok()?, index: words.next()?.parse().ok()? };
    words.next().is_none().then_some(layer)
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { operation, path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const BLOB: Digest = Digest::from_bytes([1; 32]);
    const OTHER_BLOB: Digest = Digest::from_bytes([2; 32]);
    const DIFF_ID: Digest = Digest::from_bytes([3; 32]);

    fn lay_down(store: &Store, blob: Digest) -> Result<StoredLayer, StoreError> {
        let claim = store.claim(DIFF_ID, &Cancel::default())?;
        let pending = claim.begin()?;
        pending.create_tar()?.write_all(b"tar").unwrap();
        pending.create_index()?.write_all(b"index").unwrap();
        pending.commit(&blob, 3, 5)
    }

    fn count(path: &Path) -> usize {
        fs::read_dir(path).unwrap().count()
    }

    #[test]
    fn a_layer_is_found_through_its_record_alone() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(store.find(&BLOB, &DIFF_ID), None);
        let layer = lay_down(&store, BLOB).unwrap();
        assert_eq!(layer, StoredLayer { diff_id: DIFF_ID, tar: 3, index: 5 });
        assert_eq!(store.find(&BLOB, &DIFF_ID), Some(layer));
        assert_eq!(store.find(&OTHER_BLOB, &DIFF_ID), None, "another blob was never seen to become it");
        assert_eq!(store.find(&BLOB, &BLOB), None, "the blob is not another layer");
        lay_down(&store, OTHER_BLOB).unwrap();
        assert_eq!(store.find(&OTHER_BLOB, &DIFF_ID), Some(layer));
        assert_eq!((count(&directory.path().join("layers")), count(&directory.path().join("tmp"))), (1, 0));
        let again = Store::open(directory.path()).unwrap();
        assert_eq!(again.find(&BLOB, &DIFF_ID), Some(layer));
        fs::write(directory.path().join("layers").join(DIFF_ID.hex()).join(TAR), "cut").unwrap();
        assert_eq!(again.find(&BLOB, &DIFF_ID), Some(layer), "same size");
        fs::write(directory.path().join("layers").join(DIFF_ID.hex()).join(TAR), "longer").unwrap();
        assert_eq!(again.find(&BLOB, &DIFF_ID), None);
    }

    #[test]
    fn what_is_not_committed_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let claim = store.claim(DIFF_ID, &Cancel::default()).unwrap();
        let pending = claim.begin().unwrap();
        pending.create_tar().unwrap();
        drop(pending);
        let pending = claim.begin().unwrap();
        pending.create_tar().unwrap();
        pending.create_index().unwrap();
        assert!(pending.commit(&BLOB, 1, 0).is_err(), "committed a tar of another size");
        for name in ["layers", "blobs", "tmp"] {
            assert_eq!(count(&directory.path().join(name)), 0, "{name}");
        }
    }

    #[test]
    fn a_killed_pulls_leavings_are_swept_at_start() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let claim = store.claim(DIFF_ID, &Cancel::default()).unwrap();
        let pending = claim.begin().unwrap();
        pending.create_tar().unwrap();
        std::mem::forget(pending);
        fs::write(store.temporary(), "half a record").unwrap();
        assert_eq!(count(&directory.path().join("tmp")), 2);
        Store::open(directory.path()).unwrap();
        assert_eq!(count(&directory.path().join("tmp")), 0);
    }

    #[test]
    fn a_layer_is_fetched_by_one_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let fetched = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let claim = store.claim(DIFF_ID, &Cancel::default()).unwrap();
                    if store.find(&BLOB, &DIFF_ID).is_none() {
                        fetched.fetch_add(1, Ordering::Relaxed);
                        let pending = claim.begin().unwrap();
                        pending.create_tar().unwrap();
                        pending.create_index().unwrap();
                        pending.commit(&BLOB, 0, 0).unwrap();
                    }
                });
            }
        });
        assert_eq!(fetched.into_inner(), 1);
        let held = store.claim(DIFF_ID, &Cancel::default()).unwrap();
        let cancel = Cancel::default();
        cancel.set();
        assert!(matches!(store.claim(DIFF_ID, &cancel), Err(StoreError::Cancelled)));
        drop(held);
    }

    #[test]
    fn odd_records_are_no_records() {
        let hex = DIFF_ID.hex();
        let layer = StoredLayer { diff_id: DIFF_ID, tar: 5, index: 6 };
        for (text, expected) in [
            (format!("{hex} 5 6\n"), Some(layer)),
            (format!("{hex} 5 6"), None),
            (format!("{hex} 5\n"), None),
            (format!("{hex} 5 6 7\n"), None),
            (format!("{hex} 5 -6\n"), None),
            (format!("{} 5 6\n", hex.to_uppercase().replace('0', "A")), None),
            (format!("{hex} 5 {}6\n", "0".repeat(200)), None),
            (String::new(), None),
        ] {
            assert_eq!(parse_record(text.as_bytes()), expected, "{text}");
        }
    }
}
