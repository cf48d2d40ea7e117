//! What the host says on the kernel command line: `nacre.*` words; all others are the kernel's or nobody's.

use crate::InitError;
use crate::manifest::Manifest;
use crate::ports::Ports;

/// Longest command line of the kernel on x86, in bytes.
const CMDLINE_MAX: usize = 2048;

#[derive(Debug, PartialEq, Eq)]
pub struct Cmdline {
    pub scratch: ScratchChoice,
    /// `nacre.store_quota=BYTES`: most that image layers may take; without it, what the disk has.
    pub store_quota: Option<u64>,
    pub manifest: Manifest,
    pub ports: Ports,
}

#[derive(Debug, PartialEq, Eq)]
pub enum ScratchChoice {
    /// `nacre.scratch=/dev/vdb`
    Disk(String),
    /// `nacre.scratch=kept:/dev/vdb`: one that outlives the sandbox.
    Kept(String),
    /// `nacre.scratch=tmpfs` or `nacre.scratch=tmpfs:BYTES`; half of the memory without a size, and the default.
    Tmpfs(Option<u64>),
}

pub fn read() -> Result<Cmdline, InitError> {
    let text = std::fs::read("/proc/cmdline").map_err(InitError::io("reading /proc/cmdline"))?;
    parse(text.get(..CMDLINE_MAX).unwrap_or(&text))
}

fn parse(text: &[u8]) -> Result<Cmdline, InitError> {
    let (mut scratch, mut store_quota) = (ScratchChoice::Tmpfs(None), None);
    let (mut manifest, mut ports) = (Manifest::default(), Ports::default());
    for word in text.split(u8::is_ascii_whitespace).filter_map(|word| std::str::from_utf8(word).ok()) {
        if let Some(value) = word.strip_prefix("nacre.scratch=") {
            scratch = match (value.strip_prefix("tmpfs"), value.strip_prefix("kept:")) {
                (Some(size), _) => {
                    ScratchChoice::Tmpfs(size.strip_prefix(':').and_then(|size| size.parse().ok()))
                }
                (None, Some(device)) => ScratchChoice::Kept(device.to_owned()),
                (None, None) => ScratchChoice::Disk(value.to_owned()),
            };
        } else if let Some(value) = word.strip_prefix("nacre.store_quota=") {
            store_quota = value.parse().ok();
        } else if manifest.word(word).is_err() {
            return Err(InitError::Manifest { word: word.to_owned() });
        }
        ports.word(word);
    }
    Ok(Cmdline { scratch, store_quota, manifest, ports })
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
            let (manifest, ports) = (Manifest::default(), Ports::default());
            let expected = Cmdline { scratch, store_quota: None, manifest, ports };
            assert_eq!(parse(text.as_bytes()).unwrap(), expected, "{text:?}");
        }
        let all = parse(b"nacre.store_quota=1000 nacre.scratch=kept:/dev/vdb nacre.containers=3").unwrap();
        let scratch = ScratchChoice::Kept("/dev/vdb".to_owned());
        let manifest = Manifest { containers: 3, ..Default::default() };
        assert_eq!(all, Cmdline { scratch, store_quota: Some(1000), manifest, ports: Ports::default() });
        assert!(parse(b"nacre.containers=many").is_err(), "a bound that was meant must be set");
    }
}
