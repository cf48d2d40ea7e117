//! Debian packages that a command needs: looked up first, installed only when missing.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Makes sure that every package of `names` is installed, as root or through sudo.
///
/// # Errors
/// Without the rights to install, the error names the one command to type.
pub fn ensure(names: &[&str]) -> anyhow::Result<()> {
    let missing = missing(names, &installed(names)?);
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("packages: installing {}", missing.join(" "));
    let prefix: &[&str] = match rights()? {
        Rights::Root => &[],
        Rights::Sudo => &["sudo", "--preserve-env=DEBIAN_FRONTEND"],
        Rights::None => bail!(
            "missing Debian packages, and no right to install them. Type:\n  su -c 'apt-get update && apt-get install \
             --yes --no-install-recommends {}'",
            missing.join(" ")
        ),
    };
    apt_get(prefix, &["update", "--quiet=2"])?;
    apt_get(prefix, &[&["install", "--quiet=2", "--yes", "--no-install-recommends"], &missing[..]].concat())?;
    let still = self::missing(names, &installed(names)?);
    if still.is_empty() { Ok(()) } else { bail!("apt-get succeeded but did not install {}", still.join(" ")) }
}

/// The installed version of a package, as dpkg writes it.
pub fn version(name: &str) -> anyhow::Result<String> {
    let output = dpkg_query("${Version}", &[name])?;
    let version = output.trim();
    if version.is_empty() { bail!("package {name} is not installed") } else { Ok(version.to_owned()) }
}

/// `names` without those that a `dpkg-query` listing of names and states shows as installed.
fn missing<'a>(names: &[&'a str], listing: &str) -> Vec<&'a str> {
    let installed: BTreeSet<&str> = listing
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, state)| *state == "installed")
        .map(|(name, _)| name)
        .collect();
    names.iter().filter(|name| !installed.contains(*name)).copied().collect()
}

fn installed(names: &[&str]) -> anyhow::Result<String> {
    dpkg_query("${Package} ${db:Status-Status}\n", names)
}

/// Unknown packages make dpkg-query complain and exit with 1; they are simply not in its answer.
fn dpkg_query(format: &str, names: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("dpkg-query")
        .arg("--show")
        .arg(format!("--showformat={format}"))
        .args(names)
        .env("LC_ALL", "C")
        .stderr(Stdio::null())
        .output()
        .with_context(|| {
            format!(
                "cannot run dpkg-query: this is not a Debian system. Install by other means: {}",
                names.join(" ")
            )
        })?;
    match output.status.code() {
        Some(0 | 1) => {
            Ok(String::from_utf8(output.stdout).context("dpkg-query answered in another encoding")?)
        }
        _ => bail!("dpkg-query failed: {}", output.status),
    }
}

enum Rights {
    Root,
    Sudo,
    None,
}

fn rights() -> anyhow::Result<Rights> {
    if std::fs::metadata("/proc/self").context("cannot look at /proc/self")?.uid() == 0 {
        return Ok(Rights::Root);
    }
    // Without a terminal sudo must not wait for a password that nobody types.
    let ask: &[&str] = if io::stdin().is_terminal() { &["-v"] } else { &["-n", "true"] };
    let sudo = Command::new("sudo").args(ask).stdout(Stdio::null()).status();
    Ok(if sudo.is_ok_and(|status| status.success()) { Rights::Sudo } else { Rights::None })
}

/// Runs apt-get without questions, waiting for another apt-get to end, with its output on stderr.
fn apt_get(prefix: &[&str], arguments: &[&str]) -> anyhow::Result<()> {
    let line = [prefix, &["apt-get", "--option=DPkg::Lock::Timeout=600"], arguments].concat();
    let (program, rest) = line.split_first().context("an empty command")?;
    let status = Command::new(program)
        .args(rest)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(io::stderr().as_fd().try_clone_to_owned().context("cannot duplicate stderr")?)
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    if status.success() { Ok(()) } else { bail!("`{}` failed: {status}", line.join(" ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packages_in_state_installed_count() {
        let listing = "gcc installed\nflex not-installed\nbison config-files\nbc half-configured\n";
        let cases: [(&[&str], &[&str]); 4] = [
            (&["gcc"], &[]),
            (&["gcc", "flex", "bison", "bc"], &["flex", "bison", "bc"]),
            (&["gcc-12"], &["gcc-12"]),
            (&[], &[]),
        ];
        for (wanted, expected) in cases {
            assert_eq!(missing(wanted, listing), expected, "{wanted:?}");
        }
    }

    #[test]
    fn dpkg_knows_itself_and_not_an_invented_package() {
        let names = ["dpkg", "nacre-no-such-package"];
        match installed(&names) {
            Ok(listing) => assert_eq!(missing(&names, &listing), ["nacre-no-such-package"]),
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "{error:#}");
                eprintln!("skipped: {error:#}");
            }
        }
    }
}
