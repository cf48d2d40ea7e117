//! Pulls against a registry that behaves, and one that does not.

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::*;
use nacre_protocols::agent_puller::{Credentials, HostAlias, Pull, PullFailureKind, PulledImage, Verdict};
use nacre_puller::digest::Digest;
use nacre_puller::pull::{Context, Event, PullError, pull};
use nacre_puller::registry::transport::Cancel;

fn quietly(context: &Context, request: &Pull) -> Result<PulledImage, PullError> {
    pull(context, request, &Cancel::default(), &|_| {})
}

/// Pulls, and expects this kind of failure with these words, and nothing left over.
fn fails(store: &std::path::Path, request: &Pull, kind: PullFailureKind, words: &[&str]) {
    let context = context(store);
    let error = quietly(&context, request).expect_err("the pull went well");
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
    assert!(nothing_half_done(store), "{text}");
}

#[test]
fn an_image_is_pulled_through_index_manifest_and_config() {
    let store = tempfile::tempdir().unwrap();
    let large = noise(600_000, 1);
    let image = TestImage::new(&[&large, b"small", b"small"]);
    let served = image.clone();
    let server = FakeServer::start(move |request| served.answer(request));
    let context = context(store.path());
    let events = Mutex::new(Vec::new());
    let report = |event| events.lock().unwrap().push(event);
    let pulled = pull(&context, &request(server.address), &Cancel::default(), &report).unwrap();

    assert_eq!(pulled.reference, format!("{}/test/image:latest", server.address));
    assert_eq!(format!("sha256:{}", pulled.manifest), image.manifest);
    assert_ne!(pulled.root, pulled.manifest);
    assert_eq!(pulled.process.command, ["/bin/sh"]);
    assert_eq!(pulled.process.env, ["A=b"]);
    let diff_ids: Vec<_> = pulled.layers.iter().map(|layer| format!("sha256:{}", layer.diff_id)).collect();
    let expected: Vec<_> = image.layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    assert_eq!(diff_ids, expected);
    assert_eq!(pulled.layers[0].tar, 600_000);
    let tar = store.path().join("store/layers").join(pulled.layers[0].diff_id.to_string()).join("layer.tar");
    assert_eq!(std::fs::read(tar).unwrap(), large);
    assert_eq!(server.count(&image.layer_part(1)), 1, "the same layer twice in an image is fetched once");

    let events = events.into_inner().unwrap();
    let Event::Layers(listed) = &events[0] else { panic!("layers come first: {events:?}") };
    assert_eq!(
        listed.iter().map(|layer| (layer.size, layer.present)).collect::<Vec<_>>(),
        [(600_000, false), (5, false), (5, false)]
    );
    let mut done: Vec<_> = events
        .iter()
        .filter_map(|event| if let Event::LayerDone { index } = event { Some(*index) } else { None })
        .collect();
    done.sort();
    assert_eq!(done, [0, 1, 2]);
    assert!(events.iter().any(|event| matches!(event, Event::Progress { index: 0, fetched: 600_000 })));

    let before = server.count("blobs");
    let events = Mutex::new(Vec::new());
    let report = |event| events.lock().unwrap().push(event);
    let again = pull(&context, &request(server.address), &Cancel::default(), &report).unwrap();
    assert_eq!(again, pulled);
    assert_eq!(server.count("blobs"), before + 1, "the second time only the config is fetched");
    let events = events.into_inner().unwrap();
    assert!(matches!(&events[0], Event::Layers(listed) if listed.iter().all(|layer| layer.present)));
}

