//! What the host fixed at boot: the bounds of everything that the agent may ever ask for. Words of the kernel command line.
//!
//! | word | |
//! |---|---|
//! | `nacre.containers=N` | most containers at a time |
//! | `nacre.capabilities=HEX` | what a process of a container may have at most |
//! | `nacre.storage=WORD,…` | kinds of storage that there may be, of `layers`, `shares`, `memory`, `disks`, `overlays` |
//! | `nacre.images=sha256:HEX,…` | the only images that containers may be made of, by the digest of their manifest or of the index that names it |
//! | `nacre.allow=WORD,…` | what there is not by default, of `console` (a debug console), `upgrade` (another agent's program), `swap` (memory on disks) |
//!
//! What no word bounds is bounded by init's own limits. Init tells the puller the digests of the images, which lets nothing else
//! into the store and leaves word of each that it took; and it tells the launcher, which then takes no root but the layers of one of
//! these, in their order. A word that is not understood ends the boot: a bound that was meant and not set would be worse.

use crate::table::CONTAINERS_MAX;
use nacre_protocols::init_launcher::storage;
use nacre_protocols::names::Sha256;

/// All that Linux has, to CAP_CHECKPOINT_RESTORE.
const ALL_CAPABILITIES: u64 = 0x1ff_ffff_ffff;
/// More do not fit a kernel's command line.
const IMAGES_MAX: usize = 24;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub containers: usize,
    pub capabilities: u64,
    /// A sum of the numbers of [`storage`]; never the scratch space, which is init's own, nor other roots and swap ([`Manifest::kinds`]).
    pub storage: u32,
    /// `None`: any.
    pub images: Option<Vec<Sha256>>,
    pub console: bool,
    pub upgrade: bool,
    pub swap: bool,
}

impl Default for Manifest {
    fn default() -> Self {
        Self {
            containers: CONTAINERS_MAX,
            capabilities: ALL_CAPABILITIES,
            storage: storage::ALL & !(storage::SCRATCH | storage::OTHER_ROOTS | storage::SWAP),
            images: None,
            console: false,
            upgrade: false,
            swap: false,
        }
    }
}

impl Manifest {
    /// What launchers are told of it.
    pub fn kinds(&self) -> u32 {
        let roots = if self.images.is_none() { storage::OTHER_ROOTS } else { 0 };
        let swap = if self.swap { storage::SWAP } else { 0 };
        self.storage | roots | swap
    }

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
        } else if let Some(value) = word.strip_prefix("nacre.images=") {
            let digest = |text: &str| text.starts_with("sha256:").then(|| Sha256::parse(text)).flatten();
            let parts = value.split(',').filter(|part| !part.is_empty());
            let digests: Option<Vec<Sha256>> = parts.map(digest).collect();
            self.images = Some(digests.filter(|digests| digests.len() <= IMAGES_MAX).ok_or(value)?);
        } else if let Some(value) = word.strip_prefix("nacre.allow=") {
            for what in value.split(',').filter(|what| !what.is_empty()) {
                match what {
                    "console" => self.console = true,
                    "upgrade" => self.upgrade = true,
                    "swap" => self.swap = true,
                    _ => return Err(value),
                }
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
        assert_eq!(all.kinds(), storage::ALL & !(storage::SCRATCH | storage::SWAP));
        let some = Manifest { images: Some(Vec::new()), swap: true, ..all };
        assert_eq!(some.kinds(), storage::ALL & !(storage::SCRATCH | storage::OTHER_ROOTS));
        let of = |change: fn(&mut Manifest)| {
            let mut manifest = Manifest::default();
            change(&mut manifest);
            Ok((true, manifest))
        };
        let digest = format!("nacre.images=sha256:{},", "a5".repeat(32));
        for (word, expected) in [
            ("nacre.containers=2", of(|it| it.containers = 2)),
            ("nacre.containers=100000", of(|_| ())),
            ("nacre.containers=two", Err("two")),
            ("nacre.capabilities=0x21", of(|it| it.capabilities = 0x21)),
            ("nacre.capabilities=ffffffffffffffff", of(|_| ())),
            ("nacre.capabilities=none", Err("none")),
            (
                "nacre.storage=layers,disks",
                of(|it| it.storage = storage::FILES | storage::LAYERS | storage::DISKS),
            ),
            ("nacre.storage=", of(|it| it.storage = storage::FILES)),
            ("nacre.storage=layers,scratch", Err("layers,scratch")),
            (&digest, of(|it| it.images = Some(vec![Sha256([0xa5; 32])]))),
            ("nacre.images=", of(|it| it.images = Some(Vec::new()))),
            ("nacre.images=busybox", Err("busybox")),
            ("nacre.images=sha512:00", Err("sha512:00")),
            ("nacre.allow=console", of(|it| it.console = true)),
            ("nacre.allow=upgrade,console", of(|it| (it.console, it.upgrade) = (true, true))),
            ("nacre.allow=swap", of(|it| it.swap = true)),
            ("nacre.allow=all", Err("all")),
            ("nacre.scratch=tmpfs", Ok((false, Manifest::default()))),
        ] {
            let mut manifest = Manifest::default();
            let taken = manifest.word(word);
            assert_eq!(taken.map(|taken| (taken, manifest)), expected, "{word}");
        }
    }
}
