//! What takes minutes to make is kept outside the tree, under the hash of everything it was made from.
//!
//! `$NACRE_CACHE`, else `$XDG_CACHE_HOME/nacre`, else `~/.cache/nacre`, holds
//!
//! - `<kind>-<key>/`, a finished result; it appears by one rename and never changes again; of each kind the
//!   most recently used stay,
//! - `<kind>.lock`, held while one is made, so that two builds do not do the same work twice,
//! - `current/`, symbolic links to what `nacre` boots when it is told nothing else.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

/// How many results of one kind are kept.
const KEPT: usize = 8;

/// Everything that decides a result, as named parts. Order matters; a part's end cannot be mistaken for the next.
#[derive(Default)]
pub struct Key {
    hash: Sha256,
}

impl Key {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn part(mut self, name: &str, content: impl AsRef<[u8]>) -> Self {
        for bytes in [name.as_bytes(), content.as_ref()] {
            self.hash.update((bytes.len() as u64).to_le_bytes());
            self.hash.update(bytes);
        }
        self
    }

    /// The first 128 bits, in hexadecimal.
    pub fn finish(self) -> String {
        const BYTES: usize = 16;
        hex(&self.hash.finalize()[..BYTES])
    }
}

pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache of this user; made when it is not there.
    pub fn open() -> anyhow::Result<Self> {
        let root = root(|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
            .context("neither NACRE_CACHE, XDG_CACHE_HOME nor HOME is set")?;
        Self::at(root)
    }

    pub fn at(root: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        let root = root.canonicalize().with_context(|| format!("cannot resolve {}", root.display()))?;
        Ok(Self { root })
    }

    /// The result of this kind and key; `make` fills a directory when there is none yet.
    ///
    /// Waits while another process makes something of the same kind. What a failed or killed `make` left behind
    /// is removed by the next one.
    pub fn get_or_make(
        &self,
        kind: &str,
        key: &str,
        make: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<PathBuf> {
        let finished = self.root.join(format!("{kind}-{key}"));
        if touch(&finished) {
            return Ok(finished);
        }
        let _lock = self.lock(kind)?;
        if touch(&finished) {
            return Ok(finished);
        }
        let unfinished = self.root.join(format!("{kind}.unfinished"));
        remove(&unfinished)?;
        fs::create_dir(&unfinished).with_context(|| format!("cannot make {}", unfinished.display()))?;
        make(&unfinished).inspect_err(|_| drop(remove(&unfinished)))?;
        fs::rename(&unfinished, &finished)
            .with_context(|| format!("cannot rename {} to {}", unfinished.display(), finished.display()))?;
        self.prune(kind)?;
        Ok(finished)
    }

    /// Makes `target` what `nacre` takes for `name` by default.
    pub fn set_current(&self, name: &str, target: &Path) -> anyhow::Result<()> {
        let _lock = self.lock("current")?;
        let folder = self.root.join("current");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let (link, fresh) = (folder.join(name), folder.join(format!(".{name}")));
        remove(&fresh)?;
        std::os::unix::fs::symlink(target, &fresh)
            .and_then(|()| fs::rename(&fresh, &link))
            .with_context(|| format!("cannot point {} to {}", link.display(), target.display()))
    }

    /// Removes the results of a kind that were not used for longest. Whoever has one open keeps it.
    fn prune(&self, kind: &str) -> anyhow::Result<()> {
        let prefix = format!("{kind}-");
        let mut results = Vec::new();
        for entry in
            fs::read_dir(&self.root).with_context(|| format!("cannot list {}", self.root.display()))?
        {
            let entry = entry.with_context(|| format!("cannot list {}", self.root.display()))?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let used = entry.metadata().and_then(|metadata| metadata.modified());
                results.push((used.unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
            }
        }
        results.sort();
        let surplus = results.len().saturating_sub(KEPT);
        results[..surplus].iter().try_for_each(|(_, path)| remove(path))
    }

    fn lock(&self, name: &str) -> anyhow::Result<File> {
        let path = self.root.join(format!("{name}.lock"));
        let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) => eprintln!("{name}: waiting for another build to finish"),
            Err(fs::TryLockError::Error(error)) => bail!("cannot lock {}: {error}", path.display()),
        }
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }
}