#[test]
fn an_image_named_by_digest_must_have_it() {
    let store = tempfile::tempdir().unwrap();
    let image = TestImage::new(&[b"a"]);
    let (served, digest) = (image.clone(), image.manifest.clone());
    let server = FakeServer::start(move |request| served.answer(request));
    let by_digest =
        Pull { reference: format!("{}/test/image@{digest}", server.address), ..request(server.address) };
    let pulled = quietly(&context(store.path()), &by_digest).unwrap();
    assert_eq!(pulled.root, pulled.manifest);

    let server = FakeServer::start(move |request| {
        let reply = image.answer(request);
        let lying = String::from_utf8_lossy(&reply.body).replace("\"size\":1", "\"size\":2");
        if request.target.contains("manifests") {
            Reply::ok(lying)
                .with("Content-Type", MANIFEST_TYPE)
                .with("Docker-Content-Digest", digest.as_str())
        } else {
            reply
        }
    });
    let by_digest = Pull {
        reference: by_digest.reference.replacen(
            &by_digest.reference[..by_digest.reference.find('/').unwrap()],
            &server.address.to_string(),
            1,
        ),
        ..by_digest
    };
    fails(
        store.path(),
        &by_digest,
        PullFailureKind::Digest,
        &["manifest", "expected sha256:", "got sha256:"],
    );
}

