//! The store by itself, in a directory of the test's own.

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

fn open(path: &Path) -> Result<Store, StoreError> {
    Store::open(path, &Options::default())
}

fn count(path: &Path) -> usize {
    fs::read_dir(path).unwrap().count()
}

#[test]
fn a_layer_is_found_through_its_record_alone() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    assert_eq!(store.find(&BLOB, &DIFF_ID), None);
    let layer = lay_down(&store, BLOB).unwrap();
    assert_eq!(layer, StoredLayer { diff_id: DIFF_ID, tar: 3, index: 5 });
    assert_eq!(store.find(&BLOB, &DIFF_ID), Some(layer));
    assert_eq!(store.find(&OTHER_BLOB, &DIFF_ID), None, "another blob was never seen to become it");
    assert_eq!(store.find(&BLOB, &BLOB), None, "the blob is not another layer");
    lay_down(&store, OTHER_BLOB).unwrap();
    assert_eq!(store.find(&OTHER_BLOB, &DIFF_ID), Some(layer));
    assert_eq!((count(&directory.path().join("layers")), count(&directory.path().join("tmp"))), (1, 0));
    let again = open(directory.path()).unwrap();
    assert_eq!(again.find(&BLOB, &DIFF_ID), Some(layer));
    fs::write(directory.path().join("layers").join(DIFF_ID.hex()).join(TAR), "cut").unwrap();
    assert_eq!(again.find(&BLOB, &DIFF_ID), Some(layer), "same size");
    fs::write(directory.path().join("layers").join(DIFF_ID.hex()).join(TAR), "longer").unwrap();
    assert_eq!(again.find(&BLOB, &DIFF_ID), None);
}

#[test]
fn what_is_not_committed_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let claim = store.claim(DIFF_ID, &Cancel::default()).unwrap();
    let pending = claim.begin().unwrap();
    pending.create_tar().unwrap();
    drop(pending);
    let pending = claim.begin().unwrap();
    pending.create_tar().unwrap();
    pending.create_index().unwrap();
    assert!(pending.commit(&BLOB, 1, 0).is_err(), "committed a tar of another size");
    for name in [LAYERS, BLOBS, TEMPORARY] {
        assert_eq!(count(&directory.path().join(name)), 0, "{name}");
    }
}

#[test]
fn a_killed_pulls_leavings_are_swept_at_start() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let claim = store.claim(DIFF_ID, &Cancel::default()).unwrap();
    let pending = claim.begin().unwrap();
    pending.create_tar().unwrap();
    std::mem::forget(pending);
    fs::write(store.temporary(), "half a record").unwrap();
    assert_eq!(count(&directory.path().join("tmp")), 2);
    open(directory.path()).unwrap();
    assert_eq!(count(&directory.path().join("tmp")), 0);
}

#[test]
fn a_layer_is_fetched_by_one_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
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
        assert_eq!(parse_layer(text.as_bytes()), expected, "{text}");
    }
}

fn image(reference: &str, manifest: u8, layers: &[Digest], keep: bool) -> ImageRecord {
    use nacre_protocols::agent_puller::{PulledImage, PulledLayer, Verdict};
    use nacre_protocols::names::Sha256;
    let layer = |digest: &Digest| PulledLayer { diff_id: Sha256(*digest.as_bytes()), compressed: 1, tar: 3 };
    let image = PulledImage {
        reference: reference.into(),
        manifest: Sha256([manifest; 32]),
        root: Sha256([manifest; 32]),
        config: Sha256([0; 32]),
        layers: layers.iter().map(layer).collect(),
        process: Default::default(),
        annotations: Vec::new(),
        verdict: Verdict::Unjudged,
    };
    ImageRecord { image, keep }
}

fn lay_down_as(store: &Store, blob: Digest, diff_id: Digest) {
    let claim = store.claim(diff_id, &Cancel::default()).unwrap();
    let pending = claim.begin().unwrap();
    pending.create_tar().unwrap().write_all(b"tar").unwrap();
    pending.create_index().unwrap().write_all(b"index").unwrap();
    pending.commit(&blob, 3, 5).unwrap();
}

