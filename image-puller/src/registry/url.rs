//! The few URLs a registry's client meets: its own, a token endpoint's, a redirect's. RFC 3986 without user info.

use std::fmt;

/// Longest URL in bytes: signed ones of object stores come to some 2 KiB.
pub const URL_BYTES_MAX: usize = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

/// Who is spoken to: what a credential, a kept connection and a redirect are judged by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    pub scheme: Scheme,
    /// Lower case, no brackets around an IPv6 literal.
    pub host: String,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    pub origin: Origin,
    /// Path and query, beginning with `/`.
    pub target: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("URL is longer than {URL_BYTES_MAX} bytes")]
    TooLong,
    #[error("URL is neither http nor https")]
    Scheme,
    #[error("URL carries user information")]
    UserInfo,
    #[error("URL's host is not a host name or IP address")]
    Host,
    #[error("URL's port is not a number from 1 to 65535")]
    Port,
    #[error("URL has a character that must be escaped")]
    Character,
}

impl Scheme {
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

impl Origin {
    pub fn new(scheme: Scheme, host: &str, port: Option<u16>) -> Self {
        let port = port.unwrap_or_else(|| scheme.default_port());
        Self { scheme, host: host.to_ascii_lowercase(), port }
    }

    /// `host[:port]` as a `Host` field has it: the scheme's own port is left out.
    pub fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match self.port == self.scheme.default_port() {
            true => host,
            false => format!("{host}:{}", self.port),
        }
    }
}

impl Url {
    pub fn new(origin: Origin, target: String) -> Self {
        Self { origin, target }
    }

    pub fn parse(text: &str) -> Result<Self, UrlError> {
        if text.len() > URL_BYTES_MAX {
            return Err(UrlError::TooLong);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(UrlError::Scheme),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (host, port) = split_authority(authority)?;
        let target = match target.starts_with('/') {
            true => target.to_owned(),
            false => format!("/{target}"),
        };
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(UrlError::Character);
        }
        Ok(Self { origin: Origin::new(scheme, host, port), target })
    }

    /// Where a `Location` field leads from here (RFC 3986 section 5.2, dot segments left to the server).
    pub fn resolve(&self, location: &str) -> Result<Self, UrlError> {
        let base = format!("{}://{}", self.origin.scheme.name(), self.origin.authority());
        let has_scheme =
            location.find("://").is_some_and(|at| location.find(['/', '?']).is_none_or(|mark| at < mark));
        if has_scheme {
            Self::parse(location)
        } else if location.starts_with("//") {
            Self::parse(&format!("{}:{location}", self.origin.scheme.name()))
        } else if location.starts_with('/') {
            Self::parse(&format!("{base}{location}"))
        } else {
            let path = self.target.split('?').next().unwrap_or_default();
            let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
            Self::parse(&format!("{base}{directory}/{location}"))
        }
    }
}

/// Without the query: that of a signed URL is a credential.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.target.split('?').next().unwrap_or_default();
        write!(f, "{}://{}{}", self.origin.scheme.name(), self.origin.authority(), path)
    }
}

pub fn split_authority(authority: &str) -> Result<(&str, Option<u16>), UrlError> {
    if authority.contains('@') {
        return Err(UrlError::UserInfo);
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(inner) => {
            let (host, rest) = inner.split_once(']').ok_or(UrlError::Host)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| UrlError::Host)?;
            match (rest, rest.strip_prefix(':')) {
                ("", _) => (host, None),
                (_, Some(port)) => (host, Some(port)),
                _ => return Err(UrlError::Host),
            }
        }
        None => {
            let (host, port) =
                authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
            if host.is_empty() || host.len() > 253 || !host.bytes().all(allowed) {
                return Err(UrlError::Host);
            }
            (host, port)
        }
    };
    match port {
        None | Some("") => Ok((host, None)),
        Some(port) => match port.parse() {
            Ok(number) if number != 0 && port.bytes().all(|byte| byte.is_ascii_digit()) => {
                Ok((host, Some(number)))
            }
            _ => Err(UrlError::Port),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_come_apart() {
        for (text, scheme, host, port, target) in [
            ("https://A.b/c?d=e#f", Scheme::Https, "a.b", 443, "/c?d=e"),
            ("http://a:8080", Scheme::Http, "a", 8080, "/"),
            ("HTTP://a?x", Scheme::Http, "a", 80, "/?x"),
            ("https://[::1]:5/", Scheme::Https, "::1", 5, "/"),
            ("https://a:/b", Scheme::Https, "a", 443, "/b"),
        ] {
            let url = Url::parse(text).unwrap();
            let origin = Origin { scheme, host: host.into(), port };
            assert_eq!(url, Url { origin, target: target.into() }, "{text}");
        }
    }

    #[test]
    fn odd_urls_are_refused() {
        let long = format!("http://a/{}", "x".repeat(URL_BYTES_MAX));
        for (text, error) in [
            ("a/b", UrlError::Scheme),
            ("ftp://a", UrlError::Scheme),
            ("http:///a", UrlError::Host),
            ("http://a b/", UrlError::Host),
            ("http://[::g]/", UrlError::Host),
            ("http://[::1]x/", UrlError::Host),
            ("http://user@a/", UrlError::UserInfo),
            ("http://a:0/", UrlError::Port),
            ("http://a:+1/", UrlError::Port),
            ("http://a:65536/", UrlError::Port),
            ("http://a/b c", UrlError::Character),
            ("http://a/b\r\nX: y", UrlError::Character),
            ("http://a/é", UrlError::Character),
            (&long, UrlError::TooLong),
        ] {
            assert_eq!(Url::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_location_resolves_against_where_it_was_said() {
        let base = Url::parse("https://a.b:5000/v2/x/blobs/y?z").unwrap();
        for (location, resolved) in [
            ("http://c/d", "http://c/d"),
            ("//c/d", "https://c/d"),
            ("/d?e", "https://a.b:5000/d?e"),
            ("d", "https://a.b:5000/v2/x/blobs/d"),
            ("/d?to=http://x/", "https://a.b:5000/d?to=http://x/"),
        ] {
            assert_eq!(base.resolve(location), Url::parse(resolved), "{location}");
        }
        assert_eq!(base.to_string(), "https://a.b:5000/v2/x/blobs/y");
    }
}