#[test]
fn a_bearer_token_is_fetched_and_renewed_when_it_ends() {
    let store = tempfile::tempdir().unwrap();
    let image = TestImage::new(&[b"one", b"two", b"three", b"four", b"five"]);
    let issued = AtomicUsize::new(0);
    let uses = AtomicUsize::new(0);
    let token_server = FakeServer::start(move |_| {
        let number = issued.fetch_add(1, Ordering::Relaxed);
        Reply::ok(format!(r#"{{"token":"token-{number}","expires_in":1}}"#))
    });
    let realm = format!("http://{}/token", token_server.address);
    let server = FakeServer::start(move |request| {
        // Every token is good for six requests.
        let good = format!("Bearer token-{}", uses.load(Ordering::SeqCst) / 6);
        if request.fields.get("authorization") == Some(&good) {
            uses.fetch_add(1, Ordering::SeqCst);
            return image.answer(request);
        }
        let challenge =
            format!(r#"Bearer realm="{realm}",service="a service",scope="repository:test/image:pull""#);
        Reply { body: b"{}".into(), ..Reply::status(401) }.with("WWW-Authenticate", challenge)
    });
    let request = Pull {
        credentials: Credentials::Basic { user: "Aladdin".into(), password: "open sesame".into() },
        ..request(server.address)
    };
    quietly(&context(store.path()), &request).unwrap();
    let seen = token_server.seen.lock().unwrap();
    assert!(seen.len() >= 2, "{}", seen.len());
    assert_eq!(seen[0].method, "GET");
    assert_eq!(seen[0].target, "/token?service=a%20service&scope=repository%3Atest%2Fimage%3Apull");
    assert_eq!(seen[0].fields["authorization"], "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
}

#[test]
fn an_identity_token_is_traded_by_post() {
    let store = tempfile::tempdir().unwrap();
    let image = TestImage::new(&[b"one"]);
    let token_server = FakeServer::start(|_| Reply::ok(r#"{"access_token":"abc"}"#));
    let realm = format!("http://{}/token", token_server.address);
    let server =
        FakeServer::start(move |request| match request.fields.get("authorization").map(String::as_str) {
            Some("Bearer abc") => image.answer(request),
            _ => Reply::status(401).with("WWW-Authenticate", format!(r#"Bearer realm="{realm}",service=s"#)),
        });
    let request =
        Pull { credentials: Credentials::IdentityToken("secret".into()), ..request(server.address) };
    quietly(&context(store.path()), &request).unwrap();
    let seen = token_server.seen.lock().unwrap();
    assert_eq!(seen[0].method, "POST");
    assert!(seen[0].body.contains("grant_type=refresh_token"), "{}", seen[0].body);
    assert!(seen[0].body.contains("refresh_token=secret"), "{}", seen[0].body);
    assert!(!seen[0].fields.contains_key("authorization"));
}

#[test]
fn refused_credentials_say_who_refuses() {
    let store = tempfile::tempdir().unwrap();
    let basic = || Credentials::Basic { user: "u".into(), password: "p".into() };
    let asks_basic = FakeServer::start(|_| Reply::status(401).with("WWW-Authenticate", "Basic realm=x"));
    fails(store.path(), &request(asks_basic.address), PullFailureKind::Unauthorized, &["asks for a user"]);
    let with_password = Pull { credentials: basic(), ..request(asks_basic.address) };
    fails(store.path(), &with_password, PullFailureKind::Unauthorized, &["no such image"]);
    assert!(asks_basic.seen.lock().unwrap().iter().any(|seen| seen.fields.contains_key("authorization")));
    let forbids = FakeServer::start(|_| Reply {
        body: br#"{"errors":[{"code":"DENIED","message":"not for you"}]}"#.into(),
        ..Reply::status(403)
    });
    fails(store.path(), &request(forbids.address), PullFailureKind::Unauthorized, &["DENIED: not for you"]);
    let refuses = FakeServer::start(|_| Reply::status(401));
    let realm = format!(r#"Bearer realm="http://{}/t""#, refuses.address);
    let asks_bearer = FakeServer::start(move |_| Reply::status(401).with("WWW-Authenticate", realm.as_str()));
    let with_password = Pull { credentials: basic(), ..request(asks_bearer.address) };
    fails(store.path(), &with_password, PullFailureKind::Unauthorized, &["does not accept the credentials"]);
    let plain_elsewhere = FakeServer::start(|_| {
        Reply::status(401).with("WWW-Authenticate", r#"Bearer realm="http://elsewhere.test/t""#)
    });
    let with_password = Pull { credentials: basic(), ..request(plain_elsewhere.address) };
    fails(store.path(), &with_password, PullFailureKind::Unauthorized, &["elsewhere.test/t is plain http"]);
}

#[test]
fn credentials_do_not_follow_a_redirect_to_another_host() {
    let store = tempfile::tempdir().unwrap();
    let image = TestImage::new(&[b"one", b"two"]);
    let blobs = image.clone();
    let other = FakeServer::start(move |request| blobs.answer(request));
    let elsewhere = format!("http://{}", other.address);
    let server = FakeServer::start(move |request| {
        if !request.fields.contains_key("authorization") {
            return Reply::status(401).with("WWW-Authenticate", "Basic realm=x");
        }
        match request.target.contains("/blobs/") {
            true => Reply::status(307).with("Location", format!("{elsewhere}{}", request.target)),
            false => image.answer(request),
        }
    });
    let request = Pull {
        credentials: Credentials::Basic { user: "u".into(), password: "p".into() },
        ..request(server.address)
    };
    quietly(&context(store.path()), &request).unwrap();
    let seen = other.seen.lock().unwrap();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|seen| !seen.fields.contains_key("authorization")), "{seen:?}");
}

#[test]
fn redirects_are_bounded() {
    let store = tempfile::tempdir().unwrap();
    let server = FakeServer::start(|request| Reply::status(302).with("Location", request.target.as_str()));
    fails(store.path(), &request(server.address), PullFailureKind::Malformed, &["redirect", "more than 5"]);
    assert_eq!(server.count("manifests"), 6);
}

#[test]
fn busy_and_failing_registries_are_asked_again() {
    let store = tempfile::tempdir().unwrap();
    let image = TestImage::new(&[b"one"]);
    let server = FakeServer::start(move |request| match request.nth {
        0 => Reply::status(429).with("Retry-After", "0"),
        1 => Reply::status(503),
        _ => image.answer(request),
    });
    quietly(&context(store.path()), &request(server.address)).unwrap();
    let busy = FakeServer::start(|_| Reply::status(429));
    fails(store.path(), &request(busy.address), PullFailureKind::Limit, &["429"]);
    assert_eq!(busy.count("manifests"), 4, "the first try and three more");
    let broken = FakeServer::start(|_| Reply::ok("short").with("x", "y")).address;
    fails(store.path(), &request(broken), PullFailureKind::Malformed, &["manifest", "JSON"]);
}

#[test]
fn a_broken_blob_goes_on_where_it_broke() {
    let layer = noise(300_000, 2);
    for with_ranges in [true, false] {
        let store = tempfile::tempdir().unwrap();
        let image = TestImage::new(&[&layer]);
        let part = image.layer_part(0);
        let server = FakeServer::start(move |request| {
            let mut request = request.clone();
            if !with_ranges {
                request.fields.remove("range");
            }
            let reply = image.answer(&request);
            let cut =
                (request.target.contains(&part) && request.nth < 3).then_some(80_000 + 10_000 * request.nth);
            // Without ranges each answer starts over and must get further to be of use.
            let cut = cut.map(|cut| if with_ranges { cut } else { cut + 90_000 * request.nth });
            Reply { break_after: cut, ..reply }
        });
        quietly(&context(store.path()), &request(server.address)).unwrap();
        let seen = server.seen.lock().unwrap();
        let ranges: Vec<_> =
            seen.iter().filter_map(|seen| seen.fields.get("range")).map(String::as_str).collect();
        assert_eq!(ranges.len(), 3);
        assert_eq!(ranges[0], "bytes=80000-");
    }
}

#[test]
fn a_blob_that_never_gets_further_is_given_up() {
    let store = tempfile::tempdir().unwrap();
    let layer = noise(300_000, 3);
    let image = TestImage::new(&[&layer]);
    let part = image.layer_part(0);
    let server = FakeServer::start(move |request| {
        let cut = request.target.contains(&part).then_some(if request.nth == 0 { 1000 } else { 0 });
        Reply { break_after: cut, ..image.answer(request) }
    });
    fails(store.path(), &request(server.address), PullFailureKind::Connect, &["layer 1 of 1", "closed"]);
    assert!(server.count("blobs") < 10);
}

#[test]
fn chunked_answers_are_put_together() {
    let store = tempfile::tempdir().unwrap();
    let layer = noise(100_000, 4);
    let image = TestImage::new(&[&layer]);
    let server = FakeServer::start(move |request| Reply { chunked: Some(7777), ..image.answer(request) });
    quietly(&context(store.path()), &request(server.address)).unwrap();
}

#[test]
fn a_stalled_registry_ends_the_pull_in_time() {
    let store = tempfile::tempdir().unwrap();
    let layer = noise(100_000, 5);
    let image = TestImage::new(&[&layer]);
    let part = image.layer_part(0);
    let server = FakeServer::start(move |request| {
        let stall = request.target.contains(&part).then_some(if request.nth == 0 { 1000 } else { 0 });
        Reply { stall_after: stall, ..image.answer(request) }
    });
    let begun = Instant::now();
    fails(
        store.path(),
        &request(server.address),
        PullFailureKind::Stalled,
        &["layer 1 of 1", "sent nothing for 0.3 s"],
    );
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[test]
fn cancelling_ends_a_pull_at_once() {
    let store = tempfile::tempdir().unwrap();
    let layer = noise(100_000, 6);
    let image = TestImage::new(&[&layer]);
    let part = image.layer_part(0);
    let server = FakeServer::start(move |request| {
        let stall = request.target.contains(&part).then_some(1000);
        Reply { stall_after: stall, ..image.answer(request) }
    });
    let context = patient_context(store.path(), Duration::from_secs(60));
    let cancel = Cancel::default();
    let set = cancel.clone();
    let report = move |event| {
        if let Event::Layers(_) = event {
            let set = set.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                set.set();
            });
        }
    };
    let begun = Instant::now();
    let error = pull(&context, &request(server.address), &cancel, &report).unwrap_err();
    assert_eq!(error.kind(), PullFailureKind::Cancelled, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(nothing_half_done(store.path()));
}

#[test]
fn nothing_that_differs_from_its_digest_or_size_is_kept() {
    let layer = noise(5000, 7);
    let mut flipped = layer.clone();
    flipped[4999] ^= 1;
    let image = TestImage::new(&[&layer]);
    let part = image.layer_part(0);
    let config = image.parts.keys().find(|key| key.starts_with("blobs/") && **key != part).unwrap().clone();
    let config_body = image.parts[&config].1.clone();
    let other_config =
        String::from_utf8(config_body.clone()).unwrap().replace("/bin/sh", "/bin/ls").into_bytes();
    for (served, body, kind, words) in [
        (&part, flipped, PullFailureKind::Digest, ["layer 1 of 1", "digest mismatch"]),
        (
            &part,
            layer[..4999].to_vec(),
            PullFailureKind::Malformed,
            ["layer 1 of 1", "4999 bytes long, not 5000"],
        ),
        (&part, [&layer[..], b"x"].concat(), PullFailureKind::Malformed, ["layer 1 of 1", "5001 bytes long"]),
        (&config, other_config, PullFailureKind::Digest, ["config", "digest mismatch"]),
        (&config, b"{}".to_vec(), PullFailureKind::Malformed, ["config", "is 2 bytes long"]),
        (&config, [&config_body[..], b" "].concat(), PullFailureKind::Limit, ["config", "larger than"]),
    ] {
        for chunked in [None, Some(1000)] {
            let store = tempfile::tempdir().unwrap();
            let (image, served, body) = (image.clone(), served.clone(), body.clone());
            let server = FakeServer::start(move |request| match request.target.contains(&served) {
                // A body that is short in chunks looks as if it broke, and is asked for again.
                true => Reply { chunked, ..Reply::ok(body.clone()) },
                false => image.answer(request),
            });
            let words = if chunked.is_some() { &words[..1] } else { &words[..] };
            let context = context(store.path());
            let error = quietly(&context, &request(server.address)).expect_err("it was kept");
            if chunked.is_none() {
                assert_eq!(error.kind(), kind, "{error}");
            }
            words.iter().for_each(|word| assert!(error.to_string().contains(word), "{error}"));
            assert!(nothing_half_done(store.path()));
            assert_eq!(std::fs::read_dir(store.path().join("store/layers")).unwrap().count(), 0, "{error}");
        }
    }
}

#[test]
fn a_policy_is_asked_before_anybody_else_and_again_about_the_digests() {
    let store = tempfile::tempdir().unwrap();
    let image = TestImage::new(&[b"one"]);
    let served = image.clone();
    let server = FakeServer::start(move |request| served.answer(request));
    let with = |policy: String| Pull { policy, ..request(server.address) };
    let rule =
        |rule: &str| with(format!(r#"{{"transports":{{"docker":{{"{}":[{rule}]}}}}}}"#, server.address));
    for (request, words) in [
        (with("{}".into()), &["no rule is there for"][..]),
        (with("x".into()), &["policy", "JSON"]),
        (rule(r#"{"type":"reject"}"#), &["rejected by the rule of"]),
        (rule(r#"{"type":"signedBy"}"#), &["signedBy"]),
        (rule(r#"{"type":"trustMe"}"#), &["unknown type \"trustMe\""]),
    ] {
        fails(store.path(), &request, PullFailureKind::Policy, words);
    }
    assert_eq!(server.count("v2"), 0, "nobody is asked for what is not taken");
    let list = |digest: &str| rule(&format!(r#"{{"type":"allowDigests","digests":["{digest}"]}}"#));
    let other = Digest::of(b"other").to_string();
    fails(store.path(), &list(&other), PullFailureKind::Policy, &[&image.manifest, "does not have"]);
    assert_eq!(server.count(&image.layer_part(0)), 0, "no layer of it is fetched");
    let pulled = quietly(&context(store.path()), &list(&image.manifest)).unwrap();
    assert_eq!(
        pulled.verdict,
        Verdict::Listed { scope: server.address.to_string(), digest: pulled.manifest }
    );
    let accepted = quietly(&context(store.path()), &rule(r#"{"type":"insecureAcceptAnything"}"#)).unwrap();
    assert_eq!(accepted.verdict, Verdict::Accepted { scope: server.address.to_string() });
}

#[test]
fn a_layer_must_unpack_to_its_diff_id() {
    let store = tempfile::tempdir().unwrap();
    let image = TestImage::with_diff_ids(&[b"one", b"two"], &[Digest::of(b"one"), Digest::of(b"else")]);
    let server = FakeServer::start(move |request| image.answer(request));
    let words = ["layer 2 of 2", "diff_ids", "expected sha256:", "got sha256:"];
    fails(store.path(), &request(server.address), PullFailureKind::Digest, &words);
    let wrong = store.path().join("store/layers").join(Digest::of(b"else").hex());
    assert!(!wrong.exists());
}

#[test]
fn a_layer_cannot_be_claimed_by_naming_its_diff_id() {
    let store = tempfile::tempdir().unwrap();
    let context = context(store.path());
    let secret = TestImage::new(&[b"secret"]);
    let server = FakeServer::start(move |request| secret.answer(request));
    quietly(&context, &request(server.address)).unwrap();
    let thief = TestImage::with_diff_ids(&[b"blob"], &[Digest::of(b"secret")]);
    let server = FakeServer::start(move |request| thief.answer(request));
    let error = quietly(&context, &request(server.address)).unwrap_err();
    assert_eq!(error.kind(), PullFailureKind::Digest, "{error}");
}

#[test]
fn what_is_not_there_or_not_for_this_machine_is_named() {
    let store = tempfile::tempdir().unwrap();
    let image = TestImage::new(&[b"one"]);
    let served = image.clone();
    let server = FakeServer::start(move |request| served.answer(request));
    let at = server.address;
    let named = |name: &str| Pull { reference: format!("{at}/{name}"), ..request(at) };
    let unknown = ["manifest", "test/image:none", "MANIFEST_UNKNOWN: manifest unknown"];
    fails(store.path(), &named("test/image:none"), PullFailureKind::NotFound, &unknown);
    fails(store.path(), &named("Upper"), PullFailureKind::Reference, &["repository path"]);
    let mut other = request(at);
    other.platform.architecture = "riscv64".into();
    fails(store.path(), &other, PullFailureKind::Platform, &["linux/riscv64", "there is linux/amd64"]);
    // A single manifest states its platform in its config.
    other.reference = format!("{at}/test/image@{}", image.manifest);
    fails(store.path(), &other, PullFailureKind::Platform, &["linux/riscv64", "there is linux/amd64"]);
}

#[test]
fn an_index_inside_an_index_is_refused() {
    let store = tempfile::tempdir().unwrap();
    let mut image = TestImage::new(&[b"one"]);
    let inner = image.parts["manifests/latest"].1.clone();
    let outer = format!(
        r#"{{"manifests":[{{"digest":"{}","size":{},"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
        Digest::of(&inner),
        inner.len()
    );
    image.parts.insert("manifests/latest".into(), (INDEX_TYPE.into(), outer.into_bytes()));
    let server = FakeServer::start(move |request| image.answer(request));
    fails(store.path(), &request(server.address), PullFailureKind::Malformed, &["index inside an index"]);
}

#[test]
fn unreachable_hosts_say_how_they_are() {
    let store = tempfile::tempdir().unwrap();
    let refused = connect_refused();
    let port = refused.port().to_string();
    fails(store.path(), &request(refused), PullFailureKind::Connect, &["cannot connect", &port]);
    let unknown = Pull { reference: "registry.test/a".into(), ..request(refused) };
    fails(store.path(), &unknown, PullFailureKind::NameResolution, &["registry.test", "resolv.conf"]);
    // It speaks TLS to none and HTTP to none.
    let ssh = raw_server(|mut stream| {
        let _ = std::io::Write::write_all(&mut stream, b"SSH-2.0-OpenSSH\r\n\r\n");
        std::thread::sleep(Duration::from_secs(1));
    });
    fails(store.path(), &request(ssh), PullFailureKind::Malformed, &["not HTTP"]);
}

#[test]
fn plain_http_is_for_loopback_and_declared_hosts_alone() {
    let store = tempfile::tempdir().unwrap();
    let image = TestImage::new(&[b"one"]);
    let server = FakeServer::start(move |request| image.answer(request));
    let alias = HostAlias { host: "registry.test".into(), address: server.address.ip() };
    let mut request = Pull {
        reference: format!("registry.test:{}/test/image", server.address.port()),
        aliases: vec![alias],
        ..request(server.address)
    };
    fails(store.path(), &request, PullFailureKind::Tls, &["TLS with registry.test"]);
    assert_eq!(server.count("v2"), 0);
    request.insecure = vec![format!("Registry.test:{}", server.address.port())];
    quietly(&context(store.path()), &request).unwrap();
    let host = server.seen.lock().unwrap()[0].fields["host"].clone();
    assert_eq!(host, format!("registry.test:{}", server.address.port()));
}

#[test]
fn a_certificate_must_lead_to_a_root_unless_the_host_is_declared_insecure() {
    let store = tempfile::tempdir().unwrap();
    let image = TestImage::new(&[b"one"]);
    let (certificate, config) = certify("registry.test");
    let server = FakeServer::start_tls(config, move |request| image.answer(request));
    let named = |host: &str| Pull {
        reference: format!("{host}:{}/test/image", server.address.port()),
        aliases: vec![HostAlias { host: host.into(), address: server.address.ip() }],
        ..request(server.address)
    };
    fails(store.path(), &named("registry.test"), PullFailureKind::Tls, &["registry.test", "UnknownIssuer"]);
    let trusting = |host| Pull { certificate_authorities: vec![certificate.clone()], ..named(host) };
    quietly(&context(store.path()), &trusting("registry.test")).unwrap();
    fails(store.path(), &trusting("other.test"), PullFailureKind::Tls, &["other.test", "not valid for name"]);
    let insecure = Pull { insecure: vec!["registry.test".into()], ..named("registry.test") };
    quietly(&context(store.path()), &insecure).unwrap();
    let no_pem = Pull { certificate_authorities: vec!["x".into()], ..named("registry.test") };
    fails(store.path(), &no_pem, PullFailureKind::Tls, &["certificate authority 0", "PEM"]);
}

#[test]
fn a_redirect_does_not_lead_from_https_to_plain_http() {
    let store = tempfile::tempdir().unwrap();
    let image = TestImage::new(&[b"one"]);
    let blobs = image.clone();
    let plain = FakeServer::start(move |request| blobs.answer(request));
    let elsewhere = format!("http://{}", plain.address);
    let (certificate, config) = certify("registry.test");
    let server = FakeServer::start_tls(config, move |request| match request.target.contains("/blobs/") {
        true => Reply::status(307).with("Location", format!("{elsewhere}{}", request.target)),
        false => image.answer(request),
    });
    let mut request = Pull {
        reference: format!("registry.test:{}/test/image", server.address.port()),
        aliases: vec![HostAlias { host: "registry.test".into(), address: server.address.ip() }],
        certificate_authorities: vec![certificate],
        ..request(server.address)
    };
    fails(
        store.path(),
        &request,
        PullFailureKind::Malformed,
        &["config", "redirect", "to plain http at 127.0.0.1"],
    );
    assert_eq!(plain.count("blobs"), 0);
    request.insecure = vec![plain.address.to_string()];
    quietly(&context(store.path()), &request).unwrap();
}

#[test]
fn pulls_that_share_a_layer_fetch_it_once() {
    let store = tempfile::tempdir().unwrap();
    let shared = noise(400_000, 8);
    let image = TestImage::new(&[&shared, b"other"]);
    let part = image.layer_part(0);
    let server = FakeServer::start(move |request| image.answer(request));
    let context = context(store.path());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| quietly(&context, &request(server.address)).unwrap());
        }
    });
    assert_eq!(server.count(&part), 1);
}

#[test]
fn a_dead_indexer_fails_the_pull() {
    let store = tempfile::tempdir().unwrap();
    let image = TestImage::new(&[b"one"]);
    let server = FakeServer::start(move |request| image.answer(request));
    let (fetcher, indexer) = nacre_sys::seqpacket::pair().unwrap();
    std::thread::spawn(move || {
        let _ = nacre_sys::seqpacket::receive(&indexer, &mut [0; 4096]);
    });
    let context = context_with(store.path(), fetcher, SHORT_STALL);
    for _ in 0..2 {
        let error = quietly(&context, &request(server.address)).unwrap_err();
        assert_eq!(error.kind(), PullFailureKind::Internal, "{error}");
        assert!(error.to_string().contains("indexer is gone"), "{error}");
    }
    assert!(nothing_half_done(store.path()));
}

#[test]
fn a_full_scratch_disk_is_said_to_be_full() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "mounting a small file system needs root");
        return eprintln!("skipped: mounting a small file system needs root");
    }
    let store = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
        .arg(store.path())
        .status()
        .unwrap();
    assert!(mounted.success());
    let layer = noise(400_000, 9);
    let image = TestImage::new(&[&layer]);
    let server = FakeServer::start(move |request| image.answer(request));
    let outcome = std::panic::catch_unwind(|| {
        let words = ["layer 1 of 1", "scratch disk is full", "of 262144 bytes used"];
        fails(store.path(), &request(server.address), PullFailureKind::DiskFull, &words);
    });
    std::process::Command::new("umount").arg(store.path()).status().unwrap();
    outcome.unwrap();
}
