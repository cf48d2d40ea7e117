//! The ways to an image: mirrors, proxies, client certificates, IPv6, and what is fetched again after a break.

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::proxy::TestProxy;
use common::*;
use nacre_protocols::agent_puller::{
    ClientCertificate, Credentials, HostAlias, Mirror, Proxy, Pull, PullFailureKind, PulledImage,
};
use nacre_puller::pull::{PullError, pull};
use nacre_puller::registry::transport::Cancel;

fn attempt(store: &Path, request: &Pull) -> Result<PulledImage, PullError> {
    let outcome = pull(&context(store), request, &Cancel::default(), &|_| {});
    assert!(nothing_half_done(store));
    outcome
}

fn fresh(request: &Pull) -> Result<PulledImage, PullError> {
    attempt(tempfile::tempdir().unwrap().path(), request)
}

fn serving(image: &TestImage) -> FakeServer {
    let image = image.clone();
    FakeServer::start(move |request| image.answer(request))
}

fn mirror(address: SocketAddr) -> Mirror {
    Mirror { location: format!("{address}/test/image"), credentials: Credentials::Anonymous }
}

#[test]
fn mirrors_are_asked_in_order_and_the_registry_last() {
    let image = TestImage::new(&[b"one", b"two"]);
    let (registry, good) = (serving(&image), serving(&image));
    let empty = FakeServer::start(|_| Reply::status(404));
    let lying = TestImage::new(&[b"other"]);
    let digest = image.manifest.clone();
    let lying = FakeServer::start(move |request| {
        let answer = lying.answer(request);
        // Another image under the digest that was asked for.
        let manifest = lying.parts[&format!("manifests/{}", lying.manifest)].clone();
        if request.target.ends_with(&digest) {
            Reply::ok(manifest.1).with("Content-Type", manifest.0)
        } else {
            answer
        }
    });
    let by_digest = Pull {
        reference: format!("{}/test/image@{}", registry.address, image.manifest),
        ..request(registry.address)
    };
    let mirrors = [connect_refused(), empty.address, lying.address, good.address, empty.address].map(mirror);
    let pulled = fresh(&Pull { mirrors: mirrors.into(), ..by_digest.clone() }).unwrap();
    assert_eq!(pulled.reference, by_digest.reference, "an image is called what it was asked for as");
    assert_eq!((good.count("blobs"), registry.count("v2")), (3, 0));
    assert!(empty.count("manifests") == 1 && lying.count("manifests") == 1);
    assert_eq!(lying.count("blobs") + empty.count("blobs"), 0);

    let bad = [connect_refused(), empty.address, lying.address].map(mirror);
    fresh(&Pull { mirrors: bad.clone().into(), ..by_digest.clone() }).unwrap();
    assert_eq!(registry.count("blobs"), 3);

    let nowhere =
        Pull { location: format!("{}/test/image", empty.address), mirrors: bad.into(), ..by_digest };
    let error = fresh(&nowhere).unwrap_err();
    assert_eq!(error.kind(), PullFailureKind::NotFound, "{error}");
    for word in ["mirrors asked before", "cannot connect", "digest mismatch"] {
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn a_location_stands_in_for_what_the_reference_says() {
    let image = TestImage::new(&[b"one"]);
    let server = serving(&image);
    let location = format!("{}/test/image", server.address);
    let renamed =
        Pull { reference: "registry.test/some/name:latest".into(), location, ..request(server.address) };
    assert_eq!(fresh(&renamed).unwrap().reference, "registry.test/some/name:latest");
    let wrong = Pull { location: "registry.test/x:tag".into(), ..renamed };
    let error = fresh(&wrong).unwrap_err();
    assert_eq!(error.kind(), PullFailureKind::Reference);
    assert!(error.to_string().contains("location \"registry.test/x:tag\""), "{error}");
}

#[test]
fn a_blob_that_breaks_at_a_mirror_goes_on_at_the_next_from_the_same_byte() {
    let layer = noise(500_000, 7);
    let image = TestImage::new(&[&layer]);
    let part = image.layer_part(0);
    let (registry, broken) = (serving(&image), image.clone());
    let breaking = FakeServer::start(move |request| {
        let cut = request.target.contains(&part).then_some(if request.nth == 0 { 123_456 } else { 0 });
        Reply { break_after: cut, ..broken.answer(request) }
    });
    fresh(&Pull { mirrors: vec![mirror(breaking.address)], ..request(registry.address) }).unwrap();
    let seen = registry.seen.lock().unwrap();
    let blob = seen.iter().find(|seen| seen.target.contains("blobs")).unwrap();
    assert_eq!(blob.fields["range"], "bytes=123456-");
    let config =
        image.parts.iter().filter(|(name, _)| name.starts_with("blobs/")).map(|(_, part)| part.1.len());
    let whole: usize = config.sum();
    let sent = breaking.sent.load(Ordering::Relaxed) + registry.sent.load(Ordering::Relaxed);
    assert_eq!(sent, whole as u64, "no byte is fetched twice");
}

#[test]
fn each_source_gets_its_own_credentials_and_no_others() {
    let image = TestImage::new(&[b"one"]);
    let guarded = |login: &'static str| {
        let image = image.clone();
        FakeServer::start(move |request| match request.fields.get("authorization").map(String::as_str) {
            Some(given) if given == login => image.answer(request),
            _ => Reply::status(401).with("WWW-Authenticate", "Basic realm=x"),
        })
    };
    // "mirror:secret", "registry:secret".
    let (first, second) = (guarded("Basic bWlycm9yOnNlY3JldA=="), guarded("Basic cmVnaXN0cnk6c2VjcmV0"));
    let basic = |user: &str| Credentials::Basic { user: user.into(), password: "secret".into() };
    let mut order = Pull { credentials: basic("registry"), ..request(second.address) };
    order.mirrors = vec![mirror(first.address)];
    fresh(&order).unwrap();
    let given = |server: &FakeServer| {
        let seen = server.seen.lock().unwrap();
        seen.iter().filter_map(|seen| seen.fields.get("authorization").cloned()).collect::<Vec<_>>()
    };
    assert!(given(&first).is_empty(), "the mirror was told the registry's: {:?}", given(&first));
    order.mirrors[0].credentials = basic("mirror");
    fresh(&order).unwrap();
    assert!(!given(&first).is_empty() && given(&first).iter().all(|given| given.starts_with("Basic bWly")));
}

/// A registry by a name that only a proxy can reach.
fn far(port: u16) -> Pull {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    Pull {
        reference: format!("registry.test:{port}/test/image"),
        insecure: vec![format!("registry.test:{port}")],
        ..request(address)
    }
}

#[test]
fn a_registry_is_reached_through_each_kind_of_proxy() {
    let image = TestImage::new(&[&noise(200_000, 9), b"two"]);
    let plain = serving(&image);
    let (certificate, config) = certify("registry.test");
    let served = image.clone();
    let secure = FakeServer::start_tls(config, move |request| served.answer(request));
    let (proxy_certificate, proxy_config) = certify("proxy.test");
    let with = |kind: &str, login: &str, proxy: &TestProxy| {
        format!(
            "{kind}://{login}{}",
            if kind == "https" {
                format!("proxy.test:{}", proxy.address.port())
            } else {
                proxy.address.to_string()
            }
        )
    };
    for (kind, login) in
        [("http", ""), ("http", "u:p%40ss@"), ("socks5h", ""), ("socks5h", "u:p%40ss@"), ("https", "")]
    {
        let proxy = match (kind, login) {
            ("http", "") => TestProxy::http(None),
            ("http", _) => TestProxy::http(Some("Basic dTpwQHNz")),
            ("https", _) => TestProxy::https(proxy_config.clone()),
            (_, "") => TestProxy::socks(None),
            _ => TestProxy::socks(Some(("u", "p@ss"))),
        };
        let url = with(kind, login, &proxy);
        let given = Proxy { http: url.clone(), https: url, exceptions: vec!["elsewhere.test".into()] };
        let aliases = vec![HostAlias { host: "proxy.test".into(), address: proxy.address.ip() }];
        let authorities = vec![certificate.clone(), proxy_certificate.clone()];
        if kind != "https" {
            let order = Pull { proxy: given.clone(), ..far(plain.address.port()) };
            fresh(&order).unwrap_or_else(|error| panic!("{kind} {login}: {error}"));
        }
        let order = Pull {
            proxy: given,
            insecure: vec![],
            certificate_authorities: authorities,
            aliases,
            ..far(secure.address.port())
        };
        fresh(&order).unwrap_or_else(|error| panic!("{kind} {login}, TLS: {error}"));
        let asked = proxy.asked();
        assert!(asked.iter().any(|line| line.contains(&format!("registry.test:{}", secure.address.port()))));
        let whole =
            format!("GET http://registry.test:{}/v2/test/image/manifests/latest", plain.address.port());
        assert_eq!(asked.iter().any(|line| line.starts_with(&whole)), kind == "http", "{asked:?}");
    }
    assert!(plain.seen.lock().unwrap().iter().all(|seen| !seen.fields.contains_key("proxy-authorization")));
}

#[test]
fn what_a_proxy_refuses_is_said_with_its_name() {
    let image = TestImage::new(&[b"one"]);
    let server = serving(&image);
    let closed = connect_refused();
    let asking = TestProxy::http(Some("Basic eA=="));
    let socks = TestProxy::socks(Some(("u", "right")));
    for (url, words) in [
        (format!("http://{}", asking.address), &["asks for a user"][..]),
        (format!("http://u:hidden@{}", asking.address), &["does not accept"]),
        (format!("socks5h://u:hidden@{}", socks.address), &["does not accept"]),
        (format!("socks5h://{}", socks.address), &["ways to log in"]),
        (format!("socks5h://{closed}"), &["cannot connect"]),
        ("gopher://x".into(), &["proxy is no URL"]),
    ] {
        let mut order = far(server.address.port());
        order.insecure.clear();
        order.proxy = Proxy { http: url.clone(), https: url.clone(), exceptions: vec![] };
        let error = fresh(&order).unwrap_err();
        assert_eq!(error.kind(), PullFailureKind::Connect, "{url}: {error}");
        let text = error.to_string();
        for word in words {
            assert!(text.contains(word), "{url}: {text}");
        }
        assert!(!text.contains("hidden"), "{text}");
    }
    let refused = connect_refused();
    let socks = TestProxy::socks(None);
    let mut order = far(refused.port());
    order.proxy = Proxy { https: format!("socks5h://{}", socks.address), ..Proxy::default() };
    order.insecure.clear();
    let error = fresh(&order).unwrap_err().to_string();
    assert!(error.contains("connection refused there"), "{error}");
}

#[test]
fn exceptions_and_loopback_go_directly() {
    let image = TestImage::new(&[b"one"]);
    let server = serving(&image);
    let proxy = TestProxy::http(None);
    let url = format!("http://{}", proxy.address);
    let given = Proxy { http: url.clone(), https: url, exceptions: vec![".test".into()] };
    fresh(&Pull { proxy: given.clone(), ..request(server.address) }).unwrap();
    let excepted = Pull {
        proxy: given,
        aliases: vec![HostAlias { host: "registry.test".into(), address: server.address.ip() }],
        ..far(server.address.port())
    };
    fresh(&excepted).unwrap();
    assert!(proxy.asked().is_empty(), "{:?}", proxy.asked());
}

#[test]
fn a_client_certificate_is_shown_to_its_registry_alone() {
    let image = TestImage::new(&[b"one"]);
    let (certificate, server_config, client) = certify_both("registry.test");
    let served = image.clone();
    let server = FakeServer::start_tls(server_config, move |request| served.answer(request));
    let port = server.address.port();
    let order = Pull {
        reference: format!("registry.test:{port}/test/image"),
        aliases: vec![HostAlias { host: "registry.test".into(), address: server.address.ip() }],
        certificate_authorities: vec![certificate],
        ..request(server.address)
    };
    let shown = |registry: String| ClientCertificate { registry, ..client.clone() };
    fresh(&Pull { client_certificates: vec![shown(format!("Registry.test:{port}"))], ..order.clone() })
        .unwrap();
    for certificates in [vec![], vec![shown("registry.test".into())], vec![shown("other.test".into())]] {
        let error = fresh(&Pull { client_certificates: certificates, ..order.clone() }).unwrap_err();
        assert_eq!(error.kind(), PullFailureKind::Tls, "{error}");
        assert!(error.to_string().to_lowercase().contains("certificate"), "{error}");
    }
    for (chain, key, word) in [
        ("", client.key.as_str(), "no certificate"),
        (client.chain.as_str(), "hidden", "no pem key"),
        (client.chain.as_str(), OTHER_KEY, "keys"),
    ] {
        let wrong = ClientCertificate {
            registry: format!("registry.test:{port}"),
            chain: chain.into(),
            key: key.into(),
        };
        let error =
            fresh(&Pull { client_certificates: vec![wrong], ..order.clone() }).unwrap_err().to_string();
        assert!(error.contains("client certificate for registry.test"), "{error}");
        assert!(error.to_lowercase().contains(word) && !error.contains("hidden"), "{error}");
    }
}

#[test]
fn a_literal_ipv6_address_is_a_registry_like_any_other() {
    let image = TestImage::new(&[b"one"]);
    let served = image.clone();
    let server =
        FakeServer::listen_on(std::net::TcpListener::bind("[::1]:0").unwrap(), None, move |request| {
            served.answer(request)
        });
    let pulled = fresh(&request(server.address)).unwrap();
    assert_eq!(pulled.reference, format!("[::1]:{}/test/image:latest", server.address.port()));
    let host = server.seen.lock().unwrap()[0].fields["host"].clone();
    assert_eq!(host, format!("[::1]:{}", server.address.port()));
}

#[test]
fn after_a_break_no_byte_is_fetched_twice() {
    let layer = noise(2_000_000, 5);
    let image = TestImage::new(&[&layer]);
    let part = image.layer_part(0);
    let whole: usize =
        image.parts.iter().filter(|(name, _)| name.starts_with("blobs/")).map(|(_, part)| part.1.len()).sum();
    let (certificate, config) = certify("registry.test");
    for tls in [false, true] {
        let (image, part) = (image.clone(), part.clone());
        let handler = move |request: &Request| {
            let cut = (request.target.contains(&part) && request.nth < 5).then_some(300_001 + request.nth);
            Reply { break_after: cut, ..image.answer(request) }
        };
        let server =
            if tls { FakeServer::start_tls(config.clone(), handler) } else { FakeServer::start(handler) };
        let order = Pull {
            reference: format!("registry.test:{}/test/image", server.address.port()),
            aliases: vec![HostAlias { host: "registry.test".into(), address: server.address.ip() }],
            certificate_authorities: vec![certificate.clone()],
            insecure: if tls { vec![] } else { vec!["registry.test".into()] },
            ..request(server.address)
        };
        fresh(&order).unwrap();
        let twice = server.sent.load(Ordering::Relaxed) - whole as u64;
        assert_eq!(twice, 0, "TLS: {tls}");
        assert_eq!(server.count(&part_of(&server)), 6);
    }
}

/// The target of the blob that was asked for most.
fn part_of(server: &FakeServer) -> String {
    let seen = server.seen.lock().unwrap();
    seen.iter().max_by_key(|request| request.nth).unwrap().target.clone()
}

#[test]
fn a_server_that_answers_a_range_wrongly_is_asked_for_the_whole() {
    let layer = noise(300_000, 6);
    for wrong in ["416", "shifted", "other total", "none"] {
        let image = TestImage::new(&[&layer]);
        let part = image.layer_part(0);
        let server = FakeServer::start(move |request| {
            if !request.target.contains(&part) {
                return image.answer(request);
            }
            let mut whole = request.clone();
            let ranged = whole.fields.remove("range").is_some();
            let answer = image.answer(&whole);
            match (ranged, wrong) {
                (false, _) => Reply { break_after: (request.nth == 0).then_some(100_000), ..answer },
                (true, "416") => Reply::status(416),
                (true, "shifted") => {
                    Reply { status: 206, ..answer }.with("Content-Range", "bytes 0-299999/300000")
                }
                (true, "other total") => Reply { status: 206, body: vec![0; 200_000], ..Reply::default() }
                    .with("Content-Range", "bytes 100000-299999/400000"),
                (true, _) => Reply { status: 206, ..answer },
            }
        });
        fresh(&request(server.address)).unwrap_or_else(|error| panic!("{wrong}: {error}"));
    }
}

#[test]
fn a_server_says_when_to_come_back() {
    let image = TestImage::new(&[b"one"]);
    for (field, date) in
        [("1", None), ("Fri, 31 Dec 1999 23:59:59 GMT", Some("Fri, 31 Dec 1999 23:59:58 GMT"))]
    {
        let image = image.clone();
        let server = FakeServer::start(move |request| {
            if request.target.contains("manifests/latest") && request.nth == 0 {
                let busy = Reply::status(429).with("Retry-After", field);
                return match date {
                    Some(date) => busy.with("Date", date),
                    None => busy,
                };
            }
            image.answer(request)
        });
        let begun = Instant::now();
        fresh(&request(server.address)).unwrap();
        assert!(begun.elapsed() >= Duration::from_secs(1), "{field}");
    }
}

#[test]
fn a_layer_that_may_not_be_distributed_comes_from_its_own_address() {
    let layer = noise(100_000, 8);
    let elsewhere = layer.clone();
    let vendor = FakeServer::start(move |request| match request.target.as_str() {
        "/good" => Reply::ok(elsewhere.clone()),
        _ => Reply::status(404),
    });
    // Loopback like the registry, and yet nobody that was declared insecure.
    let vendor_address = format!("localhost:{}", vendor.address.port());
    for (kind, there, expected) in [
        ("oci.image.layer.nondistributable.v1.tar", &["gone", "good"][..], None),
        ("oci.image.layer.nondistributable.v1.tar", &["gone"], Some(PullFailureKind::NotFound)),
        ("oci.image.layer.v1.tar", &["good"], Some(PullFailureKind::NotFound)),
    ] {
        let mut image = TestImage::new(&[&layer]);
        let (_, manifest) = &image.parts[&format!("manifests/{}", image.manifest)];
        let urls: Vec<_> = there.iter().map(|path| format!("\"http://{vendor_address}/{path}\"")).collect();
        let manifest = String::from_utf8(manifest.clone()).unwrap().replace(
            "\"application/vnd.oci.image.layer.v1.tar\"",
            &format!("\"application/vnd.{kind}\",\"urls\":[{}]", urls.join(",")),
        );
        image.parts.insert("manifests/latest".into(), (MANIFEST_TYPE.into(), manifest.into_bytes()));
        let part = image.layer_part(0);
        image.parts.remove(&part);
        let guarded = FakeServer::start(move |request| match request.fields.contains_key("authorization") {
            true => image.answer(request),
            false => Reply::status(401).with("WWW-Authenticate", "Basic realm=x"),
        });
        let order = Pull {
            credentials: Credentials::Basic { user: "u".into(), password: "p".into() },
            insecure: vec![vendor_address.clone()],
            ..request(guarded.address)
        };
        let outcome = fresh(&order).map_err(|error| error.kind());
        assert_eq!(outcome.as_ref().err(), expected.as_ref(), "{kind} {there:?}");
        let strict = fresh(&Pull { insecure: vec![], ..order }).unwrap_err().to_string();
        assert!(expected.is_some() || strict.contains("plain http"), "{strict}");
    }
    let seen = vendor.seen.lock().unwrap();
    assert!(seen.iter().all(|seen| !seen.fields.contains_key("authorization")), "credentials went elsewhere");
}

/// Of a certificate that nobody here has.
const OTHER_KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
";

/// A server that wants a client's certificate, what it is trusted by, and such a certificate.
fn certify_both(name: &str) -> (String, Arc<rustls::ServerConfig>, ClientCertificate) {
    let server = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(server.signing_key.serialize_der()).unwrap();
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = parameters.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(parameters, &authority_key);
    let client_key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["client.test".to_owned()]).unwrap();
    let client = parameters.signed_by(&client_key, &issuer).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .build()
            .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![server.cert.der().clone()], key)
        .unwrap();
    let shown =
        ClientCertificate { registry: String::new(), chain: client.pem(), key: client_key.serialize_pem() };
    (server.cert.pem(), config.into(), shown)
}
