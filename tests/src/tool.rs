//! Programs of other people: run to their end, or the test fails with all that they said.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where Debian keeps programs for administrators, which a user's PATH may lack.
const ADMINISTRATION: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Characters of a command in a message; a script is longer.
const COMMAND_SHOWN: usize = 300;

/// The program's file, as the shell would find it.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(ADMINISTRATION.map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// A command whose program is found like [`find`] does.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(find(name).unwrap_or_else(|| name.into()));
    command.stdin(Stdio::null());
    command
}

/// Runs a program; returns what it printed.
///
/// # Panics
/// When it cannot be started or fails.
pub fn run<A: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = A>) -> String {
    check(command(name).args(arguments))
}

/// The same in a directory.
pub fn run_in<A: AsRef<OsStr>>(folder: &Path, name: &str, arguments: impl IntoIterator<Item = A>) -> String {
    check(command(name).args(arguments).current_dir(folder))
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started or fails.
pub fn check(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let shown: String = format!("{command:?}").chars().take(COMMAND_SHOWN).collect();
    assert!(output.status.success(), "{shown}: {}\n{said}{complained}", output.status);
    said.into_owned()
}

/// Runs a script with `sh -eu` in a directory; the arguments are `$1`, `$2` and so on.
///
/// # Panics
/// When it fails.
pub fn shell<A: AsRef<OsStr>>(folder: &Path, script: &str, arguments: impl IntoIterator<Item = A>) -> String {
    let mut command = command("sh");
    command.args(["-eu", "-c", script, "sh"]).args(arguments).current_dir(folder).env("LC_ALL", "C");
    check(&mut command)
}