/// The sha256 of a file, in hexadecimal.
pub fn sha256_of(path: &Path) -> anyhow::Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&Sha256::digest(&bytes)))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn root(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    variable("NACRE_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("nacre")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/nacre")))
}

/// Notes that a result is in use; false when it is not there.
fn touch(result: &Path) -> bool {
    if let Ok(folder) = File::open(result) {
        // A cache that cannot be written still serves.
        let _ = folder.set_modified(SystemTime::now());
    }
    result.is_dir()
}

fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_changed_part_changes_the_key() {
        let key = |fragment: &str, version: &str| {
            Key::new().part("boot.config", fragment).part("version", version).finish()
        };
        let base = key("CONFIG_SMP=y\n", "6.12.1");
        assert_eq!(base, key("CONFIG_SMP=y\n", "6.12.1"));
        assert_ne!(base, key("CONFIG_SMP=y\nCONFIG_NET=y\n", "6.12.1"), "a fragment");
        assert_ne!(base, key("CONFIG_SMP=y\n", "6.12.2"), "a version");
        assert_ne!(base, key("CONFIG_SMP=y\nversion", "6.12.1"), "a boundary between parts");
        let swapped = Key::new().part("version", "6.12.1").part("boot.config", "CONFIG_SMP=y\n").finish();
        assert_ne!(base, swapped, "the order");
    }

    #[test]
    fn the_cache_lies_where_the_environment_says() {
        let all = [("NACRE_CACHE", "/n"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        for (unset, expected) in
            [(0, Some("/n")), (1, Some("/x/nacre")), (2, Some("/h/.cache/nacre")), (3, None)]
        {
            let variable = |name: &str| {
                all[unset..].iter().find(|(other, _)| *other == name).map(|(_, value)| PathBuf::from(value))
            };
            assert_eq!(root(variable), expected.map(PathBuf::from));
        }
    }

    #[test]
    fn a_result_is_made_once_and_a_failure_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_owned()).unwrap();
        cache
            .get_or_make("thing", "k", |path| {
                fs::write(path.join("half"), "")?;
                bail!("broken")
            })
            .unwrap_err();
        let left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name != "thing.lock")
            .collect();
        assert!(left.is_empty(), "{left:?}");

        let make = |path: &Path| Ok(fs::write(path.join("whole"), "x")?);
        let made = cache.get_or_make("thing", "k", make).unwrap();
        let again = cache.get_or_make("thing", "k", |_| bail!("made twice")).unwrap();
        assert_eq!(made, again);
        assert_eq!(fs::read(again.join("whole")).unwrap(), b"x");
    }

    #[test]
    fn builds_that_run_at_the_same_time_make_one_result() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_owned()).unwrap();
        let made = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    cache.get_or_make("thing", "k", |path| {
                        made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        Ok(fs::write(path.join("x"), "")?)
                    })
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn the_results_not_used_for_longest_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_owned()).unwrap();
        let use_result = |key: usize| cache.get_or_make("thing", &format!("{key:02}"), |_| Ok(())).unwrap();
        for key in 0..KEPT {
            use_result(key);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        use_result(0);
        use_result(KEPT);
        let there = |key: usize| folder.path().join(format!("thing-{key:02}")).is_dir();
        assert!(there(0) && !there(1) && (2..=KEPT).all(there));
    }

    #[test]
    fn current_follows_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_owned()).unwrap();
        for target in ["/one", "/two"] {
            cache.set_current("vmlinux", Path::new(target)).unwrap();
            assert_eq!(fs::read_link(folder.path().join("current/vmlinux")).unwrap(), Path::new(target));
        }
    }
}
