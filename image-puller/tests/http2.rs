//! HTTP/2: with a registry as it is in the world, with one of our own that misbehaves, and with frames that are none.

mod common;

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::http2::{frame, read_frame};
use common::*;
use nacre_protocols::agent_puller::{Credentials, HostAlias, Pull, PullFailureKind, PulledImage};
use nacre_puller::pull::{PullError, pull};
use nacre_puller::registry::hpack;
use nacre_puller::registry::transport::Cancel;

fn attempt(store: &Path, request: &Pull) -> Result<PulledImage, PullError> {
    pull(&context(store), request, &Cancel::default(), &|_| {})
}

/// A request for `test/image` at `registry.test`, which is there.
fn named(server: SocketAddr, certificate: &str) -> Pull {
    Pull {
        reference: format!("registry.test:{}/test/image", server.port()),
        aliases: vec![HostAlias { host: "registry.test".into(), address: server.ip() }],
        certificate_authorities: vec![certificate.to_owned()],
        ..request(server)
    }
}

#[test]
fn an_image_comes_over_http_2_as_over_http_1() {
    let large = noise(20_000_000, 1);
    let image = TestImage::new(&[&large, b"two", b"three", b"four", b"five", b"six"]);
    let (certificate, config) = certify_two("registry.test");
    let token = "t".repeat(40_000);
    let challenge = r#"Bearer realm="https://registry.test:PORT/token",service="s""#;
    let (good, served) = (format!("Bearer {token}"), image.clone());
    let server = FakeServer::start_tls(config, move |request| {
        if request.target == "/token" {
            assert!(request.body.contains("refresh_token=secret"), "{}", request.body);
            return Reply::ok(format!(r#"{{"access_token":"{token}"}}"#));
        }
        if request.fields.get("authorization") != Some(&good) {
            let port = request.fields[":authority"].rsplit_once(':').unwrap().1;
            return Reply::status(401).with("WWW-Authenticate", challenge.replace("PORT", port));
        }
        // Without a length, too.
        Reply { chunked: request.target.contains("manifests").then_some(100), ..served.answer(request) }
    });
    let store = tempfile::tempdir().unwrap();
    let request = Pull {
        credentials: Credentials::IdentityToken("secret".into()),
        ..named(server.address, &certificate)
    };
    let pulled = attempt(store.path(), &request).unwrap();
    assert_eq!(pulled.layers.len(), 6);
    let tar = store.path().join("store/layers").join(pulled.layers[0].diff_id.to_string()).join("layer.tar");
    assert!(fs::read(tar).unwrap() == large);
    let seen = server.seen.lock().unwrap();
    assert!(seen.iter().all(|seen| seen.fields.contains_key(":authority")), "{seen:?}");
    assert_eq!(seen.iter().filter(|seen| seen.method == "POST").count(), 1);
}

#[test]
fn a_stream_that_breaks_goes_on_at_its_byte() {
    let layer = noise(500_000, 2);
    let image = TestImage::new(&[&layer]);
    for reset in [true, false] {
        let (certificate, config) = certify_two("registry.test");
        let (served, part) = (image.clone(), image.layer_part(0));
        let server = FakeServer::start_tls(config, move |request| {
            let breaks = request.target.contains(&part) && request.nth < 3;
            Reply { break_after: breaks.then_some(100_001), reset, ..served.answer(request) }
        });
        let store = tempfile::tempdir().unwrap();
        attempt(store.path(), &named(server.address, &certificate)).unwrap();
        let seen = server.seen.lock().unwrap();
        let ranges: Vec<_> = seen.iter().filter_map(|seen| seen.fields.get("range").cloned()).collect();
        let begins =
            |range: &String| range.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().unwrap();
        let begins: Vec<u64> = ranges.iter().map(begins).collect();
        assert_eq!(begins, [100_001, 200_002, 300_003], "reset: {reset}");
    }
}

#[test]
fn a_length_that_is_not_kept_is_found() {
    let image = TestImage::new(&[b"twelve bytes"]);
    for (announced, kind, words) in [
        (Some(11), PullFailureKind::Malformed, "is 11 bytes long, not 12"),
        (Some(13), PullFailureKind::Malformed, "is 13 bytes long, not 12"),
        (None, PullFailureKind::Stalled, "sent nothing"),
    ] {
        let (certificate, config) = certify_two("registry.test");
        let (served, part) = (image.clone(), image.layer_part(0));
        let server = FakeServer::start_tls(config, move |request| match request.target.contains(&part) {
            true => {
                Reply { announced, stall_after: announced.is_none().then_some(0), ..served.answer(request) }
            }
            false => served.answer(request),
        });
        let store = tempfile::tempdir().unwrap();
        let error = attempt(store.path(), &named(server.address, &certificate)).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(nothing_half_done(store.path()));
    }
}

/// What a server says after a whole request came: frames, one behind the other.
type Script = Vec<(u8, u8, u32, Vec<u8>)>;

fn scripted(config: Arc<rustls::ServerConfig>, script: Script) -> SocketAddr {
    raw_server(move |tcp: TcpStream| {
        let session = rustls::ServerConnection::new(config.clone()).unwrap();
        let mut stream = rustls::StreamOwned::new(session, tcp);
        let mut preface = [0; 24];
        if std::io::Read::read_exact(&mut stream, &mut preface).is_err() {
            return;
        }
        while read_frame(&mut stream).is_some_and(|(kind, ..)| kind != 1) {}
        for (kind, flags, id, payload) in &script {
            if frame(&mut stream, *kind, *flags, *id, payload).is_err() {
                return;
            }
        }
        stream.conn.send_close_notify();
        let _ = stream.flush();
        std::thread::sleep(Duration::from_millis(100));
    })
}

#[test]
fn frames_that_are_none_end_the_pull_by_name() {
    let ok = || hpack::encode(&[(":status", "200"), ("content-length", "5")]);
    let head = |fields: &[(&str, &str)]| vec![(1, 4, 1, hpack::encode(fields))];
    let malformed = PullFailureKind::Malformed;
    let connect = PullFailureKind::Connect;
    let cases: Vec<(&str, Script, PullFailureKind, &str)> = vec![
        ("nothing", vec![], connect, "closed the connection"),
        ("a huge frame", vec![(0, 0, 1, vec![0; 20_000])], malformed, "larger than 16 KiB"),
        ("data first", vec![(0, 0, 1, vec![0; 5])], malformed, "before the head"),
        ("data of nobody", vec![(0, 0, 7, vec![0; 5])], malformed, "data of no request"),
        ("a head of nobody", vec![(1, 4, 7, ok())], malformed, "head for no request"),
        ("a push", vec![(5, 4, 1, vec![0; 8])], malformed, "pushes"),
        ("a lone continuation", vec![(9, 4, 1, ok())], malformed, "continuation of nothing"),
        ("a head without an end", vec![(1, 0, 1, ok()), (0, 0, 1, vec![0; 5])], malformed, "has no end"),
        (
            "continued for ever",
            [vec![(1, 0, 1, ok())], vec![(9, 0, 1, vec![]); 2000]].concat(),
            malformed,
            "no end",
        ),
        (
            "a large head",
            [vec![(1, 0, 1, ok())], vec![(9, 0, 1, vec![0; 16_000]); 9]].concat(),
            malformed,
            "64 KiB",
        ),
        ("many pings", vec![(6, 0, 0, vec![0; 8]); 2000], malformed, "bring nothing"),
        ("many settings", vec![(4, 0, 0, vec![0; 6]); 2000], malformed, "bring nothing"),
        ("half a setting", vec![(4, 0, 0, vec![0; 5])], malformed, "length that its kind cannot have"),
        ("half a ping", vec![(6, 0, 0, vec![0; 7])], malformed, "length that its kind cannot have"),
        ("only padding", vec![(1, 4, 1, ok()), (0, 8, 1, vec![5, 0, 0])], malformed, "padding is longer"),
        ("a padded head", vec![(1, 12, 1, vec![5, 0, 0])], malformed, "padding is longer"),
        ("a dynamic table", vec![(1, 4, 1, vec![0xbe])], malformed, "dynamic table"),
        ("no status", head(&[("content-length", "5")]), malformed, "no status"),
        ("a status that is none", head(&[(":status", "2000")]), malformed, "no status"),
        ("a late status", head(&[("a", "b"), (":status", "200")]), malformed, "no status"),
        (
            "an upper case name",
            head(&[(":status", "200"), ("A", "b")]),
            malformed,
            "name that fields cannot have",
        ),
        (
            "a line in a value",
            head(&[(":status", "200"), ("a", "b\r\nc: d")]),
            malformed,
            "value that fields",
        ),
        (
            "chunks",
            head(&[(":status", "200"), ("transfer-encoding", "chunked")]),
            malformed,
            "Transfer-Encoding",
        ),
        (
            "two lengths",
            head(&[(":status", "200"), ("content-length", "5"), ("content-length", "6")]),
            malformed,
            "two different",
        ),
        (
            "interim for ever",
            vec![(1, 4, 1, hpack::encode(&[(":status", "103")])); 20],
            malformed,
            "too many interim",
        ),
        (
            "an interim end",
            vec![(1, 5, 1, hpack::encode(&[(":status", "103")]))],
            malformed,
            "interim answer ends",
        ),
        ("a reset", vec![(3, 0, 1, vec![0, 0, 0, 2])], connect, "INTERNAL_ERROR"),
        ("an unknown reset", vec![(3, 0, 1, vec![1, 0, 0, 2])], connect, "unknown error"),
        ("a way out", vec![(7, 0, 0, vec![0, 0, 0, 0, 0, 0, 0, 11])], connect, "ENHANCE_YOUR_CALM"),
        ("a quiet way out", vec![(7, 0, 0, vec![0; 8])], connect, "closed the connection"),
        ("half a body", vec![(1, 4, 1, ok()), (0, 1, 1, vec![b' '; 4])], connect, "closed the connection"),
        ("two heads", vec![(1, 4, 1, ok()), (1, 4, 1, ok())], malformed, "in the middle of the body"),
    ];
    let (certificate, config) = certify_two("registry.test");
    for (what, script, kind, words) in cases {
        let server = scripted(config.clone(), script);
        let store = tempfile::tempdir().unwrap();
        let error = attempt(store.path(), &named(server, &certificate)).expect_err(what);
        assert!(error.to_string().contains(words), "{what}: {error}");
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(nothing_half_done(store.path()));
    }
}

#[test]
fn a_proxy_inside_tls_is_spoken_to_in_http_1() {
    // What the tests' proxy does not do, `ways` would not find: an https proxy that could speak HTTP/2, too.
    let trust = nacre_puller::registry::tls::Trust::new(&[], &[]).unwrap();
    assert_eq!(trust.proxy.alpn_protocols, [b"http/1.1".to_vec()]);
}
