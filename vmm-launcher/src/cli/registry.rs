//! Where an image is pulled from, what is shown there, and what is taken: the words of `run` for it.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, Args};
use nacre_protocols::host_agent::nacre as own;

use super::error::Failure;
use super::values;
use crate::images::registries::{Place, Registries, Route, full_name, repository};
use crate::images::{Credentials, RegistryHost, loopback_registry, registry_host};
use crate::sandbox::session::Wanted;

/// Longest file of certificates, keys or rules, in bytes.
const FILE_MAX: u64 = 64 * 1024;
/// What `--proxy` takes for none at all.
const NO_PROXY: &str = "none";

#[derive(Debug, Clone, Args)]
pub struct RegistryOptions {
    /// Platform of the image: OS/ARCHITECTURE[/VARIANT]
    #[arg(long, default_value = "linux/amd64", value_parser = values::platform)]
    pub platform: (String, String, String),
    /// Verify the registry's certificate
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = ArgAction::Set)]
    pub tls_verify: bool,
    /// A registry (HOST[:PORT]) that may be spoken to by plain http or with an unknown certificate
    #[arg(long, value_name = "HOST[:PORT]")]
    pub insecure_registry: Vec<String>,
    /// Trust the certificates in this PEM file, too
    #[arg(long, visible_alias = "ca", value_name = "FILE")]
    pub ca_cert: Vec<PathBuf>,
    /// Show the registry this certificate (PEM, with what leads to its root)
    #[arg(long, value_name = "FILE", requires = "client_key")]
    pub client_cert: Option<PathBuf>,
    /// The key of --client-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    pub client_key: Option<PathBuf>,
    /// Credentials for the registry; without them those of docker login and podman login are used
    #[arg(long, value_name = "USER:PASSWORD", conflicts_with = "authfile")]
    pub creds: Option<String>,
    /// Look for credentials in this file, not in those of docker login and podman login
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Mirrors, rewrites and blocked registries: a file in the form of containers-registries.conf(5)
    #[arg(long, env = "CONTAINERS_REGISTRIES_CONF", value_name = "FILE")]
    pub registries_conf: Option<PathBuf>,
    /// Pull only what this file takes, in the form of containers-policy.json(5); the sandbox keeps it
    #[arg(long, env = "NACRE_POLICY", value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Reach registries through this proxy (http, https, socks5, socks5h), or none; without it HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and
    /// NO_PROXY say
    #[arg(long, value_name = "URL|none")]
    pub proxy: Option<String>,
    /// A TCP port that the registry may lead to (its token server, its blob store), besides its own, those of mirrors and
    /// proxies, and 443
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub registry_port: Vec<u16>,
}

/// What is to be pulled, but for what only the sandbox's network tells.
pub struct Order {
    pub wanted: Wanted,
    /// Who of them is on this host's loopback, and has to be led there.
    pub loopback: Vec<Loopback>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loopback {
    pub host: RegistryHost,
    /// Of a registry whose reference or location names none.
    pub ports: Vec<u16>,
    /// Loopback registries are spoken to as they speak; a proxy is no registry.
    pub is_registry: bool,
}

/// How long a service of this host may take to answer before it is left to the sandbox to wait.
const LISTENER_PATIENCE: Duration = Duration::from_millis(500);
/// Ports of a registry whose name has none.
const REGISTRY_PORTS: [u16; 2] = [443, 80];

impl RegistryOptions {
    /// The order for a reference; `notices` gets what the user should know.
    pub fn order(
        &self,
        reference: &str,
        environment: impl Fn(&str) -> Option<String>,
        notices: &mut Vec<String>,
    ) -> Result<Order, Failure> {
        let name = full_name(reference);
        let own = repository(&name);
        let route = self.route(reference)?;
        let mut wanted = self.rules()?;
        wanted.reference = reference.to_owned();
        wanted.ports.clone_from(&self.registry_port);
        wanted.insecure.clone_from(&self.insecure_registry);
        if !self.tls_verify {
            wanted.insecure.push(authority(&route.own.location));
        }
        let places = || route.mirrors.iter().chain([&route.own]);
        wanted
            .insecure
            .extend(places().filter(|place| place.insecure).map(|place| authority(&place.location)));
        if route.own.location != own {
            wanted.location.clone_from(&route.own.location);
        }
        wanted.credentials = self.credentials(&route.own, notices)?;
        for mirror in &route.mirrors {
            let credentials = match &self.creds {
                // Those were given for the registry, and are nobody else's business.
                Some(_) => None,
                None => self.credentials(mirror, notices)?,
            };
            wanted.mirrors.push((mirror.location.clone(), credentials));
        }
        if let (Some(chain), Some(key)) = (&self.client_cert, &self.client_key) {
            let (chain, key) = (read("--client-cert", chain)?, read("--client-key", key)?);
            let registry = authority(&route.own.location);
            wanted.client_certificates.push(own::ClientCertificate { registry, chain, key });
        }
        wanted.proxy = self.proxy(environment);
        let mut loopback: Vec<_> = places().filter_map(|place| Loopback::registry(&place.location)).collect();
        let proxies = [&wanted.proxy.http, &wanted.proxy.https];
        loopback.extend(proxies.into_iter().filter_map(|url| Loopback::proxy(url)));
        loopback.dedup();
        Ok(Order { wanted, loopback })
    }

