use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::run;

/// The reference tools of EROFS: `erofs-utils` 1.8 of Debian 13. Debian 12's cannot read tars.
pub struct ErofsUtils {
    root: PathBuf,
}

/// What they need to run beside another release's libraries.
const PACKAGES: [&str; 11] = [
    "erofs-utils",
    "libc6",
    "libdeflate0",
    "liblz4-1",
    "liblzma5",
    "libpcre2-8-0",
    "libselinux1",
    "libuuid1",
    "libxxhash0",
    "libzstd1",
    "zlib1g",
];

impl ErofsUtils {
    /// Fetches the packages with apt into a directory of their own, once; `Err` says why it cannot.
    pub fn get() -> Result<&'static ErofsUtils, String> {
        static TOOLS: OnceLock<Result<ErofsUtils, String>> = OnceLock::new();
        TOOLS.get_or_init(fetch).as_ref().map_err(String::clone)
    }

    /// `mkfs.erofs`, `fsck.erofs` or `dump.erofs`, run with its own libraries.
    pub fn command(&self, tool: &str) -> Command {
        let libraries = self.root.join("usr/lib/x86_64-linux-gnu");
        let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(&libraries).arg(self.root.join("usr/bin").join(tool));
        command
    }

    /// Makes the index that the reference makes.
    pub fn index(&self, tar: &Path, index: &Path) {
        run(self.command("mkfs.erofs").args(["--quiet", "--tar=i"]).arg(index).arg(tar));
    }
}

fn fetch() -> Result<ErofsUtils, String> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("erofs-utils-debian13");
    let root = cache.join("root");
    if root.exists() {
        return Ok(ErofsUtils { root });
    }
    let fresh = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|error| error.to_string())?;
    download(fresh.path())?;
    for package in fresh.path().join("debs").read_dir().map_err(|error| error.to_string())? {
        let package = package.map_err(|error| error.to_string())?.path();
        try_run(Command::new("dpkg-deb").arg("-x").arg(package).arg(fresh.path().join("root")))?;
    }
    // Another test may have been faster.
    let _ = std::fs::create_dir_all(&cache);
    let _ = std::fs::rename(fresh.path().join("root"), &root);
    if root.exists() { Ok(ErofsUtils { root }) } else { Err("cannot keep erofs-utils".into()) }
}

/// Lets apt keep its books of the other release in `directory`, away from the machine's own.
fn download(directory: &Path) -> Result<(), String> {
    for part in ["lists/partial", "cache/archives/partial", "debs"] {
        std::fs::create_dir_all(directory.join(part)).map_err(|error| error.to_string())?;
    }
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let source = format!("deb [signed-by={keyring}] {} trixie main\n", mirror()?);
    std::fs::write(directory.join("sources.list"), source).map_err(|error| error.to_string())?;
    let apt = || {
        let mut command = Command::new("apt-get");
        let path = directory.display();
        for option in [
            format!("Dir::Etc::sourcelist={path}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".into(),
            format!("Dir::State::lists={path}/lists"),
            format!("Dir::Cache={path}/cache"),
            "Acquire::Languages=none".into(),
            "APT::Sandbox::User=root".into(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    };
    try_run(apt().args(["-qq", "update"]))?;
    try_run(apt().current_dir(directory.join("debs")).args(["-qq", "download"]).args(PACKAGES))
}

/// Where this machine gets Debian from.
fn mirror() -> Result<String, String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(ORIGIN) $(RELEASE) $(REPO_URI)", "Created-By: Packages"])
        .output()
        .map_err(|error| format!("apt-get: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut main = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (origin, release, uri) = (words.next()?, words.next()?, words.next()?);
        (origin == "Debian" && !release.contains('-')).then(|| uri.to_owned())
    });
    main.next_back().ok_or_else(|| "apt knows no Debian release: run `apt-get update`".into())
}

fn try_run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}
