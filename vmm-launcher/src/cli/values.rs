//! Values of options: read here, once, into what the rest of the program works with.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::sandbox::Publish;
use crate::sandbox::spec::{SeccompChoice, signal_number};

/// Smallest memory limit, in bytes: below it nothing starts (docker's bound, too).
const MEMORY_MIN: u64 = 6 * 1024 * 1024;
/// Smallest share of a processor.
const CPUS_MIN: f64 = 0.01;
const CPUS_MAX: f64 = 1024.0;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeArg {
    pub host: PathBuf,
    pub container: String,
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScratchArg {
    /// In bytes.
    Disk(u64),
    Tmpfs,
}

/// `--bound`: a word of the guest's manifest. The guest judges the value, and does not boot with one that it does not understand.
pub fn bound(text: &str) -> Result<String, String> {
    const WORDS: [&str; 5] = ["containers", "capabilities", "storage", "images", "allow"];
    let known = text.split_once('=').is_some_and(|(word, _)| WORDS.contains(&word));
    if known && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"') {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not WORD=VALUE with a word of {}", WORDS.join(", ")))
    }
}

pub type PublishArg = Publish;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    Seccomp(SeccompChoice),
    NoNewPrivileges,
}

/// `512m`, `1.5g`, `1048576`, `64MiB`: a number of bytes with an optional unit of 1024.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size such as 512m or 2g");
    let lower = text.to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let factor: u64 = match unit {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(wrong);
    }
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let value = number * factor as f64;
    if value.is_finite() && value < u64::MAX as f64 { Ok(value as u64) } else { Err(wrong()) }
}

/// A memory size.
pub fn size(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        small if small < MEMORY_MIN => Err(format!("{text} is less than 6m, with which nothing starts")),
        enough => Ok(enough),
    }
}

/// Bytes as MiB, rounded up.
pub fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX)
}

pub fn scratch(text: &str) -> Result<ScratchArg, String> {
    if text == "tmpfs" { Ok(ScratchArg::Tmpfs) } else { bytes(text).map(ScratchArg::Disk) }
}

pub fn cpus(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (CPUS_MIN..=CPUS_MAX).contains(&number) => Ok(number),
        _ => Err(format!("{text:?} is not a number of processors from {CPUS_MIN} to {CPUS_MAX}")),
    }
}

pub fn pids(text: &str) -> Result<i64, String> {
    match text.parse::<i64>() {
        Ok(number) if number > 0 || number == -1 => Ok(number),
        _ => Err(format!("{text:?} is neither a number above 0 nor -1")),
    }
}

pub fn signal(text: &str) -> Result<u32, String> {
    signal_number(text).ok_or_else(|| format!("{text:?} is no signal"))
}

/// `HOST:CONTAINER[:ro|:rw]`.
pub fn volume(text: &str) -> Result<VolumeArg, String> {
    let (rest, read_only) = match text.rsplit_once(':') {
        Some((rest, "ro")) => (rest, true),
        Some((rest, "rw")) => (rest, false),
        _ => (text, false),
    };
    let Some((host, container)) = rest.rsplit_once(':') else {
        return Err("named volumes do not exist here; write HOST:CONTAINER[:ro]".into());
    };
    if host.is_empty() {
        return Err("the host's directory is missing".into());
    }
    if !container.starts_with('/') || container == "/" || container.split('/').any(|part| part == "..") {
        return Err(format!("{container:?} is not an absolute directory beneath the container's root"));
    }
    Ok(VolumeArg { host: host.into(), container: container.trim_end_matches('/').to_owned(), read_only })
}

/// `[ADDRESS:]HOST:CONTAINER[/tcp|/udp]`.
pub fn publish(text: &str) -> Result<PublishArg, String> {
    let wrong = || format!("{text:?} is not [ADDRESS:]HOST:CONTAINER[/udp]");
    let (ports, udp) = match text.rsplit_once('/') {
        Some((ports, "udp")) => (ports, true),
        Some((ports, "tcp")) => (ports, false),
        Some(_) => return Err(wrong()),
        None => (text, false),
    };
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
    let (rest, guest) = ports.rsplit_once(':').ok_or_else(wrong)?;
    let (address, host) = match rest.rsplit_once(':') {
        None => (Ipv4Addr::UNSPECIFIED, rest),
        Some((address, host)) => (address.parse().map_err(|_| wrong())?, host),
    };
    Ok(Publish { address, host: port(host)?, guest: port(guest)?, udp })
}

pub fn security(text: &str) -> Result<Security, String> {
    let (key, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
    match (key, value) {
        ("no-new-privileges", "" | "true") => Ok(Security::NoNewPrivileges),
        ("seccomp", "unconfined") => Ok(Security::Seccomp(SeccompChoice::Unconfined)),
        ("seccomp", "" | "builtin") => Ok(Security::Seccomp(SeccompChoice::Default)),
        ("seccomp", file) => Ok(Security::Seccomp(SeccompChoice::File(file.into()))),
        _ => Err(format!("{text:?} is none of seccomp=unconfined, seccomp=FILE, no-new-privileges")),
    }
}

/// A directory in the container.
pub fn directory(text: &str) -> Result<String, String> {
    match text.starts_with('/') {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not absolute: a working directory begins with /")),
    }
}

/// What Go calls the architectures of Linux, and images with it.
const ARCHITECTURES: [&str; 14] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le",
    "riscv64", "s390x", "wasm",
];