    /// What holds for every image, whatever it is called: rules, and whom to trust.
    pub fn rules(&self) -> Result<Wanted, Failure> {
        // Also where nobody will be asked: a mistake is one.
        if let Some(text) = &self.creds {
            Credentials::parse(text).map_err(|error| Failure::new("arguments", error))?;
        }
        if let Some(text) = self.proxy.as_deref().filter(|text| *text != NO_PROXY) {
            check_proxy(text)?;
        }
        let authorities = self.ca_cert.iter().map(|path| read("--ca-cert", path));
        Ok(Wanted {
            platform: self.platform.clone(),
            certificate_authorities: authorities.collect::<Result<_, _>>()?,
            policy: self
                .policy
                .as_deref()
                .map(|path| read("--policy", path))
                .transpose()?
                .unwrap_or_default(),
            ..Default::default()
        })
    }

    fn route(&self, reference: &str) -> Result<Route, Failure> {
        let registries = match &self.registries_conf {
            None => Registries::default(),
            Some(path) => Registries::read(path).map_err(|error| {
                Failure::new("arguments", format!("--registries-conf {}: {error}", path.display()))
            })?,
        };
        registries.route(reference).map_err(|error| {
            Failure::new("arguments", error)
                .next("the file of --registries-conf says so; pull it from elsewhere")
        })
    }

    fn credentials(&self, place: &Place, notices: &mut Vec<String>) -> Result<Option<Credentials>, Failure> {
        let failed = |error| Failure::new("arguments", error);
        match (&self.creds, &self.authfile) {
            (Some(text), _) => Credentials::parse(text).map(Some).map_err(failed),
            (None, Some(path)) if !path.exists() => {
                Err(Failure::new("arguments", format!("--authfile {}: is not there", path.display())))
            }
            (None, Some(path)) => Credentials::find_in(path, &place.location).map_err(failed),
            (None, None) => Ok(Credentials::find(&place.location).unwrap_or_else(|error| {
                notices.push(format!("no credentials for {}: {error}", authority(&place.location)));
                None
            })),
        }
    }

