//! What the host says on the kernel command line: `nacre.*` words; all others are the kernel's or nobody's.

use crate::InitError;

/// Longest command line of the kernel on x86, in bytes.
const CMDLINE_MAX: usize = 2048;

#[derive(Debug, PartialEq, Eq)]
pub struct Cmdline {
    pub scratch: ScratchChoice,
}

#[derive(Debug, PartialEq, Eq)]
pub enum ScratchChoice {
    /// `nacre.scratch=/dev/vdb`
    Disk(String),
    /// `nacre.scratch=tmpfs` or `nacre.scratch=tmpfs:BYTES`; half of the memory without a size, and the default.
    Tmpfs(Option<u64>),
}

pub fn read() -> Result<Cmdline, InitError> {
    let text = std::fs::read("/proc/cmdline").map_err(InitError::io("reading /proc/cmdline"))?;
    Ok(parse(text.get(..CMDLINE_MAX).unwrap_or(&text)))
}

fn parse(text: &[u8]) -> Cmdline {
    let mut scratch = ScratchChoice::Tmpfs(None);
    for word in text.split(u8::is_ascii_whitespace).filter_map(|word| std::str::from_utf8(word).ok()) {
        if let Some(value) = word.strip_prefix("nacre.scratch=") {
            scratch = match value.strip_prefix("tmpfs") {
                Some(size) => ScratchChoice::Tmpfs(size.strip_prefix(':').and_then(|size| size.parse().ok())),
                None => ScratchChoice::Disk(value.to_owned()),
            };
        }
    }
    Cmdline { scratch }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scratch_word_says_where_layers_go() {
        for (text, scratch) in [
            ("quiet console=ttyS0\n", ScratchChoice::Tmpfs(None)),
            ("nacre.scratch=/dev/vdb quiet", ScratchChoice::Disk("/dev/vdb".to_owned())),
            ("nacre.scratch=tmpfs", ScratchChoice::Tmpfs(None)),
            ("x nacre.scratch=tmpfs:1048576", ScratchChoice::Tmpfs(Some(1_048_576))),
            ("nacre.scratch=tmpfs:much", ScratchChoice::Tmpfs(None)),
        ] {
            assert_eq!(parse(text.as_bytes()), Cmdline { scratch }, "{text:?}");
        }
    }
}
