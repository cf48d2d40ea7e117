//! Where the kernel and the guest image are, when the command line does not say.

use std::path::{Path, PathBuf};

use super::error::Failure;

const KERNEL: &str = "vmlinux";
const IMAGE: &str = "guest.erofs";

/// The kernel: the one that is given, or the first that is found.
pub fn kernel(given: Option<&Path>) -> Result<PathBuf, Failure> {
    one("kernel", KERNEL, given, &places(variable))
}

/// The guest image, likewise.
pub fn image(given: Option<&Path>) -> Result<PathBuf, Failure> {
    one("guest image", IMAGE, given, &places(variable))
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// What `cargo xtask guest` made for this user, then what is installed.
fn places(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let mut places = Vec::new();
    let cache = variable("NACRE_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("nacre")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/nacre")));
    places.extend(cache.map(|cache| cache.join("current")));
    if let Ok(program) = std::env::current_exe() {
        places.extend(program.parent().and_then(Path::parent).map(|prefix| prefix.join("share/nacre")));
    }
    places.extend(["/usr/local/share/nacre", "/usr/share/nacre"].map(PathBuf::from));
    places
}

fn one(what: &str, name: &str, given: Option<&Path>, places: &[PathBuf]) -> Result<PathBuf, Failure> {
    let found = match given {
        Some(path) => path.is_file().then(|| path.to_owned()),
        None => places.iter().map(|place| place.join(name)).find(|path| path.is_file()),
    };
    // The monitor works in another directory.
    let found = found.and_then(|path| path.canonicalize().ok());
    found.ok_or_else(|| {
        let (cause, next) = match given {
            Some(path) => (format!("there is no {what} at {}", path.display()), "check the path"),
            None => (
                format!("there is no {what} ({name}) in {}", list(places)),
                "build it with `cargo xtask guest`, or name one with --kernel and --image",
            ),
        };
        Failure::new("boot", cause).next(next)
    })
}

fn list(places: &[PathBuf]) -> String {
    places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_own_build_goes_before_what_is_installed() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().to_owned();
        let with_cache = |name: &str| (name == "NACRE_CACHE").then(|| cache.clone());
        let places = places(with_cache);
        assert_eq!(places[0], directory.path().join("current"));
        assert!(places.contains(&"/usr/share/nacre".into()));
        std::fs::create_dir(&places[0]).unwrap();
        std::fs::write(places[0].join(KERNEL), "x").unwrap();
        assert!(one("kernel", KERNEL, None, &places[..1]).is_ok());
        let missing = one("guest image", IMAGE, None, &places[..1]).unwrap_err();
        assert!(missing.to_string().contains("cargo xtask guest"), "{missing}");
        assert!(one("kernel", KERNEL, Some(Path::new("/nowhere")), &places).is_err());
    }
}