#[test]
fn what_no_image_has_and_nobody_uses_is_collected() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let digest = |byte| Digest::from_bytes([byte; 32]);
    let [shared, kept, used, unused, in_use, pulled] = [11, 12, 13, 14, 15, 16].map(digest);
    for (blob, layer) in (21..).zip([shared, kept, used, unused, in_use, pulled]) {
        lay_down_as(&store, digest(blob), layer);
    }
    for record in [
        image("kept", 1, &[shared, kept], true),
        image("used", 2, &[shared, used], false),
        image("unused", 3, &[shared, unused], false),
        // Used later by somebody who does not ask for it to be kept.
        image("kept", 1, &[shared, kept], false),
    ] {
        store.write_image(&record).unwrap();
    }
    let before = store.contents().unwrap();
    assert_eq!((before.images.len(), before.layers), (3, 6));
    assert!(before.used > 0 && before.used == store.measure().unwrap());
    let pin = store.pin(vec![pulled]);
    let needed = Needed { used: [digest(2)].into(), used_layers: [in_use].into(), ..Needed::default() };
    // Named as what goes, it takes nobody else along.
    store.write_image(&image("also unused", 4, &[shared], false)).unwrap();
    let first = Needed { forget: vec!["also unused".into()], only: true, ..needed };
    let collected = store.collect(&first).unwrap();
    assert_eq!((collected.images, collected.layers), (vec!["also unused".to_owned()], vec![]));
    let needed = Needed { forget: vec![], only: false, ..first };
    let collected = store.collect(&needed).unwrap();
    assert_eq!((collected.images, collected.layers), (vec!["unused".to_owned()], vec![unused]));
    assert!(collected.bytes > 0);
    assert_eq!(store.find(&digest(24), &unused), None);
    assert_eq!(count(&directory.path().join(BLOBS)), 5);
    drop(pin);
    // Forgotten, it goes with the layers that were its own; the other's stay.
    let collected = store
        .collect(&Needed { used_layers: HashSet::new(), forget: vec!["kept".into()], ..needed })
        .unwrap();
    assert_eq!(collected.images, ["kept"]);
    assert_eq!(collected.layers.into_iter().collect::<HashSet<_>>(), [kept, in_use, pulled].into());
    assert!(store.find(&digest(21), &shared).is_some() && store.find(&digest(23), &used).is_some());
    assert_eq!(store.contents().unwrap().used, store.measure().unwrap());
    // What is no record is no image, and goes.
    fs::write(directory.path().join(IMAGES).join("odd"), "nacre image 1\nx").unwrap();
    assert_eq!(store.contents().unwrap().images.len(), 1);
    store.collect(&Needed::default()).unwrap();
    for name in [LAYERS, BLOBS, IMAGES, TEMPORARY] {
        assert_eq!(count(&directory.path().join(name)), 0, "{name}");
    }
}

#[test]
fn in_a_new_boot_no_layer_counts_until_it_was_checked() {
    let directory = tempfile::tempdir().unwrap();
    let boot = |name: &str| {
        Store::open(directory.path(), &Options { boot: Some(name.into()), quota: None }).unwrap()
    };
    lay_down(&boot("one"), BLOB).unwrap();
    assert!(boot("one").find(&BLOB, &DIFF_ID).is_some());
    let store = boot("two");
    assert_eq!(store.find(&BLOB, &DIFF_ID), None);
    let (_, found) = store.find_unchecked(&BLOB, &DIFF_ID).unwrap();
    assert_eq!(found.tar, 3);
    assert!(store.find_unchecked(&OTHER_BLOB, &DIFF_ID).is_none());
    // As one that was checked, and one that was damaged.
    let claim = store.claim(DIFF_ID, &Cancel::default()).unwrap();
    let pending = claim.begin().unwrap();
    pending.create_index().unwrap().write_all(b"index").unwrap();
    pending.take_unchecked().unwrap();
    pending.commit(&BLOB, 3, 5).unwrap();
    assert!(store.find(&BLOB, &DIFF_ID).is_some() && store.find_unchecked(&BLOB, &DIFF_ID).is_none());
    drop(claim);
    let store = boot("three");
    store.drop_unchecked(&DIFF_ID).unwrap();
    assert!(store.find_unchecked(&BLOB, &DIFF_ID).is_none());
    assert_eq!(count(&directory.path().join(TEMPORARY)), 0);
}

#[test]
fn a_record_of_an_image_is_what_was_written_or_none() {
    let record = image("registry/name:tag", 1, &[DIFF_ID], true);
    let bytes = record.encode().unwrap();
    assert_eq!(parse_image(&bytes), Some(record));
    for cut in 0..bytes.len() {
        assert_eq!(parse_image(&bytes[..cut]), None, "{cut} bytes");
    }
    let many = image("x", 1, &[DIFF_ID; 129], false).encode().unwrap();
    assert_eq!(parse_image(&many), None);
}

#[test]
fn a_root_is_said_as_the_digests_of_its_layers() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    store.write_root(&BLOB, &[DIFF_ID, OTHER_BLOB]).unwrap();
    let file = directory.path().join(ROOTS).join(BLOB.hex());
    assert_eq!(fs::read(file).unwrap(), [[3; 32], [2; 32]].concat());
    assert_eq!(count(&directory.path().join(TEMPORARY)), 0);
}