/// `OS/ARCHITECTURE[/VARIANT]`, or an architecture alone.
pub fn platform(text: &str) -> Result<(String, String, String), String> {
    let parts: Vec<_> = text.split('/').collect();
    let (os, architecture, variant) = match parts.as_slice() {
        [architecture] => ("linux", *architecture, ""),
        [os, architecture] => (*os, *architecture, ""),
        [os, architecture, variant] => (*os, *architecture, *variant),
        _ => return Err(format!("{text:?} is not OS/ARCHITECTURE[/VARIANT]")),
    };
    let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if os.is_empty() || architecture.is_empty() || !plain(os) || !plain(architecture) || !plain(variant) {
        return Err(format!("{text:?} is not OS/ARCHITECTURE[/VARIANT]"));
    }
    // As docker takes them, too.
    let architecture = match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "i386" => "386",
        other => other,
    };
    if os != "linux" {
        return Err(format!("{text:?}: there is no {os:?} in a sandbox, only linux"));
    }
    if !ARCHITECTURES.contains(&architecture) {
        return Err(format!("{text:?}: no architecture is called {architecture:?}"));
    }
    Ok((os.into(), architecture.into(), variant.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, expected) in [
            ("1048576", Some(1 << 20)),
            ("512m", Some(512 << 20)),
            ("512M", Some(512 << 20)),
            ("64MiB", Some(64 << 20)),
            ("1.5g", Some(3 << 29)),
            ("2t", Some(2 << 40)),
            ("", None),
            ("m", None),
            ("12x", None),
            ("1.2.3m", None),
            ("-1", None),
            ("99999999999999999999", None),
            ("18446744073709551615g", None),
        ] {
            assert_eq!(bytes(text).ok(), expected, "{text:?}");
        }
        assert!(size("1m").is_err());
        assert_eq!(scratch("tmpfs"), Ok(ScratchArg::Tmpfs));
        assert_eq!(scratch("1g"), Ok(ScratchArg::Disk(1 << 30)));
    }

    #[test]
    fn volumes_are_a_host_and_a_container_directory() {
        for (text, expected) in [
            ("/a:/b", Some(("/a", "/b", false))),
            ("/a:/b:ro", Some(("/a", "/b", true))),
            ("./a:/b/:rw", Some(("./a", "/b", false))),
            ("/a:b:/c", Some(("/a:b", "/c", false))),
            ("/a", None),
            ("/a:b", None),
            ("/a:/", None),
            ("/a:/b/../c", None),
            (":/b", None),
        ] {
            let found = volume(text).ok();
            let found = found.as_ref().map(|v| (v.host.to_str().unwrap(), v.container.as_str(), v.read_only));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn ports_are_published_with_address_and_protocol() {
        let publish =
            |text| super::publish(text).ok().map(|p| (p.address.to_string(), p.host, p.guest, p.udp));
        for (text, expected) in [
            ("8080:80", Some(("0.0.0.0".to_owned(), 8080, 80, false))),
            ("8080:80/udp", Some(("0.0.0.0".to_owned(), 8080, 80, true))),
            ("127.0.0.1:8080:80/tcp", Some(("127.0.0.1".to_owned(), 8080, 80, false))),
            ("[::1]:1:2", None),
            ("80", None),
            ("0:80", None),
            ("80:99999", None),
            ("host:80:80", None),
            ("80:80/sctp", None),
        ] {
            assert_eq!(publish(text), expected, "{text}");
        }
    }

    #[test]
    fn other_values_are_checked() {
        assert_eq!(cpus("1.5"), Ok(1.5));
        assert!(cpus("0").is_err() && cpus("nan").is_err() && cpus("x").is_err());
        assert_eq!(pids("-1"), Ok(-1));
        assert!(pids("0").is_err() && pids("-2").is_err());
        assert_eq!(platform("arm64").unwrap(), ("linux".into(), "arm64".into(), String::new()));
        assert_eq!(platform("linux/arm/v7").unwrap().2, "v7");
        assert_eq!(platform("linux/x86_64").unwrap().1, "amd64");
        assert!(platform("linux/foo").is_err() && platform("windows/amd64").is_err());
        assert!(directory("/a").is_ok() && directory("a").is_err() && directory("").is_err());
        assert!(platform("a/b/c/d").is_err() && platform("/").is_err() && platform("").is_err());
        assert_eq!(security("no-new-privileges"), Ok(Security::NoNewPrivileges));
        assert_eq!(security("seccomp=unconfined"), Ok(Security::Seccomp(SeccompChoice::Unconfined)));
        assert!(security("apparmor=x").is_err());
    }
}