    /// As curl and Go read them: lower case first, and no plain `HTTP_PROXY` for https.
    fn proxy(&self, environment: impl Fn(&str) -> Option<String>) -> own::Proxy {
        let variable = |name: &str| {
            let value = environment(&name.to_lowercase()).or_else(|| environment(name));
            value.filter(|value| !value.is_empty())
        };
        let exceptions = || variable("NO_PROXY").into_iter().collect();
        match self.proxy.as_deref() {
            Some(NO_PROXY) => own::Proxy::default(),
            Some(url) => own::Proxy { http: url.to_owned(), https: url.to_owned(), exceptions: exceptions() },
            None => {
                let any = variable("ALL_PROXY");
                own::Proxy {
                    http: variable("HTTP_PROXY").or(any.clone()).unwrap_or_default(),
                    https: variable("HTTPS_PROXY").or(any).unwrap_or_default(),
                    exceptions: exceptions(),
                }
            }
        }
    }
}

impl Loopback {
    /// Refuses a registry of this host that is not there: known here at once, in the sandbox only after long waits.
    pub fn check_listener(&self) -> Result<(), Failure> {
        let address = self.host.host.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let refused = |port: &u16| {
            let attempt = TcpStream::connect_timeout(&(address, *port).into(), LISTENER_PATIENCE);
            attempt.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        };
        if !self.is_registry || !self.ports.iter().all(refused) {
            return Ok(());
        }
        let message =
            format!("{}: nothing listens there on this host (connection refused)", self.host.authority());
        Err(Failure::new("pull", message).next("start the registry, or correct its port"))
    }

    fn registry(location: &str) -> Option<Self> {
        let host = loopback_registry(location)?;
        let ports = host.port.map_or_else(|| REGISTRY_PORTS.into(), |port| vec![port]);
        Some(Self { host, ports, is_registry: true })
    }

    fn proxy(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let authority = rest.split(['/', '?', '#']).next()?.rsplit('@').next()?;
        let host = loopback_registry(&format!("{authority}/"))?;
        let default = match scheme {
            "https" => 443,
            "http" => 80,
            _ => 1080,
        };
        Some(Self { ports: vec![host.port.unwrap_or(default)], host, is_registry: false })
    }
}

/// Names no password that is in it.
fn check_proxy(url: &str) -> Result<(), Failure> {
    let failed = |problem: String| {
        Failure::new("arguments", format!("--proxy: {problem}")).next(
            "write it as http://, https://, socks5:// or socks5h://[USER:PASSWORD@]HOST[:PORT], or none",
        )
    };
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    if !["http", "https", "socks5", "socks5h"].contains(&scheme.to_ascii_lowercase().as_str()) {
        return Err(failed(format!("there are no proxies of the kind {scheme:?}")));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let (name, port) = match host.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((address, rest)) => (address, rest.strip_prefix(':').or((!rest.is_empty()).then_some(rest))),
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
    match !name.is_empty() && name.bytes().all(plain) && port.is_none_or(is_port) {
        true => Ok(()),
        false => Err(failed("its host or port cannot be read".to_owned())),
    }
}

/// The `host[:port]` of a location.
fn authority(location: &str) -> String {
    registry_host(location).map(|host| host.authority()).unwrap_or_default()
}

/// A small file that an option names.
fn read(option: &str, path: &Path) -> Result<String, Failure> {
    let failed = |error: String| Failure::new("arguments", format!("{option} {}: {error}", path.display()));
    let length = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if length > FILE_MAX {
        return Err(failed(format!("longer than {FILE_MAX} bytes")));
    }
    std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        registry: RegistryOptions,
    }

    fn order(line: &str, reference: &str, environment: &[(&str, &str)]) -> Result<Order, Failure> {
        let words = Words::try_parse_from(std::iter::once("x").chain(line.split_whitespace())).unwrap();
        let variable = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
        };
        words.registry.order(reference, variable, &mut Vec::new())
    }

