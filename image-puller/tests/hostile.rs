//! Archives made to harm, through the program itself: each is refused for what it is, in bounded memory, and leaves nothing.
//!
//! Needs root, to start the processes as other users, and `gzip` and `zstd` for the bombs.

mod common;
mod puller;
#[allow(dead_code, reason = "shared with the unit tests, which use more of it")]
#[path = "../src/layer/testing.rs"]
mod testing;
/// Where the builder expects the trait.
mod output {
    pub use nacre_puller::layer::WriteAt;
}

use std::io::Write;
use std::process::{Command, Stdio};

use common::*;
use nacre_protocols::agent_puller::PullFailureKind;
use nacre_protocols::fetcher_indexer::LAYERS_AT_ONCE;
use nacre_protocols::names::INDEXER_MEMORY;
use nacre_puller::digest::Digest;
use puller::{Puller, image};
use testing::{Block, Tar, record};

/// The most that the indexer may ever have resident while it refuses, in KiB.
const RESIDENT_KIB_MAX: u64 = 48 << 10;

const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

struct Case {
    /// What it is, and the words that its error must have.
    what: &'static str,
    words: &'static str,
    kind: PullFailureKind,
    media_type: &'static str,
    blob: Vec<u8>,
}

fn malformed(what: &'static str, words: &'static str, tar: Vec<u8>) -> Case {
    Case { what, words, kind: PullFailureKind::Malformed, media_type: PLAIN, blob: tar }
}

fn beyond(what: &'static str, words: &'static str, tar: Vec<u8>) -> Case {
    Case { kind: PullFailureKind::Limit, ..malformed(what, words, tar) }
}

fn pax(records: &[(&str, &[u8])]) -> Tar {
    Tar::new().pax(records)
}

/// Entries that want out of their layer, or to be where no file can be.
fn escapes() -> Vec<Case> {
    let out = "leads out of the layer";
    vec![
        malformed("a parent of the root", out, Tar::new().file("../etc/passwd", b"x").end()),
        malformed("a detour out", out, Tar::new().file("a/b/../../../c", b"x").end()),
        malformed("out by a pax path", out, pax(&[("path", b"../../x")]).file("x", b"").end()),
        malformed("a link's way out", out, Tar::new().hard_link("a", "../../etc/shadow").end()),
        malformed(
            "a link to what the host has",
            "is not in the layer before it",
            Tar::new().hard_link("a", "/etc/shadow").end(),
        ),
        malformed(
            "a link through a link out",
            "is not in the layer before it",
            Tar::new().symlink("up", "../../../../etc").hard_link("a", "up/shadow").end(),
        ),
        malformed("a link to itself", "is not in the layer before it", Tar::new().hard_link("a", "a").end()),
        malformed("a link to a directory", "is a directory", Tar::new().dir("d").hard_link("a", "d").end()),
        malformed("below a file", "is not a directory", Tar::new().file("f", b"x").file("f/g", b"y").end()),
        malformed(
            "links in a circle",
            "too many symbolic links",
            Tar::new().symlink("a", "b").symlink("b", "a").file("a/f", b"").end(),
        ),
        malformed("a whiteout of nothing", "without the name", Tar::new().file(".wh.", b"").end()),
        malformed("a whiteout of `..`", "without the name", Tar::new().file(".wh...", b"").end()),
        malformed(
            "a device number that does not fit",
            "does not fit into 12:20 bits",
            Tar::new().header(Block::new("d", b'3').at(329, b"0010000\0").at(337, b"0000000\0")).end(),
        ),
    ]
}

/// Headers that lie about themselves.
fn headers() -> Vec<Case> {
    let mut flipped = Tar::new().file("a", b"x").end();
    flipped[3] ^= 1;
    let cut = Tar::new().file("a", &[1; 5000]).end();
    let lone_zeros = Tar::new().file("a", b"x").raw(&[0; 512]).file("b", b"y").end();
    let negative = Block::new("a", b'0').at(124, &[0xff; 12]).sealed();
    let above = Block::new("a", b'0').at(108, b"\x80\0\0\0\xff\xff\xff\xff").sealed();
    vec![
        malformed("a flipped bit", "the checksum does not match", flipped),
        malformed("text", "the checksum does not match", vec![b'x'; 1024]),
        malformed("a header cut short", "inside a header", cut[..300].to_vec()),
        malformed("data cut short", "inside the data of a file", cut[..2000].to_vec()),
        malformed("one block of zeros", "one block of zeros, then more data", lone_zeros),
        malformed("a negative size", "the field size", Tar::new().raw(&negative).end()),
        malformed("an owner that is nobody", "the field uid", Tar::new().raw(&above).end()),
        malformed("a type that is none", "entry type 0x4d", Tar::new().header(Block::new("a", b'M')).end()),
        malformed("a pax header and no more", "without an entry after it", pax(&[("path", b"a")]).end()),
        malformed("a NUL in a name", "the pax record path", pax(&[("path", b"a\0b")]).file("a", b"").end()),
        malformed(
            "a record longer than its header",
            "a pax record that is not",
            Tar::new().entry(Block::new("pax", b'x'), b"99 path=a\n").file("a", b"").end(),
        ),
        malformed(
            "an attribute without a name",
            "extended attribute",
            pax(&[("SCHILY.xattr.user.", b"v")]).file("a", b"").end(),
        ),
        malformed(
            "an ACL that is none",
            "extended attribute",
            pax(&[("SCHILY.xattr.system.posix_acl_access", b"rwx")]).file("a", b"").end(),
        ),
        malformed(
            "a sparse map that goes back",
            "the sparse map is malformed",
            pax(&[
                ("GNU.sparse.size", b"9000"),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.map", b"4096,512,0,512"),
            ])
            .file("a", &[1; 1024])
            .end(),
        ),
        malformed(
            "a sparse map with more than there is",
            "the sparse map is malformed",
            pax(&[
                ("GNU.sparse.size", b"9000"),
                ("GNU.sparse.numblocks", b"1"),
                ("GNU.sparse.map", b"0,8192"),
            ])
            .file("a", &[1; 512])
            .end(),
        ),
    ]
}

