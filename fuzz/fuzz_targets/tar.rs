//! Any bytes as a tar, and the same bytes with every block's checksum put right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_fuzz::layers::seal_all;
use nacre_puller::layer::{Limits, TarReader};

fuzz_target!(|data: &[u8]| {
    read(data);
    let mut sealed = data.to_vec();
    seal_all(&mut sealed);
    read(&sealed);
});

fn read(tar: &[u8]) {
    let limits = Limits { entries: 1000, sparse_segments: 1000, ..Limits::default() };
    let mut reader = TarReader::new(tar, &limits);
    let mut end = 0;
    while let Ok(Some(entry)) = reader.next_entry() {
        assert!(
            entry.data_offset % 512 == 0 && entry.data_offset >= end && entry.data_offset <= tar.len() as u64
        );
        assert!(entry.mtime.nanoseconds < 1_000_000_000 && entry.uid != u32::MAX && entry.mode <= 0o7777);
        assert!(entry.path.len() <= limits.path_bytes && entry.link.len() <= limits.link_bytes);
        let segments = entry.segments.iter().flatten();
        let data = segments.fold((0, 0), |(end, sum), segment| {
            assert!(segment.len > 0 && segment.offset >= end && segment.offset + segment.len <= entry.size);
            (segment.offset + segment.len, sum + segment.len)
        });
        assert!(entry.segments.is_none() || data.1 == entry.data_bytes);
        end = entry.data_offset + entry.data_bytes;
    }
}
