//! What is written beside the layers. On a kept disk it was written by an earlier boot, or by anybody: every record is parsed
//! as input, and one that is not understood is none.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use nacre_protocols::agent_puller::{FRAME_MAX, LAYERS_MAX, PulledImage};
use nacre_protocols::frame;
use serde::{Deserialize, Serialize};

use super::StoredLayer;
use crate::digest::Digest;

/// Longest record of a layer in bytes; a real one has 64 digits and three numbers.
pub const LAYER_RECORD_BYTES_MAX: usize = 160;
/// Longest record of an image in bytes: what the agent can be told of it, too.
pub const IMAGE_RECORD_BYTES_MAX: usize = FRAME_MAX / 2;
/// Longest name of a boot.
pub const BOOT_BYTES_MAX: usize = 64;
/// First bytes of an image's record; the last goes up with every change of its form.
const IMAGE_MAGIC: &[u8] = b"nacre image 1\n";

/// What a reference was when it was pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    pub image: PulledImage,
    /// Stays until somebody says otherwise, used or not.
    pub keep: bool,
}

impl ImageRecord {
    /// `None` if it is too long.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let value = frame::encode(self, IMAGE_RECORD_BYTES_MAX - IMAGE_MAGIC.len()).ok()?;
        Some([IMAGE_MAGIC, &value].concat())
    }
}

pub fn parse_image(bytes: &[u8]) -> Option<ImageRecord> {
    let value = bytes.strip_prefix(IMAGE_MAGIC)?;
    let record: ImageRecord = frame::decode(value, IMAGE_RECORD_BYTES_MAX).ok()?;
    (record.image.layers.len() <= LAYERS_MAX).then_some(record)
}

pub fn layer_line(layer: &StoredLayer) -> String {
    format!("{} {} {}\n", layer.diff_id.hex(), layer.tar, layer.index)
}

/// `<64 digits> <tar bytes> <index bytes>` and a newline.
pub fn parse_layer(bytes: &[u8]) -> Option<StoredLayer> {
    if bytes.len() > LAYER_RECORD_BYTES_MAX {
        return None;
    }
    let mut words = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?.split(' ');
    let diff_id = Digest::from_hex(words.next()?).ok()?;
    let layer = StoredLayer { diff_id, tar: words.next()?.parse().ok()?, index: words.next()?.parse().ok()? };
    words.next().is_none().then_some(layer)
}

/// A record's bytes; `None` if it is not there, no plain file, or longer than `max`.
pub fn read(path: &Path, max: usize) -> Option<Vec<u8>> {
    if !std::fs::symlink_metadata(path).ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(max as u64 + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() <= max).then_some(bytes)
}