/// What is too much, each by the name of its limit.
fn excesses() -> Vec<Case> {
    let long = "n".repeat(256);
    let deep = "d/".repeat(1100);
    let longest = "d/".repeat(2100);
    let value = vec![b'v'; 66_000];
    let many: Vec<u8> =
        (0..300).flat_map(|number| record(&format!("SCHILY.xattr.user.a{number}"), b"v")).collect();
    let fat: Vec<u8> = ["a", "b", "c"]
        .iter()
        .flat_map(|name| record(&format!("SCHILY.xattr.user.{name}"), &value[..60_000]))
        .collect();
    let extensions = (0..10).fold(Tar::new(), |tar, _| tar.pax(&[("comment", b"again")]));
    let walk = (0..200).fold(Tar::new().symlink("l0", "."), |tar, number| {
        tar.symlink(&format!("l{}", number + 1), &format!("l{number}/l{number}"))
    });
    let huge = Block::new("a", b'0').at(124, b"\x80\0\0\0\0\0\x01\0\0\0\0\0").sealed();
    vec![
        beyond("a name of 256 bytes", "a path component is over the limit of 255 bytes", {
            pax(&[("path", long.as_bytes())]).file("a", b"").end()
        }),
        beyond("too deep", "the depth is over the limit of 1024 directories", {
            pax(&[("path", deep.as_bytes())]).dir("a").end()
        }),
        beyond("too long a path", "the path is over the limit of 4095 bytes", {
            pax(&[("path", longest.as_bytes())]).dir("a").end()
        }),
        beyond("too long a target", "the link target is over the limit of 4095 bytes", {
            pax(&[("linkpath", &[b't'; 5000])]).symlink("a", "b").end()
        }),
        beyond("too large an attribute", "an extended attribute's value is over the limit of 65535 bytes", {
            pax(&[("SCHILY.xattr.user.a", &value)]).file("a", b"").end()
        }),
        beyond("too many attributes", "the number of attributes is over the limit of 255", {
            Tar::new().entry(Block::new("pax", b'x'), &many).file("a", b"").end()
        }),
        beyond("too much of attributes", "the size of all extended attributes is over the limit", {
            Tar::new().entry(Block::new("pax", b'x'), &fat).file("a", b"").end()
        }),
        beyond("a pax header of 2 MB", "1048576 bytes for a pax header", {
            Tar::new().entry(Block::new("pax", b'x'), &vec![b' '; 2 << 20]).file("a", b"").end()
        }),
        beyond("a GNU name of 2 MB", "1048576 bytes for a GNU long name", {
            Tar::new().entry(Block::new("L", b'L').gnu(), &vec![b'n'; 2 << 20]).file("a", b"").end()
        }),
        beyond("headers without an end", "8 headers for extension headers in a row", {
            extensions.file("a", b"").end()
        }),
        beyond("a file of a terabyte and more", "the size is over the limit", Tar::new().raw(&huge).end()),
        malformed("links that double at each step", "too many symbolic links", {
            walk.file("l200/f", b"").end()
        }),
    ]
}

/// `zeros` as one file, compressed by a program.
fn bomb(program: &str, words: &[&str], zeros: usize) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut input = child.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || {
        input.write_all(&Block::new("zeros", b'0').size(zeros as u64).sealed()).unwrap();
        let piece = vec![0; 1 << 20];
        (0..zeros / piece.len()).for_each(|_| input.write_all(&piece).unwrap());
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    output.stdout
}

