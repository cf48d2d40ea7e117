//! What the host fixed at boot: the bounds of everything that the agent may ever ask for. Words of the kernel command line.
//!
//! | word | |
//! |---|---|
//! | `nacre.containers=N` | most containers at a time |
//! | `nacre.capabilities=HEX` | what a process of a container may have at most |
//! | `nacre.storage=WORD,…` | kinds of storage that there may be, of `layers`, `shares`, `memory`, `disks`, `overlays` |
//!
//! What no word bounds is bounded by init's own limits. A word that is not understood ends the boot: a bound that was meant
//! and not set would be worse.

use crate::table::CONTAINERS_MAX;
use nacre_protocols::init_launcher::storage;

/// All that Linux has, to CAP_CHECKPOINT_RESTORE.
const ALL_CAPABILITIES: u64 = 0x1ff_ffff_ffff;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manifest {
    pub containers: usize,
    pub capabilities: u64,
    /// A sum of the numbers of [`storage`]; never the scratch space, which is init's own.
    pub storage: u32,
}

impl Default for Manifest {
    fn default() -> Self {
        Self {
            containers: CONTAINERS_MAX,
            capabilities: ALL_CAPABILITIES,
            storage: storage::ALL & !storage::SCRATCH,
        }
    }
}

impl Manifest {
    /// Takes a word that is the manifest's; false for another. The error is the word's value.
    pub fn word<'a>(&mut self, word: &'a str) -> Result<bool, &'a str> {
        if let Some(value) = word.strip_prefix("nacre.containers=") {
            let number: usize = value.parse().map_err(|_| value)?;
            self.containers = number.min(CONTAINERS_MAX);
        } else if let Some(value) = word.strip_prefix("nacre.capabilities=") {
            let hex = value.strip_prefix("0x").unwrap_or(value);
            self.capabilities = u64::from_str_radix(hex, 16).map_err(|_| value)? & ALL_CAPABILITIES;
        } else if let Some(value) = word.strip_prefix("nacre.storage=") {
            self.storage = storage::FILES;
            for kind in value.split(',').filter(|kind| !kind.is_empty()) {
                let found = storage::WORDS.iter().find(|(word, _)| *word == kind);
                self.storage |= found.ok_or(value)?.1;
            }
        } else {
            return Ok(false);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_bounds_one_thing() {
        let all = Manifest::default();
        assert_eq!(all.storage & storage::SCRATCH, 0);
        let some = storage::FILES | storage::LAYERS | storage::DISKS;
        for (word, expected) in [
            ("nacre.containers=2", Ok((true, Manifest { containers: 2, ..all }))),
            ("nacre.containers=100000", Ok((true, all))),
            ("nacre.containers=two", Err("two")),
            ("nacre.capabilities=0x21", Ok((true, Manifest { capabilities: 0x21, ..all }))),
            ("nacre.capabilities=ffffffffffffffff", Ok((true, all))),
            ("nacre.capabilities=none", Err("none")),
            ("nacre.storage=layers,disks", Ok((true, Manifest { storage: some, ..all }))),
            ("nacre.storage=", Ok((true, Manifest { storage: storage::FILES, ..all }))),
            ("nacre.storage=layers,scratch", Err("layers,scratch")),
            ("nacre.scratch=tmpfs", Ok((false, all))),
        ] {
            let mut manifest = all;
            let taken = manifest.word(word);
            assert_eq!(taken.map(|taken| (taken, manifest)), expected, "{word}");
        }
    }
}
