//! What the store has, and what of it nobody needs any more.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::record::{self, ImageRecord, parse_image, parse_layer};
use super::{BLOBS, IMAGES, INDEX, LAYERS, Store, StoreError, TAR, UNCHECKED, failed, list, lock, taken};
use super::{IMAGE_RECORD_BYTES_MAX, LAYER_RECORD_BYTES_MAX};
use crate::digest::Digest;

/// What the store holds; sizes in bytes.
#[derive(Debug, Default)]
pub struct Contents {
    /// By reference.
    pub images: Vec<ImageRecord>,
    pub layers: u64,
    pub used: u64,
    pub quota: Option<u64>,
}

/// What was removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub images: Vec<String>,
    pub layers: Vec<Digest>,
    pub bytes: u64,
}

/// What a collection leaves.
#[derive(Debug, Default)]
pub struct Needed {
    /// Manifests of images, and layers.
    pub used: HashSet<Digest>,
    pub used_layers: HashSet<Digest>,
    /// References that are not kept any more.
    pub forget: Vec<String>,
    /// Every other image stays.
    pub only: bool,
}

impl Needed {
    fn has(&self, record: &ImageRecord) -> bool {
        let forgotten = self.forget.contains(&record.image.reference);
        let is_used = self.used.contains(&Digest::from_bytes(record.image.manifest.0));
        is_used || (!forgotten && (record.keep || self.only))
    }
}

impl Store {
    pub fn contents(&self) -> Result<Contents, StoreError> {
        let mut images = Vec::new();
        for path in list(&self.root.join(IMAGES))? {
            images.extend(record::read(&path, IMAGE_RECORD_BYTES_MAX).as_deref().and_then(parse_image));
        }
        images.sort_by(|one, other| one.image.reference.cmp(&other.image.reference));
        let layers = list(&self.root.join(LAYERS))?.len() + list(&self.root.join(UNCHECKED))?.len();
        Ok(Contents {
            images,
            layers: layers as u64,
            used: self.used.load(Ordering::Relaxed),
            quota: self.quota,
        })
    }

    /// Removes images that nobody needs, and then every layer that no image that is left has, that no pull needs, and that is
    /// not used by itself.
    pub fn collect(&self, what: &Needed) -> Result<Collected, StoreError> {
        let mut collected = Collected::default();
        // Nobody begins a layer meanwhile; those that are under way lie in `tmp`.
        let claimed = lock(&self.claimed);
        let mut needed: HashSet<Digest> = what.used_layers.clone();
        needed.extend(claimed.iter());
        needed.extend(lock(&self.pinned).keys());
        for path in list(&self.root.join(IMAGES))? {
            let parsed = record::read(&path, IMAGE_RECORD_BYTES_MAX).as_deref().and_then(parse_image);
            let stays = parsed.as_ref().is_some_and(|record| what.has(record));
            match parsed {
                Some(record) if stays => {
                    needed
                        .extend(record.image.layers.iter().map(|layer| Digest::from_bytes(layer.diff_id.0)));
                }
                parsed => {
                    fs::remove_file(&path).map_err(|error| failed("remove", &path, error))?;
                    collected.images.extend(parsed.map(|record| record.image.reference));
                }
            }
        }
        for folder in [LAYERS, UNCHECKED] {
            for path in list(&self.root.join(folder))? {
                let Some(digest) = digest_of(&path) else { continue };
                if needed.contains(&digest) {
                    continue;
                }
                let bytes = layer_bytes(&path);
                self.remove_layer(&path)?;
                // Another thread adds at the same time, but nobody takes away.
                self.used.fetch_sub(bytes.min(self.used.load(Ordering::Relaxed)), Ordering::Relaxed);
                collected.bytes += bytes;
                if !collected.layers.contains(&digest) {
                    collected.layers.push(digest);
                }
            }
        }
        self.sweep_records()?;
        Ok(collected)
    }

    /// Records of layers that are gone.
    fn sweep_records(&self) -> Result<(), StoreError> {
        for path in list(&self.root.join(BLOBS))? {
            let layer = record::read(&path, LAYER_RECORD_BYTES_MAX).as_deref().and_then(parse_layer);
            let is_there = layer.is_some_and(|layer| {
                self.layer_path(&layer.diff_id).exists() || self.unchecked_path(&layer.diff_id).exists()
            });
            if !is_there {
                fs::remove_file(&path).map_err(|error| failed("remove", &path, error))?;
            }
        }
        Ok(())
    }

    /// Bytes that all layers take.
    pub(super) fn measure(&self) -> Result<u64, StoreError> {
        let mut bytes = 0;
        for folder in [LAYERS, UNCHECKED] {
            bytes += list(&self.root.join(folder))?.iter().map(|path| layer_bytes(path)).sum::<u64>();
        }
        Ok(bytes)
    }
}

fn digest_of(path: &Path) -> Option<Digest> {
    Digest::from_hex(path.file_name()?.to_str()?).ok()
}

fn layer_bytes(path: &Path) -> u64 {
    [TAR, INDEX].iter().filter_map(|name| fs::metadata(path.join(name)).ok()).map(|file| taken(&file)).sum()
}