/// Streams that become much more than they are, or are not what they say.
fn streams() -> Vec<Case> {
    let tar = Tar::new().file("a", &[7; 3000]).end();
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let compressed = |what, words, media_type, blob| Case { media_type, ..malformed(what, words, blob) };
    let mut flipped = gzip(&tar);
    let trailer = flipped.len() - 6;
    flipped[trailer] ^= 1;
    let ratio = "400 bytes for each compressed one for compression";
    // A frame header that asks for a window of 2^41 bytes (RFC 8878, 3.1.1.1.2).
    let wide = [&0xfd2f_b528u32.to_le_bytes()[..], &[0x00, 0xf8, 0x01, 0, 0]].concat();
    vec![
        compressed("gzip with text behind", "the gzip data", GZIP, [gzip(&tar), b"text".to_vec()].concat()),
        compressed("gzip cut short", "the gzip data", GZIP, gzip(&tar)[..40].to_vec()),
        compressed("gzip with a wrong sum", "the gzip data", GZIP, flipped),
        compressed("zstd with text behind", "the zstd data", ZSTD, [zstd(&tar), b"text".to_vec()].concat()),
        compressed("zstd cut short", "the zstd data", ZSTD, zstd(&tar)[..20].to_vec()),
        compressed("zstd that says gzip", "the gzip data", GZIP, zstd(&tar)),
        compressed("gzip that says nothing", "inside a header", PLAIN, gzip(&tar)),
        compressed("gzip in gzip", "inside a header", GZIP, gzip(&gzip(&tar))),
        Case {
            kind: PullFailureKind::Limit,
            ..compressed("a huge window", "window of a zstd frame", ZSTD, wide)
        },
        Case {
            kind: PullFailureKind::Limit,
            ..compressed("a gzip bomb", ratio, GZIP, bomb("gzip", &["-6"], 300 << 20))
        },
        Case {
            kind: PullFailureKind::Limit,
            ..compressed("a zstd bomb", ratio, ZSTD, bomb("zstd", &["-q", "-3"], 300 << 20))
        },
    ]
}

#[test]
fn hostile_archives_are_refused_by_name_and_leave_nothing() {
    let Some(puller) = Puller::start() else { return };
    let cases = [escapes(), headers(), excesses(), streams()].into_iter().flatten();
    // One port, of one registry: the fetcher is let out to few.
    let served = std::sync::Arc::new(std::sync::Mutex::new(TestImage::new(&[])));
    let current = served.clone();
    let server = FakeServer::start(move |request| current.lock().unwrap().answer(request));
    for (case, id) in cases.zip(1..) {
        *served.lock().unwrap() = image(case.media_type, &case.blob, Digest::of(b"never reached"));
        let Err((kind, message)) = puller.pull(id, request(server.address)) else {
            panic!("{}: it was taken", case.what);
        };
        assert!(message.contains(case.words), "{}: {message}", case.what);
        assert_eq!(kind, case.kind, "{}: {message}", case.what);
        assert!(message.contains("layer 1 of 1"), "{}: {message}", case.what);
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", puller.indexer.pid)).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
    assert!(peak < RESIDENT_KIB_MAX, "the indexer had {peak} KiB");
    for folder in ["tmp", "layers", "blobs"] {
        let left = std::fs::read_dir(puller.store().join(folder)).unwrap().count();
        assert_eq!(left, 0, "{folder}");
    }
    puller.end();
}

/// A layer in gzip of so many empty files in its root, and its diff_id.
fn many(count: usize, name_length: usize) -> (Vec<u8>, Digest) {
    let plain = Block::new("", b'0').sealed();
    let sum: u32 = plain.iter().map(|byte| u32::from(*byte)).sum::<u32>()
        - plain[148..156].iter().map(|byte| u32::from(*byte)).sum::<u32>()
        + 8 * u32::from(b' ');
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = Vec::new();
    for number in 0..count {
        let mut block = plain;
        let name = format!("{number:06x}{}", "n".repeat(name_length - 6));
        block[..name.len()].copy_from_slice(name.as_bytes());
        let sum = sum + name.bytes().map(u32::from).sum::<u32>();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend(block);
    }
    tar.extend([0; 1024]);
    encoder.write_all(&tar).unwrap();
    (encoder.finish().unwrap(), Digest::of(&tar))
}

#[test]
fn layers_at_their_limits_together_fit_into_the_memory_of_their_process() {
    // As many entries as there may be, and as much of names as there is room for.
    for (count, name_length) in [(499_000, 7), (250_000, 60)] {
        let Some(puller) = Puller::start() else { return };
        let peak = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", puller.indexer.pid)).unwrap();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            peak.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
        };
        let (blob, diff_id) = many(count, name_length);
        let image = image(GZIP, &blob, diff_id);
        let server = FakeServer::start(move |request| image.answer(request));
        let idle = peak();
        puller.pull(1, request(server.address)).unwrap();
        let each = peak() - idle;
        assert!(each > 32 << 20, "{count} entries took {each} bytes only");
        let together = idle + LAYERS_AT_ONCE as u64 * each;
        assert!(together < INDEXER_MEMORY, "{count} entries: {each} bytes each, {together} together");
        puller.end();
    }
}