    #[test]
    fn mirrors_get_their_own_credentials_and_loopback_is_led_to() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let conf = file(
            "registries.conf",
            "[[registry]]\nlocation = \"r.example\"\n[[registry.mirror]]\nlocation = \"localhost:5000/r\"\n\
             [[registry]]\nprefix = \"old.example\"\nlocation = \"new.example/x\"\ninsecure = true\n\
             [[registry]]\nlocation = \"evil.example\"\nblocked = true\n",
        );
        let auth = file(
            "auth.json",
            r#"{"auths":{"localhost:5000/r":{"auth":"bTpt"},"r.example":{"auth":"cjpy"}}}"#,
        );
        let basic = |word: &str| Some(Credentials::Basic { user: word.into(), password: word.into() });
        let line =
            format!("--registries-conf {conf} --authfile {auth} --client-cert {auth} --client-key {auth}");
        let made = order(
            &line,
            "r.example/a:1",
            &[("https_proxy", "http://u:p@127.0.0.1:3128/"), ("HTTP_PROXY", "")],
        )
        .unwrap();
        assert_eq!(made.wanted.mirrors, [("localhost:5000/r/a".to_owned(), basic("m"))]);
        assert_eq!(made.wanted.credentials, basic("r"));
        assert!(made.wanted.location.is_empty() && made.wanted.insecure.is_empty());
        assert_eq!(made.wanted.client_certificates[0].registry, "r.example");
        assert_eq!(
            (made.wanted.proxy.http.as_str(), made.wanted.proxy.https.as_str()),
            ("", "http://u:p@127.0.0.1:3128/")
        );
        let led: Vec<_> = made
            .loopback
            .iter()
            .map(|there| (there.host.authority(), there.ports.clone(), there.is_registry))
            .collect();
        assert_eq!(
            led,
            [("localhost:5000".into(), vec![5000], true), ("127.0.0.1:3128".into(), vec![3128], false)]
        );

        let moved = order(&format!("--registries-conf {conf} --creds a:b"), "old.example/a", &[]).unwrap();
        assert_eq!(moved.wanted.location, "new.example/x/a");
        assert_eq!(moved.wanted.insecure, ["new.example"]);
        let given = order(&format!("--registries-conf {conf} --creds a:b"), "r.example/a", &[]).unwrap();
        assert_eq!(given.wanted.mirrors, [("localhost:5000/r/a".to_owned(), None)]);
        let blocked = order(&format!("--registries-conf {conf}"), "evil.example/a", &[]).err().unwrap();
        assert!(blocked.cause.contains("blocked"), "{blocked}");
    }

    #[test]
    fn the_command_line_goes_before_the_environment() {
        let environment = [
            ("ALL_PROXY", "socks5://all"),
            ("HTTPS_PROXY", "http://s"),
            ("NO_PROXY", "a.example,10.0.0.0/8"),
        ];
        for (line, http, https, exceptions) in [
            ("", "socks5://all", "http://s", 1),
            ("--proxy none", "", "", 0),
            ("--proxy https://given", "https://given", "https://given", 1),
        ] {
            let proxy = order(line, "localhost/x", &environment).unwrap().wanted.proxy;
            assert_eq!(
                (proxy.http.as_str(), proxy.https.as_str(), proxy.exceptions.len()),
                (http, https, exceptions)
            );
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (line, words) in [
            ("--policy /nowhere/p", "--policy /nowhere/p"),
            ("--registries-conf /nowhere/r", "--registries-conf /nowhere/r"),
            ("--authfile /nowhere/a", "--authfile /nowhere/a"),
            ("--ca /nowhere/c", "--ca-cert /nowhere/c"),
            ("--client-cert /nowhere/c --client-key /nowhere/k", "--client-cert /nowhere/c"),
        ] {
            let failure = order(line, "r.example/x", &[]).err().expect(line);
            assert!(failure.cause.contains(words), "{line}: {failure}");
        }
        for (line, words) in [
            ("--creds foo", "USER:PASSWORD"),
            ("--proxy ftp://p", "no proxies of the kind"),
            ("--proxy http://u:secret@", "host or port"),
            ("--proxy socks5://p:0", "host or port"),
            ("--proxy http://[::1]x", "host or port"),
        ] {
            // Of an image that no registry has, too.
            let words_of_run = Words::try_parse_from(std::iter::once("x").chain(line.split(' '))).unwrap();
            let failure = words_of_run.registry.rules().expect_err(line);
            assert!(failure.cause.contains(words) && !failure.cause.contains("secret"), "{line}: {failure}");
        }
        for url in ["p", "p:3128", "https://proxy.example/", "socks5h://u:p@[fd00::1]:9050", "none"] {
            let given = Words::try_parse_from(["x", "--proxy", url]).unwrap();
            assert!(given.registry.rules().is_ok(), "{url}");
        }
        assert!(Words::try_parse_from(["x", "--client-cert", "a"]).is_err());
        assert!(Words::try_parse_from(["x", "--creds", "a:b", "--authfile", "f"]).is_err());
    }
}
