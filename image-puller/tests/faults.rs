//! A registry that misbehaves in every way we know, as a table: over HTTP/1.1, over HTTP/2, and against the processes
//! themselves. Each case ends as it should, in bounded memory, and leaves a store that is whole.
//!
//! What archives can do to harm is in `hostile.rs`, what frames of HTTP/2 can in `http2.rs`.

mod common;
mod puller;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::*;
use nacre_protocols::agent_puller::PullFailureKind::{self, *};
use nacre_protocols::agent_puller::{Credentials, HostAlias, Pull};
use nacre_puller::digest::Digest;
use nacre_puller::pull::pull;
use nacre_puller::registry::transport::Cancel;
use puller::Puller;

const LAYER_BYTES: usize = 600_000;
/// The most that may come twice in one case: what the fetcher reads at once.
const CHUNK_BYTES: u64 = 128 << 10;
/// The most that the fetcher may ever have resident, in KiB.
const RESIDENT_KIB_MAX: u64 = 24 << 10;
/// The longest that a case may take with the short waits of these tests.
const PATIENCE: Duration = Duration::from_secs(10);

type Fault = Arc<dyn Fn(&Request, Reply) -> Reply + Send + Sync>;

#[derive(Clone)]
struct Case {
    what: &'static str,
    fault: Fault,
    /// `None`: it is pulled all the same.
    fails: Option<(PullFailureKind, &'static str)>,
    /// It takes as long as the waits of the program itself.
    is_slow: bool,
}

fn case(
    what: &'static str,
    fails: impl Into<Option<(PullFailureKind, &'static str)>>,
    fault: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
) -> Case {
    Case { what, fault: Arc::new(fault), fails: fails.into(), is_slow: false }
}

fn slow(case: Case) -> Case {
    Case { is_slow: true, ..case }
}

fn layer() -> Vec<u8> {
    // Something that the indexer takes: a tar of one file.
    let name = b"file";
    let mut tar = vec![0; 512];
    tar[..4].copy_from_slice(name);
    let size = format!("{:011o}\0", LAYER_BYTES - 1536);
    for (at, text) in [(100, "0000644\0"), (108, "0000000\0"), (116, "0000000\0"), (136, "00000000000\0")] {
        tar[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    tar[124..136].copy_from_slice(size.as_bytes());
    tar[156] = b'0';
    tar[257..265].copy_from_slice(b"ustar\x0000");
    tar[148..156].fill(b' ');
    let sum: u32 = tar.iter().map(|byte| u32::from(*byte)).sum();
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend(noise(LAYER_BYTES - 1536, 11));
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

fn image() -> TestImage {
    TestImage::new(&[&layer()])
}

fn is_layer(request: &Request) -> bool {
    thread_local!(static PART: String = image().layer_part(0));
    PART.with(|part| request.target.ends_with(part))
}

fn is_config(request: &Request) -> bool {
    request.target.contains("/blobs/") && !is_layer(request)
}

fn is_tag(request: &Request) -> bool {
    request.target.ends_with("/manifests/latest")
}

/// What the registry asks for first: a token of `/token`, which `answer` makes.
fn guarded(request: &Request, reply: Reply, answer: impl Fn() -> Reply) -> Reply {
    if request.target.starts_with("/token") {
        return answer();
    }
    let origin = match request.fields.get(":authority") {
        Some(authority) => format!("https://{authority}"),
        None => format!("http://{}", request.fields["host"]),
    };
    match request.fields.get("authorization").map(String::as_str) {
        Some("Bearer good") => reply,
        _ => Reply::status(401).with("WWW-Authenticate", format!("Bearer realm=\"{origin}/token\"")),
    }
}

fn cut(reply: Reply, at: usize) -> Reply {
    Reply { break_after: Some(at), ..reply }
}

fn breaks() -> Vec<Case> {
    let closed = "closed the connection in the middle";
    vec![
        case("cut short once", None, |request, reply| match is_layer(request) && request.nth == 0 {
            true => cut(reply, 200_000),
            false => reply,
        }),
        case("cut short seven times", None, |request, reply| match is_layer(request) && request.nth < 7 {
            true => cut(reply, 70_001),
            false => reply,
        }),
        case("reset after so many bytes", None, |request, reply| {
            match is_layer(request) && request.nth < 3 {
                true => Reply { reset: true, ..cut(reply, 100_000) },
                false => reply,
            }
        }),
        slow(case("always cut before the first byte", (Connect, closed), |request, reply| {
            if is_layer(request) { cut(reply, 0) } else { reply }
        })),
        case("a manifest cut short once", None, |request, reply| match is_tag(request) && request.nth == 0 {
            true => cut(reply, 50),
            false => reply,
        }),
        slow(case("a config always cut short", (Connect, closed), |request, reply| {
            if is_config(request) { cut(reply, 50) } else { reply }
        })),
        slow(case("nothing more after some bytes", (Stalled, "sent nothing"), |request, reply| {
            let stall_after = is_layer(request).then_some(if request.nth == 0 { 300_000 } else { 0 });
            Reply { stall_after, ..reply }
        })),
        slow(case("a byte now and then", (Stalled, "as good as nothing"), |request, reply| Reply {
            drip: is_layer(request).then_some((1, Duration::from_millis(20))),
            ..reply
        })),
        slow(case("a manifest by the byte", (Stalled, "as good as nothing"), |request, reply| Reply {
            drip: is_tag(request).then_some((1, Duration::from_millis(20))),
            ..reply
        })),
    ]
}

fn lies() -> Vec<Case> {
    let other_byte = |request: &Request, mut reply: Reply| {
        if let Some(byte) = reply.body.get_mut(1000).filter(|_| is_layer(request)) {
            *byte ^= 1;
        }
        reply
    };
    vec![
        case("a length too small", (Malformed, "is 500000 bytes long, not "), |request, reply| Reply {
            announced: is_layer(request).then_some(500_000),
            ..reply
        }),
        case("a length too large", (Malformed, "is 700000 bytes long, not "), |request, reply| Reply {
            announced: is_layer(request).then_some(700_000),
            ..reply
        }),
        case("more than there should be", (Malformed, " bytes long, not "), |request, mut reply| {
            if is_layer(request) {
                reply.body.push(0);
            }
            reply
        }),
        case("another byte", (Digest, "digest mismatch"), other_byte),
        case("another byte without a length", (Digest, "digest mismatch"), move |request, reply| Reply {
            chunked: is_layer(request).then_some(9999),
            ..other_byte(request, reply)
        }),
        case("another config", (Digest, "digest mismatch"), |request, mut reply| {
            if is_config(request) {
                reply.body[9] ^= 1;
            }
            reply
        }),
        case("another manifest than the index says", (Digest, "digest mismatch"), |request, mut reply| {
            if request.target.contains("/manifests/sha256:") {
                let last = reply.body.len() - 1;
                reply.body[last] = b' ';
            }
            reply
        }),
        case("a range from elsewhere", None, |request, reply| match (is_layer(request), request.nth) {
            (true, 0) => cut(reply, 100_000),
            (true, 1) => reply.with("Content-Range", "bytes 0-9/10"),
            _ => reply,
        }),
        case("an answer without a status", (Malformed, "not HTTP"), |_, reply| Reply { status: 7, ..reply }),
    ]
}

fn refusals() -> Vec<Case> {
    let mut cases = vec![
        slow(case("always busy", (Limit, "429"), |_, _| Reply::status(429))),
        case("busy once, and says how long", None, |request, reply| {
            match is_tag(request) && request.nth == 0 {
                true => Reply::status(429).with("Retry-After", "1"),
                false => reply,
            }
        }),
        case("busy in the middle of a layer", None, |request, reply| {
            match (is_layer(request), request.nth) {
                (true, 0) => cut(reply, 123_456),
                (true, 1) => Reply::status(429).with("Retry-After", "0"),
                _ => reply,
            }
        }),
        slow(case("always failing", (Malformed, "status 503"), |_, _| Reply::status(503))),
        case("not implemented", (Malformed, "status 501"), |_, _| Reply::status(501)),
        case(
            "gone",
            (NotFound, "not found"),
            |request, reply| {
                if is_layer(request) { Reply::status(404) } else { reply }
            },
        ),
        case("forbidden", (Unauthorized, "forbids it"), |request, reply| {
            if is_layer(request) { Reply::status(403) } else { reply }
        }),
        case("unauthorized without a way in", (Unauthorized, "other) credentials"), |_, _| {
            Reply::status(401).with("WWW-Authenticate", "Basic realm=x")
        }),
        case("a challenge that is none", (Malformed, "WWW-Authenticate field is malformed"), |_, _| {
            Reply::status(401).with("WWW-Authenticate", "Bearer realm=\"")
        }),
        case("an unknown way in", (Malformed, "neither Basic nor Bearer"), |_, _| {
            Reply::status(401).with("WWW-Authenticate", "Negotiate abc")
        }),
    ];
    for status in [408, 500, 502, 503, 504] {
        cases.push(case("failing twice", None, move |request, reply| match request.nth {
            0 | 1 if !is_layer(request) => Reply::status(status),
            0 if is_layer(request) => cut(reply, 4000),
            1 => Reply::status(status),
            _ => reply,
        }));
    }
    cases
}

fn redirects() -> Vec<Case> {
    let to = |location: &'static str| {
        move |request: &Request, reply: Reply| match is_layer(request) {
            true => Reply::status(307).with("Location", location),
            false => reply,
        }
    };
    vec![
        case("a circle", (Malformed, "more than 5 in a row"), |request, reply| match is_layer(request) {
            true => Reply::status(302).with("Location", request.target.as_str()),
            false => reply,
        }),
        case("nowhere", (Malformed, "no Location"), |request, reply| {
            if is_layer(request) { Reply::status(302) } else { reply }
        }),
        case("another scheme", (Malformed, "neither http nor https"), to("ftp://x.test/blob")),
        case("a file", (Malformed, "neither http nor https"), to("file:///etc/shadow")),
        case("a name and a password", (Malformed, "user information"), to("https://u:p@x.test/blob")),
        case("a line break", (Malformed, "redirect refused"), to("https://x.test/a b")),
        case("a host that is none", (NameResolution, "name server"), to("https://x.test/blob")),
    ]
}

fn excesses() -> Vec<Case> {
    let manifest = |make: fn() -> Vec<u8>| {
        move |request: &Request, reply: Reply| match is_tag(request) {
            true => Reply::ok(make()),
            false => reply,
        }
    };
    vec![
        case("a manifest of 5 MiB", (Limit, "limit of 4194304 bytes"), manifest(|| vec![b' '; 5 << 20])),
        case("a manifest without end", (Limit, "limit of 4194304 bytes"), |request, reply| Reply {
            endless: is_tag(request),
            ..reply
        }),
        case("a config without end", (Limit, "larger than its limit"), |request, reply| Reply {
            endless: is_config(request),
            ..reply
        }),
        case("a layer without end", (Malformed, " bytes long, not "), |request, reply| Reply {
            endless: is_layer(request),
            ..reply
        }),
        case("a refusal without end", (NotFound, "not found"), |_, _| Reply {
            endless: true,
            ..Reply::status(404)
        }),
        case("a redirect without end", (Malformed, "more than 5 in a row"), |request, _| Reply {
            endless: true,
            ..Reply::status(302).with("Location", request.target.as_str())
        }),
        case("arrays in arrays", (Malformed, "JSON"), manifest(|| vec![b'['; 1 << 20])),
        case(
            "129 layers",
            (Limit, "129 layers, the limit is 128"),
            manifest(|| {
                let image = image();
                let text = String::from_utf8(image.parts[&format!("manifests/{}", image.manifest)].1.clone())
                    .unwrap();
                let (head, layer) = text.split_once("\"layers\":[").unwrap();
                let layer = layer.split_once(']').unwrap().0;
                format!("{head}\"layers\":[{}]}}", vec![layer; 129].join(",")).into_bytes()
            }),
        ),
        case(
            "1025 manifests",
            (Limit, "1025 manifests, the limit is 1024"),
            manifest(|| {
                let entry = format!("{{\"digest\":\"{}\",\"size\":2}}", Digest::of(b"x"));
                format!("{{\"schemaVersion\":2,\"manifests\":[{}]}}", vec![entry; 1025].join(","))
                    .into_bytes()
            }),
        ),
        case(
            "a layer of two tebibytes",
            (Limit, "size 2199023255552"),
            manifest(|| {
                let image = image();
                let text = String::from_utf8(image.parts[&format!("manifests/{}", image.manifest)].1.clone())
                    .unwrap();
                let size = layer().len();
                text.replace(&format!("\"size\":{size}"), "\"size\":2199023255552").into_bytes()
            }),
        ),
        case("a thousand fields", (Malformed, "too many fields"), |_, mut reply| {
            reply.fields.extend((0..1000).map(|at| (format!("x-{at}"), String::new())));
            reply
        }),
        case("a field of a megabyte", (Malformed, "head is larger than 64 KiB"), |_, reply| {
            reply.with("x", "y".repeat(1 << 20))
        }),
    ]
}

fn tokens() -> Vec<Case> {
    let with = |answer: fn() -> Reply| move |request: &Request, reply: Reply| guarded(request, reply, answer);
    vec![
        case("a good token", None, with(|| Reply::ok(r#"{"token":"good"}"#))),
        case(
            "a token that is not taken",
            (Unauthorized, "other) credentials"),
            with(|| Reply::ok(r#"{"token":"bad"}"#)),
        ),
        case("no JSON", (Malformed, "not the JSON"), with(|| Reply::ok("<html>"))),
        case("no token", (Malformed, "no usable token"), with(|| Reply::ok("{}"))),
        case("a number", (Malformed, "not the JSON"), with(|| Reply::ok(r#"{"token":7}"#))),
        case(
            "a token with a line break",
            (Malformed, "no usable token"),
            with(|| Reply::ok(r#"{"token":"good\r\nX: y"}"#)),
        ),
        case(
            "a token of 100 KiB",
            (Malformed, "no usable token"),
            with(|| Reply::ok(format!(r#"{{"token":"{}"}}"#, "t".repeat(100 << 10)))),
        ),
        case(
            "an answer without end",
            (Malformed, "not the JSON"),
            with(|| Reply { endless: true, ..Reply::ok("") }),
        ),
        case(
            "a redirect",
            (Malformed, "status 307"),
            with(|| Reply::status(307).with("Location", "/elsewhere")),
        ),
        case("no such endpoint", (NotFound, "not found"), with(|| Reply::status(404))),
        slow(case("an endpoint that fails", (Malformed, "status 500"), with(|| Reply::status(500)))),
    ]
}

fn cases() -> Vec<Case> {
    [breaks(), lies(), refusals(), redirects(), excesses(), tokens()].into_iter().flatten().collect()
}

/// A request with credentials, which nobody but the registry may see.
fn ask(server: &FakeServer, certificate: Option<&str>) -> Pull {
    Pull {
        reference: format!("registry.test:{}/test/image", server.address.port()),
        aliases: vec![HostAlias { host: "registry.test".into(), address: server.address.ip() }],
        certificate_authorities: certificate.map(str::to_owned).into_iter().collect(),
        insecure: certificate.is_none().then(|| "registry.test".to_owned()).into_iter().collect(),
        credentials: Credentials::Basic { user: "user".into(), password: "secret".into() },
        ..request(server.address)
    }
}

fn serve(case: &Case, tls: Option<Arc<rustls::ServerConfig>>) -> FakeServer {
    let (image, fault) = (image(), case.fault.clone());
    let answer = move |request: &Request| fault(request, image.answer(request));
    match tls {
        None => FakeServer::start(answer),
        Some(config) => FakeServer::start_tls(config, answer),
    }
}

/// What a case must have come to, and what it must have left.
fn judge(
    case: &Case,
    over: &str,
    outcome: Result<(), (PullFailureKind, String)>,
    store: &Path,
    server: &FakeServer,
) {
    let what = format!("{} over {over}", case.what);
    match (&case.fails, &outcome) {
        (None, Ok(())) => {}
        (Some((kind, words)), Err((found, message))) => {
            assert!(message.contains(words), "{what}: {message}");
            assert_eq!(found, kind, "{what}: {message}");
        }
        (None, Err((_, message))) => panic!("{what}: {message}"),
        (Some(_), Ok(())) => panic!("{what}: it was taken"),
    }
    let count = |folder: &str| std::fs::read_dir(store.join(folder)).unwrap().count();
    let kept = usize::from(outcome.is_ok());
    assert_eq!([count("tmp"), count("layers"), count("blobs")], [0, kept, kept], "{what}");
    if outcome.is_ok() {
        let sizes: usize = image()
            .parts
            .iter()
            .filter(|(name, _)| name.starts_with("blobs/"))
            .map(|(_, part)| part.1.len())
            .sum();
        let twice = server.sent.load(Ordering::Relaxed).saturating_sub(sizes as u64);
        let whole_again = case.what == "a range from elsewhere";
        assert!(whole_again || twice <= CHUNK_BYTES, "{what}: {twice} bytes came twice");
    }
}

fn in_this_process(over: &str, tls: Option<(String, Arc<rustls::ServerConfig>)>) {
    for case in cases() {
        // There a status is a number of three digits, or the frame is none: see `http2.rs`.
        if over == "HTTP/2" && ["an answer without a status"].contains(&case.what) {
            continue;
        }
        let begun = Instant::now();
        let store = tempfile::tempdir().unwrap();
        let server = serve(&case, tls.as_ref().map(|(_, config)| config.clone()));
        let request = ask(&server, tls.as_ref().map(|(certificate, _)| certificate.as_str()));
        let outcome = pull(&context(store.path()), &request, &Cancel::default(), &|_| {});
        let outcome = outcome.map(drop).map_err(|error| (error.kind(), error.to_string()));
        judge(&case, over, outcome, &store.path().join("store"), &server);
        assert!(begun.elapsed() < PATIENCE, "{} over {over}: {:?}", case.what, begun.elapsed());
    }
}

#[test]
fn every_fault_ends_as_it_should_over_http_1() {
    in_this_process("HTTP/1.1", None);
}

#[test]
fn every_fault_ends_as_it_should_over_http_2() {
    in_this_process("HTTP/2", Some(certify_two("registry.test")));
}

#[test]
fn the_processes_meet_every_fault_in_bounded_memory() {
    let (certificate, config) = certify_two("registry.test");
    for (tls, cases) in [(None, cases()), (Some(config), excesses())] {
        let mut id = 0;
        for case in cases.into_iter().filter(|case| !case.is_slow) {
            // A store of its own, and nothing in memory of the case before.
            let Some(puller) = Puller::start() else { return };
            let server = serve(&case, tls.clone());
            id += 1;
            let outcome = puller.pull(id, ask(&server, tls.as_ref().map(|_| certificate.as_str()))).map(drop);
            judge(&case, "the processes", outcome, &puller.store(), &server);
            for process in [&puller.fetcher, &puller.indexer] {
                let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
                let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
                let peak: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
                assert!(peak < RESIDENT_KIB_MAX, "{}: {peak} KiB", case.what);
            }
            puller.end();
        }
    }
}

#[test]
fn what_comes_by_the_byte_has_a_limit_wherever_it_comes() {
    let store = tempfile::tempdir().unwrap();
    for (what, before) in [
        ("a head", "HTTP/1.1 200 OK\r\nX: "),
        ("a line before a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"),
        ("a trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "),
    ] {
        let server = raw_server(move |mut stream| {
            use std::io::{Read, Write};
            if !matches!(stream.read(&mut [0; 4096]), Ok(1..)) || stream.write_all(before.as_bytes()).is_err()
            {
                return;
            }
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let begun = Instant::now();
        let error = pull(&context(store.path()), &request(server), &Cancel::default(), &|_| {}).unwrap_err();
        assert_eq!(error.kind(), Stalled, "{what}: {error}");
        assert!(begun.elapsed() < PATIENCE + Duration::from_secs(2), "{what}: {:?}", begun.elapsed());
    }
}

#[test]
fn an_endless_head_is_refused() {
    let store = tempfile::tempdir().unwrap();
    for (piece, words) in [("X: y\r\n", "too many fields"), ("XXXXXXXX", "head is larger than 64 KiB")] {
        let server = raw_server(move |mut stream| {
            use std::io::{Read, Write};
            if matches!(stream.read(&mut [0; 4096]), Ok(1..)) {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX: y");
                while stream.write_all(piece.as_bytes()).is_ok() {}
            }
        });
        let error = pull(&context(store.path()), &request(server), &Cancel::default(), &|_| {}).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}
