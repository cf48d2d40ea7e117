//! Image references, read and completed as docker does it.
//!
//! Grammar and defaults follow the `distribution/reference` conventions that every container tool shares:
//! `[domain/]path[:tag][@digest]`, where a first component without a dot, a colon or an upper-case letter that
//! is not `localhost` belongs to the path, the domain is then `docker.io`, and a one-part path there means
//! `library/<path>`.

pub mod digest;

use std::fmt;

use digest::{Digest, DigestError};

/// Longest whole reference in bytes: domain, path, tag and digest with room to spare.
pub const REFERENCE_BYTES_MAX: usize = 1024;
/// Longest repository path in bytes.
pub const PATH_BYTES_MAX: usize = 255;
/// Longest domain in bytes (a DNS name's limit), port not counted.
pub const DOMAIN_BYTES_MAX: usize = 253;
/// Longest tag in bytes.
pub const TAG_BYTES_MAX: usize = 128;

pub const DEFAULT_DOMAIN: &str = "docker.io";
pub const DEFAULT_TAG: &str = "latest";

/// A complete reference: nothing left to guess.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Host and optional port as written, `[...]` around an IPv6 literal.
    pub domain: String,
    pub path: String,
    /// Absent only if there is a digest.
    pub tag: Option<String>,
    /// Decides what is fetched; the tag is then only a name.
    pub digest: Option<Digest>,
}

/// Where a repository is: a reference without tag and digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub domain: String,
    pub path: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("image reference is empty")]
    Empty,
    #[error("image reference is {0} bytes long, the limit is {REFERENCE_BYTES_MAX}")]
    TooLong(usize),
    #[error("image reference is a bare 64-digit id; write NAME@sha256:ID")]
    BareId,
    #[error("domain {0:?} is not a host name, IP address or [IPv6 address]")]
    Domain(String),
    #[error("domain {0:?} has a port that is not a number from 1 to 65535")]
    Port(String),
    #[error("domain is {0} bytes long, the limit is {DOMAIN_BYTES_MAX}")]
    DomainTooLong(usize),
    #[error("repository path {0:?} must be lower case")]
    UpperCase(String),
    #[error(
        "repository path {0:?} is not made of a-z 0-9 parts joined by '/', with single '.', '_', '__' or '-' inside"
    )]
    Path(String),
    #[error("repository path is {0} bytes long, the limit is {PATH_BYTES_MAX}")]
    PathTooLong(usize),
    #[error("tag {0:?} is not up to {TAG_BYTES_MAX} of A-Z a-z 0-9 _ . - beginning with none of '.' and '-'")]
    Tag(String),
    #[error("digest {0:?} {1}")]
    Digest(String, DigestError),
}

impl Reference {
    /// Reads a reference as a person writes it.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > REFERENCE_BYTES_MAX {
            return Err(ReferenceError::TooLong(text.len()));
        }
        if Digest::from_hex(text).is_ok() {
            return Err(ReferenceError::BareId);
        }
        let (domain, rest) = split_domain(text);
        check_domain(domain)?;
        let (name, digest) = match rest.split_once('@') {
            Some((name, digest)) => (name, Some(parse_digest(digest)?)),
            None => (rest, None),
        };
        let (path, tag) = match name.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (name, None),
        };
        let path = complete_path(domain, path)?;
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let tag = tag.or_else(|| digest.is_none().then_some(DEFAULT_TAG)).map(str::to_owned);
        Ok(Self { domain: domain.to_owned(), path, tag, digest })
    }

    /// What stands last in a manifest's URL: the digest if there is one, else the tag.
    pub fn manifest_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    pub fn location(&self) -> Location {
        Location { domain: self.domain.clone(), path: self.path.clone() }
    }
}

