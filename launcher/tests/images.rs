//! An agent that lies of images, in a sandbox that was booted for some: the real launcher, with plans as such an agent sends them.
//! See `harness` for what that needs.

mod harness;

use harness::*;
use nacre_protocols::init_launcher::*;
use nacre_protocols::names::{LAYERS_DIR, ROOTS, STORE_DIR, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

const BASE: Sha256 = Sha256([0xaa; 32]);
const TOP: Sha256 = Sha256([0xbb; 32]);
const OTHER: Sha256 = Sha256([0xcc; 32]);

fn roots() -> PathBuf {
    Path::new(STORE_DIR).join(ROOTS)
}

/// Leaves word of an image, as the fetcher does.
fn take(manifest: u8, layers: &[Sha256]) {
    fs::create_dir_all(roots()).unwrap();
    let bytes: Vec<u8> = layers.iter().flat_map(|layer| layer.0).collect();
    fs::write(roots().join(Sha256([manifest; 32]).to_string()), bytes).unwrap();
}

/// A sandbox that was booted for some images, with three layers of which each could be a root.
fn guest() -> Option<Guest> {
    let mut guest = Guest::new()?;
    guest.kinds &= !storage::OTHER_ROOTS;
    for layer in [BASE, TOP, OTHER] {
        make_rootfs(&Path::new(LAYERS_DIR).join(layer.to_string()));
    }
    Some(guest)
}

fn of(rootfs: Rootfs) -> ContainerPlan {
    ContainerPlan { rootfs, ..container("echo ran") }
}

#[test]
fn only_an_image_that_was_taken_becomes_a_root() {
    let Some(guest) = guest() else { return };
    let refused = |rootfs: Rootfs| {
        let failure = guest.refuse(of(rootfs.clone()));
        assert_eq!(failure.stage, LaunchStage::Plan, "{rootfs:?}: {failure:?}");
        failure.message
    };
    let message = refused(Rootfs::Layers(vec![BASE, TOP]));
    assert!(message.contains("no image which the sandbox was booted for"), "before any pull: {message}");
    take(1, &[BASE, TOP]);
    take(2, &[OTHER]);
    for layers in [
        vec![BASE],
        vec![TOP],
        vec![TOP, BASE],
        vec![BASE, TOP, TOP],
        vec![BASE, TOP, OTHER],
        vec![OTHER, BASE, TOP],
        vec![Sha256([0xdd; 32])],
    ] {
        let message = refused(Rootfs::Layers(layers));
        assert!(message.contains("no image which the sandbox was booted for"), "{message}");
    }
    let message = refused(Rootfs::Guest(ROOTFS.to_owned()));
    assert!(message.contains("a root that is no image"), "{message}");
    for (id, layers) in [("one", vec![BASE, TOP]), ("two", vec![OTHER])] {
        let plan = ContainerPlan { id: id.to_owned(), ..of(Rootfs::Layers(layers)) };
        assert_eq!(guest.run(plan), ("ran\n".to_owned(), 0));
    }
}

#[test]
fn what_is_no_word_of_the_fetchers_is_none() {
    let Some(guest) = guest() else { return };
    fs::create_dir_all(roots()).unwrap();
    fs::write(roots().join("latest"), BASE.0).unwrap();
    take(1, &[]);
    let failure = guest.refuse(of(Rootfs::Layers(vec![BASE])));
    assert!(failure.message.contains("no image"), "{failure:?}");
    // A link, which the fetcher does not make, leads nowhere.
    std::os::unix::fs::symlink("latest", roots().join(Sha256([2; 32]).to_string())).unwrap();
    let failure = guest.refuse(of(Rootfs::Layers(vec![BASE])));
    assert!(failure.message.contains("looking for the images"), "{failure:?}");
}
