//! Whenever one of the processes is killed, what it leaves is whole or swept: the next puller takes it up, and its pull
//! succeeds.
//!
//! Needs root, as the processes do, and `strace` to kill at chosen system calls.

mod common;
mod puller;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use common::*;
use nacre_protocols::agent_puller::PullFailureKind;
use nacre_puller::digest::Digest;
use nacre_puller::layer::{Compression, Limits, index_layer};
use puller::{Folder, Puller, Start, archives};

/// One boot of a kept disk.
const BOOT: &str = "boot=one";
/// Calls of the fetcher that change the store, and of the indexer that change its files.
const FETCHER_CALLS: &[&str] = &["mkdir", "rename", "unlink", "rmdir", "fsync", "openat"];
const INDEXER_CALLS: &[&str] = &["pwrite64", "ftruncate", "sendmsg"];
/// Most calls of one kind and thread at which a pull is killed.
const CALLS_MAX: u32 = 10;

/// Two layers that share nothing, and are more than one piece each.
fn image() -> (TestImage, Vec<Digest>) {
    let work = tempfile::tempdir().unwrap();
    let (first, _) = archives(work.path());
    let mut second = first.clone();
    // The second file's header is not touched: a byte of the content of the numbers.
    let at = second.windows(7).position(|bytes| bytes == b"\n77777\n").unwrap();
    second[at + 1] = b'8';
    let diff_ids = vec![Digest::of(&first), Digest::of(&second)];
    (TestImage::with_diff_ids(&[&first, &second], &diff_ids), diff_ids)
}

/// Every layer that counts as there is what its name says, tar and index.
fn check(store: &Path) -> BTreeSet<String> {
    let layers = fs::read_dir(store.join("layers")).unwrap().map(|entry| entry.unwrap().path());
    let layers = layers.map(|layer| {
        let name = layer.file_name().unwrap().to_str().unwrap().to_owned();
        let (tar, index) = (tempfile::tempfile().unwrap(), tempfile::NamedTempFile::new().unwrap());
        let found = fs::read(layer.join("layer.tar")).unwrap();
        let limits = Limits::default();
        let again = index_layer(
            std::io::Cursor::new(found.clone()),
            Compression::Plain,
            &tar,
            index.as_file(),
            &limits,
            |_| {},
        )
        .unwrap();
        assert_eq!(Digest::from_bytes(again.diff_id).hex(), name);
        assert_eq!(fs::read(index.path()).unwrap(), fs::read(layer.join("index.erofs")).unwrap(), "{name}");
        name
    });
    let layers: BTreeSet<String> = layers.collect();
    for record in fs::read_dir(store.join("blobs")).unwrap() {
        let record = fs::read(record.unwrap().path()).unwrap();
        let layer = nacre_puller::store::parse_layer(&record).expect("half a record");
        assert!(layers.contains(&layer.diff_id.hex()), "a record came before its layer");
    }
    layers
}

/// A second puller in the same directory: it fetches what is missing and nothing else, and leaves nothing half done.
fn recover(folder: Folder, image: &TestImage, diff_ids: &[Digest], what: &str) {
    check(&folder.path().join("store"));
    let records = fs::read_dir(folder.path().join("store/blobs")).unwrap().count();
    let start = Start { words: vec![BOOT.into()], within: Some(folder), ..Start::default() };
    let puller = Puller::start_with(|_| (), &start).unwrap();
    let answering = image.clone();
    let server = FakeServer::start(move |request| answering.answer(request));
    let pulled = puller.pull(1, request(server.address)).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    assert_eq!(pulled.layers.len(), diff_ids.len(), "{what}");
    assert_eq!(check(&puller.store()), diff_ids.iter().map(Digest::hex).collect(), "{what}");
    // The config is a blob, too. Only a layer whose record did not come is fetched again.
    assert_eq!(server.count("blobs"), 1 + diff_ids.len() - records, "{what}");
    assert_eq!(fs::read_dir(puller.store().join("tmp")).unwrap().count(), 0, "{what}");
    puller.end();
}

#[test]
fn killed_at_every_call_that_changes_the_store_it_leaves_what_the_next_one_takes_up() {
    if !Path::new("/usr/bin/strace").exists() {
        assert!(std::env::var_os("CI").is_none(), "killing at a system call needs strace");
        return eprintln!("skipped: killing at a system call needs strace");
    }
    let (image, diff_ids) = image();
    let mut killed = 0;
    for (process, calls) in [("fetcher", FETCHER_CALLS), ("index", INDEXER_CALLS)] {
        for call in calls {
            for nth in 1..=CALLS_MAX {
                let what = format!("{process} at {call} {nth}");
                let traced = vec!["-e".into(), format!("inject={call}:signal=KILL:when={nth}")];
                let start =
                    Start { words: vec![BOOT.into()], traced: Some((process, traced)), ..Start::default() };
                let Some(puller) = Puller::start_with(|_| (), &start) else { return };
                let answering = image.clone();
                let server = FakeServer::start(move |request| answering.answer(request));
                let outcome = puller.try_pull(0, request(server.address));
                let folder = puller.folder();
                puller.wait();
                match outcome {
                    // It makes fewer calls of this kind: there is no later one to be killed at.
                    Some(Ok(_)) => break,
                    None => killed += 1,
                    Some(Err(error)) => panic!("{what}: {error:?}"),
                }
                // Before the store was made, there is nothing to look at.
                if folder.path().join("store/blobs").is_dir() && folder.path().join("store/layers").is_dir() {
                    recover(folder, &image, &diff_ids, &what);
                }
            }
        }
    }
    assert!(killed > 30, "it was killed {killed} times only");
}