impl Location {
    /// Reads `host[:port]/path`, completed as a reference is.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        // With a tag behind it, one that is there already cannot be one.
        Ok(Reference::parse(&format!("{text}:{DEFAULT_TAG}"))?.location())
    }

    /// The host, `[` and `]` removed, and the port if one was written.
    pub fn host_and_port(&self) -> (&str, Option<u16>) {
        split_port(&self.domain)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Splits `host[:port]`; the brackets of an IPv6 literal are removed. A port that is no number is taken as absent:
/// `check_domain` has refused it before.
fn split_port(domain: &str) -> (&str, Option<u16>) {
    if let Some(inner) = domain.strip_prefix('[') {
        let (host, rest) = inner.split_once(']').unwrap_or((inner, ""));
        return (host, rest.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match domain.split_once(':') {
        Some((host, port)) => (host, port.parse().ok()),
        None => (domain, None),
    }
}

fn split_domain(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest)) if looks_like_domain(first) => {
            // The name of docker's first index is still written at times.
            (if first == "index.docker.io" { DEFAULT_DOMAIN } else { first }, rest)
        }
        _ => (DEFAULT_DOMAIN, text),
    }
}

fn looks_like_domain(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn complete_path(domain: &str, path: &str) -> Result<String, ReferenceError> {
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(ReferenceError::UpperCase(path.to_owned()));
    }
    if path.is_empty() || !path.split('/').all(is_path_component) {
        return Err(ReferenceError::Path(path.to_owned()));
    }
    let complete = match domain == DEFAULT_DOMAIN && !path.contains('/') {
        true => format!("library/{path}"),
        false => path.to_owned(),
    };
    match complete.len() > PATH_BYTES_MAX {
        true => Err(ReferenceError::PathTooLong(complete.len())),
        false => Ok(complete),
    }
}

/// `[a-z0-9]+` runs joined by one of `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_separator = |c: char| matches!(c, '.' | '_' | '-');
    let separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let separators_hold = separators
        .filter(|between| !between.is_empty())
        .all(|between| matches!(between, "." | "_" | "__") || between.bytes().all(|byte| byte == b'-'));
    !component.is_empty()
        && separators_hold
        && !component.starts_with(is_separator)
        && !component.ends_with(is_separator)
}

fn check_domain(domain: &str) -> Result<(), ReferenceError> {
    let (host, port) = match domain.strip_prefix('[') {
        Some(inner) => {
            let (host, rest) =
                inner.split_once(']').ok_or_else(|| ReferenceError::Domain(domain.to_owned()))?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(ReferenceError::Domain(domain.to_owned()));
            }
            match rest.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None if rest.is_empty() => (None, None),
                None => return Err(ReferenceError::Domain(domain.to_owned())),
            }
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    if let Some(host) = host {
        if host.len() > DOMAIN_BYTES_MAX {
            return Err(ReferenceError::DomainTooLong(host.len()));
        }
        if !host.split('.').all(is_domain_component) {
            return Err(ReferenceError::Domain(domain.to_owned()));
        }
    }
    match port {
        Some(port) if !is_port(port) => Err(ReferenceError::Port(domain.to_owned())),
        _ => Ok(()),
    }
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn is_domain_component(component: &str) -> bool {
    !component.is_empty()
        && component.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !component.starts_with('-')
        && !component.ends_with('-')
}

fn check_tag(tag: &str) -> Result<(), ReferenceError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let valid = !tag.is_empty()
        && tag.len() <= TAG_BYTES_MAX
        && tag.bytes().all(allowed)
        && !tag.starts_with(['.', '-']);
    if valid { Ok(()) } else { Err(ReferenceError::Tag(tag.to_owned())) }
}

