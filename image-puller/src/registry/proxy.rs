//! Ways through a proxy: HTTP's `CONNECT` (RFC 9110 section 9.3.6) and SOCKS version 5 (RFC 1928, passwords by RFC 1929).
//! Which requests go through one is said by scheme, and by a list of exceptions as `NO_PROXY` has it.

use std::io::{self, Read, Write};
use std::net::IpAddr;

use super::auth;
use super::http::Head;
use super::url::{Origin, Scheme};

/// Largest answer of a proxy to `CONNECT`, in bytes.
const CONNECT_HEAD_BYTES_MAX: usize = 16 << 10;
/// Longest user name, password and host name that SOCKS can carry, in bytes.
const SOCKS_WORD_BYTES_MAX: usize = 255;
/// Most exceptions.
pub const EXCEPTIONS_MAX: usize = 256;

/// Which proxy serves which requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For plain http and for https.
    pub http: Option<Proxy>,
    pub https: Option<Proxy>,
    pub exceptions: Vec<Exception>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub kind: Kind,
    /// Without brackets.
    pub host: String,
    pub port: u16,
    login: Option<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Http,
    /// HTTP inside TLS.
    Https,
    /// Names are resolved here (`socks5`) or there (`socks5h`).
    Socks5 {
        resolves: bool,
    },
}

/// Who is spoken to directly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exception {
    Everybody,
    /// A domain and all below it; alone below it if it was written with a leading dot. With a port, on that alone.
    Domain {
        name: String,
        itself: bool,
        port: Option<u16>,
    },
    Network {
        address: IpAddr,
        prefix: u8,
        port: Option<u16>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxySettingError {
    #[error("proxy is no URL of the kinds http://, https://, socks5:// and socks5h://")]
    Scheme,
    #[error("proxy's host or port cannot be read")]
    Address,
    #[error("proxy's user or password is malformed, or longer than {SOCKS_WORD_BYTES_MAX} bytes")]
    Login,
    #[error("exceptions from the proxy: more than {EXCEPTIONS_MAX}")]
    TooManyExceptions,
}

/// What went wrong on the way through a proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The reason, and whether the same may well succeed a little later.
    #[error("{0}")]
    Refused(String, bool),
}

/// Names no secret.
impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}:{}", self.kind, self.host, self.port)
    }
}

impl Proxies {
    /// Reads what the environment variables of that name hold; an empty one is none.
    pub fn new(http: &str, https: &str, exceptions: &[String]) -> Result<Self, ProxySettingError> {
        let words =
            || exceptions.iter().flat_map(|entry| entry.split([',', ' '])).filter(|word| !word.is_empty());
        if words().count() > EXCEPTIONS_MAX {
            return Err(ProxySettingError::TooManyExceptions);
        }
        let read = |text: &str| if text.is_empty() { Ok(None) } else { Proxy::parse(text).map(Some) };
        Ok(Self {
            http: read(http)?,
            https: read(https)?,
            exceptions: words().filter_map(Exception::parse).collect(),
        })
    }

    /// Through what this origin is reached. This machine itself never is through a proxy.
    pub fn choose(&self, origin: &Origin) -> Option<&Proxy> {
        let proxy = match origin.scheme {
            Scheme::Http => self.http.as_ref(),
            Scheme::Https => self.https.as_ref(),
        }?;
        let own = origin.host == "localhost" || origin.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let excepted = || self.exceptions.iter().any(|exception| exception.covers(&origin.host, origin.port));
        (!own && !excepted()).then_some(proxy)
    }
}

impl Exception {
    /// Words that say nothing of use are passed over, as every tool does.
    fn parse(word: &str) -> Option<Self> {
        if word == "*" {
            return Some(Self::Everybody);
        }
        if let Some((address, prefix)) = word.split_once('/') {
            let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
            let bits = if address.is_ipv4() { 32 } else { 128 };
            return (prefix <= bits).then_some(Self::Network { address, prefix, port: None });
        }
        let single = |address: IpAddr, port| Self::Network {
            prefix: if address.is_ipv4() { 32 } else { 128 },
            address,
            port,
        };
        if let Ok(address) = word.parse() {
            return Some(single(address, None));
        }
        let (host, port) = match word.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (word, None),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse() {
            return Some(single(address, port));
        }
        let below = host.strip_prefix("*.").or(host.strip_prefix('.'));
        let name = below.unwrap_or(host).to_ascii_lowercase();
        (!name.is_empty()).then_some(Self::Domain { name, itself: below.is_none(), port })
    }

    fn covers(&self, host: &str, port: u16) -> bool {
        let on_port = |only: &Option<u16>| only.is_none_or(|only| only == port);
        match self {
            Self::Everybody => true,
            Self::Domain { name, itself, port } => {
                let below = host.strip_suffix(name.as_str()).is_some_and(|front| front.ends_with('.'));
                on_port(port) && (below || (*itself && host == name))
            }
            Self::Network { address, prefix, port } => {
                on_port(port) && host.parse().is_ok_and(|ip| is_within(ip, *address, *prefix))
            }
        }
    }
}

