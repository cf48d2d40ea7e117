//! Roots in a sandbox whose manifest names the images that it may run. The agent says which layers make a container's root; the
//! fetcher, which alone knows images and was told by init which it may take, has left word of the layers of each. One that lies of
//! an image gets no container: neither of other layers, nor of some of these, nor of these in another order.

use crate::error::{Context, LaunchError, Result};
use crate::tree::{Tree, is_missing, open_child};
use nacre_protocols::init_launcher::{LaunchStage, Rootfs};
use nacre_protocols::names::{ROOTS, STORE_DIR, Sha256};
use rustix::fs::{Dir, OFlags};
use std::fs::File;
use std::io::{self, Read};

const STAGE: LaunchStage = LaunchStage::Plan;

/// Refuses a root that is not the layers of an image which the fetcher took.
pub fn require(rootfs: &Rootfs) -> Result<()> {
    let Rootfs::Layers(layers) = rootfs else {
        return Err(LaunchError::refused(STAGE, "a root that is no image"));
    };
    let found = is_there(layers).at(STAGE, || "looking for the images of the sandbox".to_owned())?;
    if found {
        return Ok(());
    }
    let count = layers.len();
    let message = format!("a root of {count} layers that are no image which the sandbox was booted for");
    Err(LaunchError::refused(STAGE, message))
}

fn is_there(layers: &[Sha256]) -> io::Result<bool> {
    let wanted: Vec<u8> = layers.iter().flat_map(|layer| layer.0).collect();
    let directory = OFlags::RDONLY | OFlags::DIRECTORY;
    let listed = match Tree::guest(STORE_DIR).and_then(|store| store.open(ROOTS, directory)) {
        // Nothing was pulled yet.
        Err(error) if is_missing(&error) => return Ok(false),
        listed => listed?,
    };
    for entry in Dir::read_from(&listed)? {
        let entry = entry?;
        // What is no digest is no word of the fetcher's.
        let name = entry.file_name().to_str().ok().filter(|name| Sha256::parse(name).is_some());
        let Some(name) = name else { continue };
        let file = File::from(open_child(&listed, name, OFlags::RDONLY | OFlags::NONBLOCK)?);
        let mut bytes = Vec::with_capacity(wanted.len());
        file.take(wanted.len() as u64 + 1).read_to_end(&mut bytes)?;
        if bytes == wanted {
            return Ok(true);
        }
    }
    Ok(false)
}
