//! The container's cgroup: version 2 alone, also where version 1 hierarchies hold some controllers (a hybrid machine). Then what
//! a container needs must be in version 2, or it is refused with the name of the controller and of the place where it is.

use crate::error::{Context, Result, refused};
use rustix::fs::{CWD, Mode, OFlags, open, statfs};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// `CGROUP2_SUPER_MAGIC` (`linux/magic.h`).
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// Where the hierarchy is: of its own, and beside version 1 as systemd mounts it.
const USUAL: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// Deepest nesting that a container's own cgroups may have, in levels, for its removal.
const DEPTH_MAX: usize = 16;
/// How long processes may take to go after SIGKILL, and to freeze.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(1);

/// The root of the hierarchy, asked for once.
pub fn root() -> Result<&'static Path> {
    static ROOT: std::sync::OnceLock<Option<PathBuf>> = std::sync::OnceLock::new();
    ROOT.get_or_init(find_root).as_deref().ok_or_else(|| {
        refused("no cgroup v2 hierarchy is mounted on this machine; `mount -t cgroup2 none DIRECTORY` makes it visible")
    })
}

fn find_root() -> Option<PathBuf> {
    let is_one = |path: &&str| statfs(*path).is_ok_and(|stat| stat.f_type == CGROUP2_MAGIC);
    if let Some(usual) = USUAL.iter().find(|path| is_one(path)) {
        return Some(PathBuf::from(usual));
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    line.split(' ').nth(1).map(PathBuf::from)
}

/// Where `linux.cgroupsPath` puts the container, from the root of the hierarchy.
pub fn path_of(described: &str, id: &str) -> Result<String> {
    let path = if described.is_empty() { id } else { described };
    if path.contains(':') && !path.contains('/') {
        return Err(refused(format!(
            "linux.cgroupsPath: {path:?} is a systemd slice, and this launcher makes directories; set the engine's cgroup manager to cgroupfs"
        )));
    }
    let mut plain = String::with_capacity(path.len() + 1);
    for name in path.split('/').filter(|name| !matches!(*name, "" | ".")) {
        if name == ".." || name.contains('\0') {
            return Err(refused(format!("linux.cgroupsPath: {path:?} has \"..\" or a NUL in it")));
        }
        plain.push('/');
        plain.push_str(name);
    }
    if plain.is_empty() { Err(refused("linux.cgroupsPath is the root of the hierarchy")) } else { Ok(plain) }
}

/// Makes the cgroup at `path`, with every controller that there is; those of `needed` must be there. Gives its directory.
pub fn make(path: &str, needed: &[&str]) -> Result<OwnedFd> {
    let root = root()?;
    let whole = full(root, path);
    let is_ours = match std::fs::create_dir(&whole) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(&whole).doing(|| format!("making the cgroup {}", whole.display()))?;
            true
        }
        Err(error) => return Err(error).doing(|| format!("making the cgroup {}", whole.display())),
    };
    let made = hand_down(root, path, needed).and_then(|()| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(&whole, flags, Mode::empty()).doing(|| format!("opening the cgroup {}", whole.display()))
    });
    if made.is_err() && is_ours {
        let _ = std::fs::remove_dir(&whole);
    }
    made
}

/// Lets every directory above `path` hand its controllers down.
fn hand_down(root: &Path, path: &str, needed: &[&str]) -> Result<()> {
    let mut here = root.to_owned();
    let mut names = path.split('/').filter(|name| !name.is_empty()).peekable();
    while names.peek().is_some() {
        let control = here.join("cgroup.subtree_control");
        let available = read_words(&here.join("cgroup.controllers"))?;
        let handed = read_words(&control)?;
        if let Some(missing) = needed.iter().find(|name| !available.iter().any(|it| it == *name)) {
            return Err(refused(missing_controller(missing, &here)));
        }
        for name in available.iter().filter(|name| !handed.contains(name)) {
            let written = std::fs::write(&control, format!("+{name}"));
            if needed.contains(&name.as_str()) {
                written.doing(|| format!("handing the controller {name} down in {}", control.display()))?;
            }
        }
        here.extend(names.next());
    }
    Ok(())
}

/// Names the place where the controller is instead.
fn missing_controller(name: &str, here: &Path) -> String {
    let place = std::fs::read_to_string("/proc/self/mounts").ok().and_then(|mounts| {
        let line = mounts.lines().find(|line| {
            let mut fields = line.split(' ').skip(2);
            fields.next() == Some("cgroup")
                && fields.next().is_some_and(|options| options.split(',').any(|option| option == name))
        })?;
        line.split(' ').nth(1).map(str::to_owned)
    });
    let place = match place {
        Some(place) => format!("it is in the version 1 hierarchy at {place}"),
        None => "the kernel, or whoever manages this machine, gives it to no hierarchy".to_owned(),
    };
    format!(
        "the cgroup controller {name} is missing in the version 2 hierarchy at {}: {place}",
        here.display()
    )
}

