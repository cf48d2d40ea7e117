use std::io::{self, Write};

use flate2::Compression as Level;
use flate2::write::GzEncoder;

use super::super::testing::{MemFile, Tar};
use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn tar() -> Vec<u8> {
    let data: Vec<u8> = (0..700_000u32).map(|at| (at.wrapping_mul(at) >> 7) as u8).collect();
    Tar::new().dir("d").file("d/f", &data).symlink("d/l", "f").end()
}

struct Indexed {
    layer: IndexedLayer,
    tar: Vec<u8>,
    index: Vec<u8>,
}

fn index(compressed: &[u8], compression: Compression, limits: &Limits) -> Result<Indexed, LayerError> {
    let (tar, index) = (MemFile::default(), MemFile::default());
    let layer = index_into(compressed, compression, &tar, &index, limits, |_| {})?;
    Ok(Indexed { layer, tar: tar.into_bytes(), index: index.into_bytes() })
}

#[test]
fn every_compression_gives_the_same_layer() {
    let tar = tar();
    let (head, tail) = tar.split_at(123_456);
    let skippable = [&0x184d_2a50u32.to_le_bytes()[..], &5u32.to_le_bytes(), b"hello"].concat();
    let cases: [(&str, Compression, Vec<u8>); 6] = [
        ("plain", Compression::Plain, tar.clone()),
        ("gzip", Compression::Gzip, gzip(&tar)),
        ("two members", Compression::Gzip, [gzip(head), gzip(tail)].concat()),
        ("zstd", Compression::Zstd, zstd(&tar)),
        ("two frames", Compression::Zstd, [zstd(head), zstd(tail)].concat()),
        ("a skippable frame", Compression::Zstd, [skippable.clone(), zstd(&tar), skippable].concat()),
    ];
    let expected: [u8; 32] = Sha256::digest(&tar).into();
    let mut indexes = Vec::new();
    for (what, compression, bytes) in cases {
        let got =
            index(&bytes, compression, &Limits::default()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(got.layer.diff_id, expected, "{what}");
        assert_eq!(got.layer.tar_bytes, tar.len() as u64, "{what}");
        assert_eq!(got.layer.entries, 3, "{what}");
        assert_eq!(got.layer.index_bytes, got.index.len() as u64, "{what}");
        assert!(got.tar == tar, "{what}");
        indexes.push(got.index);
    }
    assert!(indexes.windows(2).all(|pair| pair[0] == pair[1]), "the same tar gives the same index");
}

#[test]
fn bytes_after_the_end_of_the_archive_count() {
    let long = [tar(), b"trailing".to_vec(), vec![0; 300_000], b"more".to_vec()].concat();
    let got = index(&gzip(&long), Compression::Gzip, &Limits::default()).unwrap();
    assert_eq!(got.layer.diff_id, <[u8; 32]>::from(Sha256::digest(&long)));
    assert_eq!(got.layer.tar_bytes, long.len() as u64);
    assert_eq!(&got.tar[..long.len()], long);
    assert_eq!(got.tar.len() % 512, 0, "the file ends with a whole block");
}

#[test]
fn damaged_and_cut_streams_are_refused() {
    let tar = tar();
    for (compression, bytes) in [(Compression::Gzip, gzip(&tar)), (Compression::Zstd, zstd(&tar))] {
        let cut = &bytes[..bytes.len() / 2];
        let mut damaged = bytes.clone();
        damaged[bytes.len() / 2] ^= 0x10;
        let garbage = [&bytes[..], b"garbage"].concat();
        for (what, bytes) in
            [("cut", cut), ("damaged", &damaged), ("garbage behind", &garbage), ("other", &tar)]
        {
            let error = index(bytes, compression, &Limits::default()).err();
            // A flipped bit may also come out as a tar that makes no sense.
            assert!(error.is_some(), "{compression:?} {what}");
            let is_named = matches!(error, Some(LayerError::Decompress { .. }));
            assert!(is_named || what == "damaged", "{compression:?} {what}: {error:?}");
        }
    }
}

#[test]
fn an_empty_layer_has_only_a_root() {
    let got = index(&gzip(&[0; 1024]), Compression::Gzip, &Limits::default()).unwrap();
    assert_eq!(got.layer.entries, 0);
    assert_eq!(got.layer.index_bytes, got.index.len() as u64);
}

#[test]
fn bombs_hit_a_named_limit() {
    let zeros = Tar::new().file("zeros", &vec![0; 4 << 20]).end();
    let d = Limits::default();
    let wide = {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(23).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(&zeros).unwrap();
        encoder.finish().unwrap()
    };
    let cases: [(&str, Compression, Vec<u8>, Limits, &str); 4] = [
        ("size", Compression::Gzip, gzip(&zeros), Limits { tar_bytes: 1 << 20, ..d }, "the tar"),
        ("ratio", Compression::Gzip, gzip(&zeros), Limits { ratio_floor_bytes: 1 << 20, ..d }, "compression"),
        (
            "window",
            Compression::Zstd,
            wide,
            Limits { zstd_window_bytes: 1 << 20, ..d },
            "the window of a zstd frame",
        ),
        ("index", Compression::Gzip, gzip(&tar()), Limits { index_bytes: 1536, ..d }, "the index"),
    ];
    for (case, compression, bytes, limits, expected) in cases {
        match index(&bytes, compression, &limits).err() {
            Some(LayerError::LayerLimit { what, .. }) => assert_eq!(what, expected, "{case}"),
            // The size field of the entry is already over it.
            Some(LayerError::Limit { what, .. }) => assert_eq!((case, what), ("size", "the size")),
            other => panic!("{case}: {other:?}"),
        }
    }
}

/// Reading that stops with an error of the system.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

/// A disk that is full.
struct Full;

impl WriteAt for Full {
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }
}