#[test]
fn killed_at_any_time_it_leaves_what_the_next_one_takes_up() {
    let (image, diff_ids) = image();
    let mut folder: Option<Folder> = None;
    for round in 0..40u64 {
        let start = Start { words: vec![BOOT.into()], within: folder.clone(), ..Start::default() };
        let Some(puller) = Puller::start_with(|_| (), &start) else { return };
        folder = Some(puller.folder());
        let answering = image.clone();
        let server = FakeServer::start(move |request| answering.answer(request));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Spread over the length of a pull, and beyond.
                std::thread::sleep(Duration::from_micros(500 + (round * 7919) % 60_000));
                puller.kill(if round % 2 == 0 { &puller.fetcher } else { &puller.indexer });
            });
            if let Some(Err((kind, message))) = puller.try_pull(0, request(server.address)) {
                panic!("{kind:?}: {message}");
            }
        });
        puller.wait();
        let store = folder.as_ref().unwrap().path().join("store");
        if store.join("blobs").is_dir() && store.join("layers").is_dir() {
            check(&store);
        }
        if round % 8 == 7 {
            recover(folder.take().unwrap(), &image, &diff_ids, &format!("round {round}"));
        }
    }
}

#[test]
fn layers_of_an_earlier_boot_are_checked_again_before_they_count() {
    let (image, diff_ids) = image();
    let answering = image.clone();
    let server = FakeServer::start(move |request| answering.answer(request));
    let Some(puller) = Puller::start_with(|_| (), &Start { words: vec![BOOT.into()], ..Start::default() })
    else {
        return;
    };
    puller.pull(1, request(server.address)).unwrap();
    let folder = puller.folder();
    puller.end();
    assert_eq!(server.count("blobs"), 3);
    let store = folder.path().join("store");
    // Not by this boot, one of them damaged in one byte, and the other's index another than it was.
    let name = |at: usize| diff_ids[at].hex();
    let damage = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    damage(&store.join("layers").join(name(0)).join("layer.tar"));
    damage(&store.join("layers").join(name(1)).join("index.erofs"));
    let start = Start { words: vec!["boot=two".into()], within: Some(folder.clone()), ..Start::default() };
    let puller = Puller::start_with(|_| (), &start).unwrap();
    let pulled = puller.pull(1, request(server.address)).unwrap();
    assert_eq!(pulled.layers.len(), 2);
    assert_eq!(check(&store), diff_ids.iter().map(Digest::hex).collect());
    // The config again, and the one layer whose tar was damaged.
    assert_eq!(server.count("blobs"), 5);
    assert_eq!(fs::read_dir(store.join("unchecked")).unwrap().count(), 0);
    // In the same boot they count.
    puller.end();
    let puller = Puller::start_with(|_| (), &start).unwrap();
    puller.pull(1, request(server.address)).unwrap();
    assert_eq!(server.count("blobs"), 6);
    puller.end();
}

#[test]
fn the_quota_is_an_error_of_its_own_and_holds() {
    let (image, _) = image();
    for quota in [1000, 1_000_000, 2_000_000] {
        let answering = image.clone();
        let server = FakeServer::start(move |request| answering.answer(request));
        let start = Start { words: vec![format!("quota={quota}")], ..Start::default() };
        let Some(puller) = Puller::start_with(|_| (), &start) else { return };
        let (kind, message) = puller.pull(1, request(server.address)).unwrap_err();
        assert_eq!(kind, PullFailureKind::Quota, "{message}");
        assert!(message.contains(&format!("quota of {quota} bytes")), "{message}");
        let layers = fs::read_dir(puller.store().join("layers")).unwrap();
        let taken = |path: std::path::PathBuf| {
            use std::os::unix::fs::MetadataExt;
            ["layer.tar", "index.erofs"]
                .map(|name| File::open(path.join(name)).unwrap().metadata().unwrap().blocks() * 512)
                .iter()
                .sum::<u64>()
        };
        let sum: u64 = layers.map(|layer| taken(layer.unwrap().path())).sum();
        assert!(sum <= quota, "{sum} bytes");
        assert_eq!(fs::read_dir(puller.store().join("tmp")).unwrap().count(), 0);
        puller.end();
    }
}