fn is_within(ip: IpAddr, network: IpAddr, prefix: u8) -> bool {
    let differing = match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) => (ip.to_bits() ^ network.to_bits()).leading_zeros(),
        (IpAddr::V6(ip), IpAddr::V6(network)) => (ip.to_bits() ^ network.to_bits()).leading_zeros(),
        _ => return false,
    };
    differing >= u32::from(prefix)
}

impl Proxy {
    /// `[SCHEME://][USER[:PASSWORD]@]HOST[:PORT]`; without a scheme it is http.
    pub fn parse(text: &str) -> Result<Self, ProxySettingError> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let (kind, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Kind::Http, 80),
            "https" => (Kind::Https, 443),
            "socks5" => (Kind::Socks5 { resolves: false }, 1080),
            "socks5h" => (Kind::Socks5 { resolves: true }, 1080),
            _ => return Err(ProxySettingError::Scheme),
        };
        let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (login, authority) = match rest.rsplit_once('@') {
            Some((login, authority)) => (Some(read_login(login)?), authority),
            None => (None, rest),
        };
        let (host, port) = super::url::split_authority(authority).map_err(|_| ProxySettingError::Address)?;
        Ok(Self { kind, host: host.to_ascii_lowercase(), port: port.unwrap_or(default_port), login })
    }

    /// The value of `Proxy-Authorization`.
    pub fn authorization(&self) -> Option<String> {
        self.login.as_ref().map(|(user, password)| auth::basic(user, password))
    }

    /// Has the proxy open a way to `host`, or to `address` if names are resolved here.
    pub fn open_way(
        &self,
        stream: &mut (impl Read + Write),
        host: &str,
        port: u16,
        address: Option<IpAddr>,
    ) -> Result<(), ProxyError> {
        match self.kind {
            Kind::Http | Kind::Https => self.connect(stream, host, port),
            Kind::Socks5 { .. } => self.socks(stream, host, port, address),
        }
    }

    fn connect(&self, stream: &mut (impl Read + Write), host: &str, port: u16) -> Result<(), ProxyError> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
        if let Some(authorization) = self.authorization() {
            request.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes())?;
        stream.flush()?;
        // Byte by byte: what follows the head is no longer the proxy's.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() >= CONNECT_HEAD_BYTES_MAX {
                return Err(ProxyError::Refused("its answer is too long".into(), false));
            }
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.extend(byte);
        }
        let refused = |reason: String, passing| Err(ProxyError::Refused(reason, passing));
        match Head::parse(&head) {
            Ok(Some((head, _))) => match head.status {
                200..=299 => Ok(()),
                407 if self.login.is_none() => refused("it asks for a user and a password".into(), false),
                407 => refused("it does not accept the user and the password".into(), false),
                status => refused(format!("it answered with status {status}"), matches!(status, 500..=504)),
            },
            _ => refused("its answer is not HTTP".into(), false),
        }
    }

    fn socks(
        &self,
        stream: &mut (impl Read + Write),
        host: &str,
        port: u16,
        address: Option<IpAddr>,
    ) -> Result<(), ProxyError> {
        const NO_LOGIN: u8 = 0;
        const PASSWORD: u8 = 2;
        let refused = |reason: &str, passing| Err(ProxyError::Refused(reason.to_owned(), passing));
        let methods: &[u8] = if self.login.is_some() { &[NO_LOGIN, PASSWORD] } else { &[NO_LOGIN] };
        let mut greeting = vec![5, methods.len() as u8];
        greeting.extend(methods);
        stream.write_all(&greeting)?;
        stream.flush()?;
        let mut chosen = [0; 2];
        stream.read_exact(&mut chosen)?;
        match (chosen, &self.login) {
            ([5, NO_LOGIN], _) => {}
            ([5, PASSWORD], Some((user, password))) => {
                let mut login = vec![1, user.len() as u8];
                login.extend(user.as_bytes());
                login.push(password.len() as u8);
                login.extend(password.as_bytes());
                stream.write_all(&login)?;
                stream.flush()?;
                let mut verdict = [0; 2];
                stream.read_exact(&mut verdict)?;
                if verdict[1] != 0 {
                    return refused("it does not accept the user and the password", false);
                }
            }
            ([5, _], _) => return refused("it takes none of the ways to log in that are known here", false),
            _ => return refused("its answer is not SOCKS 5", false),
        }
        let mut request = vec![5, 1, 0];
        match address.or(host.parse().ok()) {
            Some(IpAddr::V4(ip)) => {
                request.push(1);
                request.extend(ip.octets());
            }
            Some(IpAddr::V6(ip)) => {
                request.push(4);
                request.extend(ip.octets());
            }
            None => {
                let length = u8::try_from(host.len())
                    .map_err(|_| ProxyError::Refused("host name is too long for it".into(), false))?;
                request.extend([3, length]);
                request.extend(host.as_bytes());
            }
        }
        request.extend(port.to_be_bytes());
        stream.write_all(&request)?;
        stream.flush()?;
        let mut head = [0; 4];
        stream.read_exact(&mut head)?;
        let [version, code, _, kind] = head;
        if version != 5 {
            return refused("its answer is not SOCKS 5", false);
        }
        let bound = match kind {
            1 => 4,
            4 => 16,
            3 => {
                let mut length = [0];
                stream.read_exact(&mut length)?;
                usize::from(length[0])
            }
            _ if code != 0 => 0,
            _ => return refused("its answer is not SOCKS 5", false),
        };
        match code {
            0 => {
                stream.read_exact(&mut vec![0; bound + 2])?;
                Ok(())
            }
            1 => refused("general failure", true),
            2 => refused("its rules do not allow it", false),
            3 => refused("network unreachable from there", true),
            4 => refused("host unreachable from there", true),
            5 => refused("connection refused there", false),
            6 => refused("time to live expired there", true),
            _ => refused("it cannot do that", false),
        }
    }
}