fn parse_digest(text: &str) -> Result<Digest, ReferenceError> {
    Digest::parse(text).map_err(|error| ReferenceError::Digest(text.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_complete_as_docker_completes_them() {
        let digest = format!("busybox@sha256:{ID}");
        let tag_and_digest = format!("a.b/c:1@sha256:{ID}");
        for (text, complete) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("docker.io/library/busybox", "docker.io/library/busybox:latest"),
            ("user/image", "docker.io/user/image:latest"),
            ("a/b/c", "docker.io/a/b/c:latest"),
            ("localhost/image", "localhost/image:latest"),
            ("localhost:5000/image", "localhost:5000/image:latest"),
            ("localhost", "docker.io/library/localhost:latest"),
            ("quay.io/a/b:v1.2_x-Y", "quay.io/a/b:v1.2_x-Y"),
            ("registry:5000", "docker.io/library/registry:5000"),
            ("registry:5000/a", "registry:5000/a:latest"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
            ("[::1]/a", "[::1]/a:latest"),
            ("[2001:db8::1]:5000/a:b", "[2001:db8::1]:5000/a:b"),
            ("HOST/a", "HOST/a:latest"),
            ("Reg.Example.COM/a", "Reg.Example.COM/a:latest"),
            ("a--b__c_d/e.f-g", "docker.io/a--b__c_d/e.f-g:latest"),
            ("xn--bcher-kva.example/a", "xn--bcher-kva.example/a:latest"),
            ("busybox:Latest", "docker.io/library/busybox:Latest"),
            (&digest, &format!("docker.io/library/{digest}")),
            (&tag_and_digest, &tag_and_digest),
        ] {
            let reference = Reference::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(reference.to_string(), complete, "{text}");
            assert_eq!(Reference::parse(complete), Ok(reference), "{complete} again");
        }
    }

    #[test]
    fn a_refusal_names_the_field() {
        let long_path = format!("a.b/{}", "a".repeat(256));
        let long_tag = format!("a:{}", "t".repeat(129));
        let upper_digest = format!("a@sha256:{}", ID.to_uppercase());
        let two_digests = format!("a@sha256:{ID}@sha256:{ID}");
        let with_scheme = "https://a.b/c";
        for (text, field) in [
            ("", "image reference"),
            (ID, "image reference"),
            ("Busybox", "repository path"),
            ("a.b/Busybox", "repository path"),
            ("a//b", "repository path"),
            ("a/", "repository path"),
            ("/a", "repository path"),
            ("a.b/", "repository path"),
            ("a___b", "repository path"),
            ("a..b", "repository path"),
            ("a.-b", "repository path"),
            ("-a", "repository path"),
            ("a-", "repository path"),
            ("a b", "repository path"),
            ("aé", "repository path"),
            ("a\n", "repository path"),
            (&long_path, "repository path"),
            ("a:", "tag"),
            ("a:-b", "tag"),
            ("a:b c", "tag"),
            ("a:b/c:d", "domain"),
            (&long_tag, "tag"),
            ("a@", "digest"),
            ("a@sha256:12", "digest"),
            ("a@sha512:12", "digest"),
            (&upper_digest, "digest"),
            (&two_digests, "digest"),
            ("-a.b/c", "domain"),
            ("a..b/c", "domain"),
            ("a.b:x/c", "domain"),
            ("a.b:/c", "domain"),
            ("a.b:0/c", "domain"),
            ("a.b:65536/c", "domain"),
            ("a.b:+5/c", "domain"),
            ("[::1/c", "domain"),
            ("[::g]/c", "domain"),
            ("[::1]5/c", "domain"),
            ("user:password@a.b/c", "domain"),
            (with_scheme, "domain"),
            ("../c", "domain"),
        ] {
            let error = Reference::parse(text).expect_err(text).to_string();
            assert!(error.starts_with(field), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_path_limit_counts_the_completed_path_alone() {
        let path = |length: usize| format!("{}/{}", "a".repeat(127), "b".repeat(length - 128));
        assert!(Reference::parse(&format!("very.long.example.com:5000/{}", path(255))).is_ok());
        assert_eq!(Reference::parse(&path(256)), Err(ReferenceError::PathTooLong(256)));
        assert_eq!(Reference::parse(&"a".repeat(250)), Err(ReferenceError::PathTooLong(258)));
    }

    #[test]
    fn hosts_and_ports_come_apart() {
        for (text, host, port) in [
            ("a", "docker.io", None),
            ("h:5/a", "h", Some(5)),
            ("[::1]/a", "::1", None),
            ("[::1]:65535/a", "::1", Some(65535)),
        ] {
            let location = Reference::parse(text).unwrap().location();
            assert_eq!(location.host_and_port(), (host, port), "{text}");
        }
    }

    #[test]
    fn a_location_has_neither_tag_nor_digest() {
        let location = Location::parse("mirror.example:5000/a/b").unwrap();
        assert_eq!((location.domain.as_str(), location.path.as_str()), ("mirror.example:5000", "a/b"));
        assert_eq!(Location::parse("busybox").unwrap().path, "library/busybox");
        let digest = format!("a.b/c@sha256:{ID}");
        for text in ["", "a.b/c:1", "a.b/", &digest] {
            assert!(Location::parse(text).is_err(), "{text}");
        }
    }
}