#[test]
fn errors_of_the_system_say_what_was_being_done() {
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        let (tar, index) = (MemFile::default(), MemFile::default());
        let error = index_into(Broken, compression, &tar, &index, &Limits::default(), |_| {}).unwrap_err();
        let expected = matches!(&error, LayerError::Io { operation: "read the compressed layer", source }
            if source.kind() == io::ErrorKind::ConnectionReset);
        assert!(expected, "{compression:?}: {error:?}");
    }
    let full_tar = || {
        let input = gzip(&tar());
        index_into(&input[..], Compression::Gzip, Full, MemFile::default(), &Limits::default(), |_| {})
            .unwrap_err()
    };
    let full_index = || {
        let input = gzip(&tar());
        index_into(&input[..], Compression::Gzip, MemFile::default(), Full, &Limits::default(), |_| {})
            .unwrap_err()
    };
    for (error, what) in [(full_tar(), "write the layer's tar"), (full_index(), "write the index")] {
        assert!(matches!(error, LayerError::Io { operation, .. } if operation == what), "{error}");
    }
}

#[test]
fn zeros_are_left_out_of_the_file() {
    struct Count(std::cell::Cell<u64>);
    impl WriteAt for Count {
        fn write_at(&self, bytes: &[u8], _: u64) -> io::Result<()> {
            self.0.set(self.0.get() + bytes.len() as u64);
            Ok(())
        }
        fn set_len(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
    }
    let tar = Tar::new().file("zeros", &vec![0; 8 << 20]).file("ones", &vec![1; 1 << 20]).end();
    let written = Count(0.into());
    index_into(&tar[..], Compression::Plain, &written, MemFile::default(), &Limits::default(), |_| {})
        .unwrap();
    assert!((1 << 20..(1 << 20) + 20_000).contains(&written.0.get()), "{}", written.0.get());
}

#[test]
fn sparse_data_that_is_not_aligned_is_copied_within_a_limit() {
    let sparse = |map: &str, size: &str, data: &[u8]| {
        let count = (map.split(',').count() / 2).to_string();
        Tar::new()
            .pax(&[
                ("GNU.sparse.size", size.as_bytes()),
                ("GNU.sparse.numblocks", count.as_bytes()),
                ("GNU.sparse.map", map.as_bytes()),
            ])
            .file("s", data)
            .end()
    };
    let askew = sparse("10,3,5000,4,9000,1", "10000", b"abcdefgh");
    let got = index(&askew, Compression::Plain, &Limits::default()).unwrap();
    // Chunks of a page, one after the other behind the superblock's block.
    assert_eq!(&got.index[1536 + 10..1536 + 13], b"abc");
    assert_eq!(&got.index[1536 + 5000..1536 + 5004], b"defg");
    assert_eq!(&got.index[1536 + 9000..1536 + 9001], b"h");
    let limits = Limits { realigned_bytes: 4096, ..Limits::default() };
    match index(&askew, Compression::Plain, &limits).err() {
        Some(LayerError::Limit { what, .. }) => assert_eq!(what, "sparse data not aligned to blocks"),
        other => panic!("{other:?}"),
    }
    let aligned = sparse("512,512,4096,512", "10000", &[7; 1024]);
    assert!(index(&aligned, Compression::Plain, &limits).is_ok());
    let huge = sparse("1099511627776,512", "1200000000000", &[7; 512]);
    let got = index(&huge, Compression::Plain, &Limits::default()).unwrap();
    assert!(got.layer.index_bytes < 32 << 20, "{}", got.layer.index_bytes);
}