fn read_login(text: &str) -> Result<(String, String), ProxySettingError> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let read = |word: &str| unescape(word).filter(|word| word.len() <= SOCKS_WORD_BYTES_MAX);
    read(user).zip(read(password)).ok_or(ProxySettingError::Login)
}

/// Undoes percent-encoding.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
                u8::try_from(high << 4 | low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read_as_the_environment_has_them() {
        for (text, kind, host, port, login) in [
            ("proxy.example:3128", Kind::Http, "proxy.example", 3128, None),
            ("http://Proxy.example/", Kind::Http, "proxy.example", 80, None),
            ("https://p", Kind::Https, "p", 443, None),
            ("socks5://[::1]:9050", Kind::Socks5 { resolves: false }, "::1", 9050, None),
            ("SOCKS5H://u:p%40ss@p", Kind::Socks5 { resolves: true }, "p", 1080, Some(("u", "p@ss"))),
        ] {
            let proxy = Proxy::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let found = proxy.login.as_ref().map(|(user, password)| (user.as_str(), password.as_str()));
            assert_eq!(
                (proxy.kind, proxy.host.as_str(), proxy.port, found),
                (kind, host, port, login),
                "{text}"
            );
            assert!(!format!("{proxy:?}").contains("p@ss"));
        }
        for text in
            ["ftp://p", "http://", "http://p:0", "http://p:x", "http://a b", "http://%zz@p", "http://u:%@p"]
        {
            assert!(Proxy::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn exceptions_are_domains_addresses_and_networks() {
        for (word, host, port, covered) in [
            ("*", "any.example", 443, true),
            ("example.com", "example.com", 443, true),
            ("example.com", "a.example.com", 443, true),
            ("example.com", "badexample.com", 443, false),
            (".example.com", "example.com", 443, false),
            (".example.com", "a.example.com", 443, true),
            ("*.example.com", "a.b.example.com", 443, true),
            ("EXAMPLE.com:5000", "example.com", 5000, true),
            ("example.com:5000", "example.com", 443, false),
            ("10.0.0.0/8", "10.255.0.1", 443, true),
            ("10.0.0.0/8", "11.0.0.1", 443, false),
            ("10.0.0.0/0", "200.0.0.1", 443, true),
            ("192.0.2.1", "192.0.2.1", 443, true),
            ("192.0.2.1:80", "192.0.2.1", 443, false),
            ("fd00::/8", "fd12::1", 443, true),
            ("fd00::/8", "10.0.0.1", 443, false),
            ("::1", "::1", 443, true),
            ("[fe80::1]:5000", "fe80::1", 5000, true),
            ("10.0.0.0/33", "10.0.0.0", 443, false),
            ("", "a", 443, false),
            (".", "a", 443, false),
        ] {
            let found = Exception::parse(word).is_some_and(|exception| exception.covers(host, port));
            assert_eq!(found, covered, "{word} for {host}:{port}");
        }
    }

    #[test]
    fn the_scheme_chooses_the_proxy_and_loopback_none() {
        let proxies =
            Proxies::new("http://plain", "socks5://secret", &["a.example, 10.0.0.0/8".into()]).unwrap();
        for (scheme, host, proxy) in [
            (Scheme::Http, "r.example", Some("plain")),
            (Scheme::Https, "r.example", Some("secret")),
            (Scheme::Https, "a.example", None),
            (Scheme::Https, "10.1.2.3", None),
            (Scheme::Http, "localhost", None),
            (Scheme::Http, "127.0.0.1", None),
            (Scheme::Http, "::1", None),
        ] {
            let origin = Origin::new(scheme, host, None);
            assert_eq!(proxies.choose(&origin).map(|proxy| proxy.host.as_str()), proxy, "{host}");
        }
        let many = vec!["a,".repeat(EXCEPTIONS_MAX + 1)];
        assert_eq!(Proxies::new("", "", &many), Err(ProxySettingError::TooManyExceptions));
        assert_eq!(Proxies::new("", "", &[]), Ok(Proxies::default()));
    }
}