fn read_words(file: &Path) -> Result<Vec<String>> {
    // The names of all controllers there are; the kernel gives them at once.
    let mut buffer = [0; 1024];
    let read = || File::open(file)?.read(&mut buffer);
    let length = { read }().doing(|| format!("reading {}", file.display()))?;
    let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

fn full(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// A file of the cgroup at `path`.
pub fn file(path: &str, name: &str) -> Result<PathBuf> {
    Ok(full(root()?, path).join(name))
}

pub fn open_directory(path: &str) -> Result<OwnedFd> {
    let whole = full(root()?, path);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, &whole, flags, Mode::empty())
        .doing(|| format!("opening the cgroup {}", whole.display()))
}

pub fn write(path: &str, name: &str, value: &str) -> Result<()> {
    let file = file(path, name)?;
    std::fs::write(&file, value).doing(|| format!("writing {value:?} to {}", file.display()))
}

/// `name value` lines of a file; the value of one name.
pub fn field(path: &str, name: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file(path, name).ok()?).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

pub fn is_frozen(path: &str) -> bool {
    field(path, "cgroup.events", "frozen") == Some(1)
}

pub fn freeze(path: &str, frozen: bool) -> Result<()> {
    write(path, "cgroup.freeze", if frozen { "1" } else { "0" })?;
    wait_for(
        || is_frozen(path) == frozen,
        || format!("cgroup {path} did not {}", if frozen { "freeze" } else { "thaw" }),
    )
}

/// SIGKILL to every process in it and beneath.
pub fn kill(path: &str) -> Result<()> {
    write(path, "cgroup.kill", "1")
}

/// Every process in it and beneath, by number.
pub fn processes(path: &str) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    collect(&full(root()?, path), DEPTH_MAX, &mut all)
        .doing(|| format!("listing the processes of cgroup {path}"))?;
    all.sort_unstable();
    Ok(all)
}

fn collect(directory: &Path, depth: usize, all: &mut Vec<u32>) -> io::Result<()> {
    let text = match std::fs::read_to_string(directory.join("cgroup.procs")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => text?,
    };
    all.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    if let Some(deeper) = depth.checked_sub(1) {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                collect(&entry.path(), deeper, all)?;
            }
        }
    }
    Ok(())
}

/// Removes it if nobody is in it and nothing beneath; true also if it is gone already.
pub fn remove_empty(path: &str) -> Result<bool> {
    match std::fs::remove_dir(full(root()?, path)) {
        Err(error) => Ok(error.kind() == io::ErrorKind::NotFound),
        Ok(()) => Ok(true),
    }
}

/// Waits until nobody is left in it, and removes it with what the container made beneath. Nothing to do if it is gone.
pub fn remove(path: &str) -> Result<()> {
    let whole = full(root()?, path);
    wait_for(
        || field(path, "cgroup.events", "populated").is_none_or(|populated| populated == 0),
        || format!("processes are left in cgroup {path}"),
    )?;
    let mut last = None;
    wait_for(
        || {
            last = remove_tree(&whole, DEPTH_MAX).err();
            last.is_none()
        },
        || format!("cgroup {path} cannot be removed"),
    )
}

fn remove_tree(directory: &Path, depth: usize) -> io::Result<()> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    if let Some(deeper) = depth.checked_sub(1) {
        let entries = match std::fs::read_dir(directory) {
            Err(error) if gone(&error) => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                remove_tree(&entry.path(), deeper)?;
            }
        }
    }
    match std::fs::remove_dir(directory) {
        Err(error) if !gone(&error) => Err(error),
        _ => Ok(()),
    }
}

fn wait_for(mut done: impl FnMut() -> bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !done() {
        if Instant::now() > end {
            return Err(refused(format!("{} within {} s", otherwise(), PATIENCE.as_secs())));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_the_hierarchy() {
        for (described, expected) in [
            ("", Some("/id")),
            ("/default/x", Some("/default/x")),
            ("a//./b/", Some("/a/b")),
            ("/", None),
            ("/a/../../b", None),
            ("system.slice:runc:x", None),
        ] {
            assert_eq!(path_of(described, "id").ok().as_deref(), expected, "{described}");
        }
    }
}
