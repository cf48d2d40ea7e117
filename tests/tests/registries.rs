//! What registries do and fail to do: each failure has its stage, cause and exit code, and leaves no sandbox.

use std::time::Duration;

use nacre_tests::fixtures::{Layout, images};
use nacre_tests::proxy::{Answer, Proxy, Seen};
use nacre_tests::registry::{Door, PASSWORD, USER, base64, free_port};
use nacre_tests::{Nacre, Registry, require, tool};

/// Of `nacre` itself: nothing of the container ran.
const OWN_FAILURE: i32 = 125;

#[test]
fn an_image_comes_from_a_registry_by_tag_and_by_digest() {
    require!(vm, tool "umoci", tool "docker-registry");
    let registry = Registry::holding(images(), &["small"]);
    let digest = images().find("small")["digest"].as_str().expect("no digest").to_owned();
    let by_digest = format!("localhost:{}/images@{digest}", registry.port);
    let both = format!("localhost:{}/images:small@{digest}", registry.port);
    let nacre = Nacre::new();
    for reference in [registry.reference("small"), by_digest, both] {
        nacre.run(["run", &reference, "echo", "pulled"]).exited(0).printed("pulled\n");
    }
}

#[test]
fn what_is_not_in_the_registry_is_named() {
    require!(vm, tool "umoci", tool "docker-registry");
    let registry = Registry::holding(images(), &["small"]);
    let nacre = Nacre::new();
    for (reference, texts) in [
        (registry.reference("no-such-tag"), &["no-such-tag", "not found"][..]),
        (format!("localhost:{}/no/such/repository", registry.port), &["no/such/repository", "not found"]),
        (
            format!("localhost:{}/images@sha256:{}", registry.port, "ab".repeat(32)),
            &["abababab", "not found"],
        ),
    ] {
        nacre.run(["run", &reference, "true"]).exited(OWN_FAILURE).printed("").said(texts).said(&["pull"]);
    }
}

#[test]
fn a_registry_that_does_not_answer_is_named() {
    require!(vm);
    let nacre = Nacre::new();
    let address = format!("localhost:{}", free_port());
    let output = nacre.run(["run", &format!("{address}/images:small"), "true"]);
    output.exited(OWN_FAILURE).said(&[&address, "pull"]);
}

#[test]
fn a_policy_takes_what_its_rules_take() {
    require!(vm, tool "umoci", tool "docker-registry");
    let registry = Registry::holding(images(), &["small", "odd"]);
    let nacre = Nacre::new();
    let file = |text: String| {
        let path = nacre.guard().home().join("policy.json");
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let digest = images().find("small")["digest"].as_str().expect("no digest").to_owned();
    let scope = format!("localhost:{}", registry.port);
    let list = serde_json::json!({
        "default": [{ "type": "reject" }],
        "transports": { "docker": { scope: [{ "type": "allowDigests", "digests": [digest] }] } },
    });
    let policy = file(list.to_string());
    nacre
        .run(["run", "--policy", &policy, &registry.reference("small"), "echo", "listed"])
        .exited(0)
        .printed("listed\n");
    let output = nacre.run(["run", "--policy", &policy, &registry.reference("odd"), "true"]);
    output.exited(OWN_FAILURE).printed("").said(&["pull", "policy", "does not have", "--policy"]);
    for (text, words) in [
        (r#"{"default":[{"type":"reject"}]}"#, "rejected by the rule of \"default\""),
        ("{}", "no rule is there"),
        (r#"{"default":[{"type":"hopeful"}]}"#, "unknown type \"hopeful\""),
    ] {
        let policy = file(text.to_owned());
        let output = nacre.run(["run", "--policy", &policy, &registry.reference("small"), "true"]);
        output.exited(OWN_FAILURE).printed("").said(&["pull", "policy", words]);
    }
}

#[test]
fn a_mirror_on_this_host_stands_in_for_a_registry_that_is_away() {
    require!(vm, tool "umoci", tool "docker-registry");
    let registry = Registry::holding(images(), &["small"]);
    let nacre = Nacre::new();
    let path = nacre.guard().home().join("registries.conf");
    let conf = format!(
        "[[registry]]\nlocation = \"registry.invalid\"\n[[registry.mirror]]\nlocation = \"localhost:{}\"\n\
         [[registry]]\nlocation = \"registry.invalid/secret\"\nblocked = true\n",
        registry.port
    );
    std::fs::write(&path, conf).unwrap();
    let conf = path.display().to_string();
    let output =
        nacre.run(["run", "--registries-conf", &conf, "registry.invalid/images:small", "echo", "mirrored"]);
    output.exited(0).printed("mirrored\n");
    let output = nacre.run(["run", "--registries-conf", &conf, "registry.invalid/secret:1", "true"]);
    output.exited(OWN_FAILURE).printed("").said(&["blocked", "registry.invalid/secret"]);
}

#[test]
fn basic_authentication_lets_the_right_one_in() {
    require!(vm, tool "umoci", tool "docker-registry", tool "htpasswd");
    let registry = Registry::with(Door::Basic);
    registry.push(images(), "small");
    let (nacre, reference) = (Nacre::new(), registry.reference("small"));
    nacre.run(["run", &reference, "true"]).exited(OWN_FAILURE).said(&["pull", "--creds"]);
    let output = nacre.run(["run", "--creds", "tester:wrong", &reference, "true"]);
    let output = output.exited(OWN_FAILURE).said(&["pull", "refused"]);
    assert!(!output.stderr.contains("wrong"), "a secret was printed\n{output}");
    let credentials = format!("{USER}:{PASSWORD}");
    nacre.run(["run", "--creds", &credentials, &reference, "echo", "in"]).exited(0).printed("in\n");

    // As `docker login` leaves it.
    let auth = serde_json::json!({
        "auths": { format!("localhost:{}", registry.port): { "auth": base64(&credentials) } }
    });
    std::fs::create_dir(nacre.guard().home().join(".docker")).unwrap();
    std::fs::write(nacre.guard().home().join(".docker/config.json"), auth.to_string()).unwrap();
    nacre.run(["run", &reference, "echo", "known"]).exited(0).printed("known\n");
}

#[test]
fn bearer_tokens_are_fetched_and_renewed() {
    require!(vm, tool "umoci", tool "docker-registry");
    const SERVICE: &str = "the registry";
    let registry = Registry::holding(images(), &["odd"]);
    let port = free_port();
    let proxy = Proxy::start_at(port, registry.port, move |seen: &Seen| {
        if seen.path.starts_with("/token") {
            // The second token is good for all that comes after.
            let text = serde_json::json!({ "token": format!("token{}", seen.earlier), "expires_in": 60 });
            return Answer::Own(200, vec![("Content-Type", "application/json".into())], text.to_string());
        }
        let valid = match seen.field("authorization") {
            // The first one ends when the layers are due.
            Some("Bearer token0") => !seen.is_blob(),
            Some("Bearer token1") => true,
            _ => false,
        };
        let challenge = format!(
            "Bearer realm=\"http://localhost:{port}/token\",service=\"{SERVICE}\",scope=\"repository:images:pull\""
        );
        if valid {
            Answer::Pass
        } else {
            Answer::Own(401, vec![("WWW-Authenticate", challenge)], "{}".into())
        }
    });
    let nacre = Nacre::new();
    nacre.run(["run", &proxy.reference("odd"), "echo", "in"]).exited(0).printed("in\n");
    let tokens: Vec<Seen> = proxy.seen().into_iter().filter(|seen| seen.path.starts_with("/token")).collect();
    assert_eq!(tokens.len(), 2, "{tokens:?}");
    for part in ["service=the", "scope=repository", "pull"] {
        assert!(tokens[0].path.contains(part), "{part} is not in {}", tokens[0].path);
    }
}

#[test]
fn a_digest_that_does_not_match_is_refused_wherever_it_is() {
    require!(vm, tool "umoci", tool "docker-registry");
    let registry = Registry::holding(images(), &["small", "small-plain", "small-zstd"]);
    let manifest = images().manifest("small");
    let config = manifest["config"]["digest"].as_str().expect("no digest").to_owned();
    type Fault = Box<dyn Fn(&Seen) -> bool + Send + Sync>;
    let by_digest = format!("@{}", images().find("small")["digest"].as_str().expect("no digest"));
    let config_again = config.clone();
    let cases: [(&str, &str, Fault); 5] = [
        (
            "the layer, gzip",
            ":small",
            Box::new(move |seen| seen.is_blob() && !seen.path.contains(&config_again)),
        ),
        ("the layer, plain", ":small-plain", Box::new(|seen| seen.is_blob() && seen.earlier == 0)),
        ("the layer, zstd", ":small-zstd", Box::new(|seen| seen.is_blob())),
        ("the configuration", ":small", Box::new(move |seen| seen.path.contains(&config))),
        ("the manifest", &by_digest, Box::new(|seen| seen.path.contains("/manifests/"))),
    ];
    let nacre = Nacre::new();
    for (what, name, fault) in cases {
        let proxy = Proxy::start(registry.port, move |seen| match fault(seen) {
            true => Answer::TurnBit(100),
            false => Answer::Pass,
        });
        let reference = format!("localhost:{}/images{name}", proxy.port);
        let output = nacre.run(["run", &reference, "echo", "must not run"]);
        assert_eq!(output.code, OWN_FAILURE, "{what}\n{output}");
        output.printed("").said(&["pull", "digest", "sha256:"]);
    }
}

#[test]
fn a_layer_whose_archive_is_another_than_the_configuration_says_is_refused() {
    require!(vm, tool "umoci");
    let nacre = Nacre::new();
    let layout = images().copy_to(nacre.guard().folder().join("layout"));
    layout.with_config("small", "wrong", |config| {
        config["rootfs"]["diff_ids"][0] = format!("sha256:{}", "12".repeat(32)).into();
    });
    let output = nacre.run(["run", &layout.reference("wrong"), "echo", "must not run"]);
    output.exited(OWN_FAILURE).printed("").said(&["pull", "digest", "12121212"]);
}

#[test]
fn what_fails_in_passing_is_tried_again() {
    require!(vm, tool "umoci", tool "docker-registry");
    let registry = Registry::holding(images(), &["small"]);
    type Fault = fn(&Seen) -> Answer;
    let cases: [(&str, Fault); 3] = [
        ("a manifest with 503 once", |seen| match (seen.path.contains("/manifests/"), seen.earlier) {
            (true, 0) => Answer::Own(503, vec![("Retry-After", "0".into())], "busy".into()),
            _ => Answer::Pass,
        }),
        ("every blob with 500 once", |seen| match (seen.is_blob(), seen.earlier) {
            (true, 0) => Answer::Own(500, vec![], "broken".into()),
            _ => Answer::Pass,
        }),
        ("a layer cut off twice", |seen| match (seen.is_blob(), seen.earlier) {
            (true, 0) => Answer::CutAfter(100_000),
            (true, 1) => Answer::CutAfter(50_000),
            _ => Answer::Pass,
        }),
    ];
    let nacre = Nacre::new();
    for (what, fault) in cases {
        let proxy = Proxy::start(registry.port, fault);
        let output = nacre.run(["run", &proxy.reference("small"), "echo", "there"]);
        assert_eq!((output.code, output.text().as_str()), (0, "there\n"), "{what}\n{output}");
    }
}

#[test]
fn a_layer_that_was_cut_off_goes_on_where_it_broke() {
    require!(vm, tool "umoci", tool "docker-registry");
    let registry = Registry::holding(images(), &["small"]);
    let layer = images().manifest("small")["layers"][0]["digest"].as_str().expect("no digest").to_owned();
    let wanted = layer.clone();
    let proxy = Proxy::start(registry.port, move |seen| match (seen.path.contains(&wanted), seen.earlier) {
        (true, 0) => Answer::CutAfter(300_000),
        _ => Answer::Pass,
    });
    Nacre::new().run(["run", &proxy.reference("small"), "true"]).exited(0);
    let seen = proxy.seen();
    let requests: Vec<_> = seen.iter().filter(|seen| seen.path.contains(&layer)).collect();
    assert_eq!(requests.len(), 2, "{requests:?}");
    let range = requests[1].field("range").unwrap_or_default();
    assert!(range.starts_with("bytes=") && range != "bytes=0-", "the second request is for {range:?}");
}

#[test]
fn a_registry_that_stops_sending_is_given_up() {
    require!(vm, slow, tool "umoci", tool "docker-registry");
    let registry = Registry::holding(images(), &["small"]);
    let proxy = Proxy::start(registry.port, |seen| match seen.is_blob() {
        true => Answer::StallAfter(1000),
        false => Answer::Pass,
    });
    let output =
        Nacre::new().run_within(Duration::from_secs(900), ["run", &proxy.reference("small"), "true"]);
    output.exited(OWN_FAILURE).said(&["pull"]);
}

#[test]
fn ctrl_c_ends_a_pull_that_hangs() {
    require!(vm, tool "umoci", tool "docker-registry");
    let registry = Registry::holding(images(), &["small"]);
    let proxy = Proxy::start(registry.port, |seen| match seen.is_blob() {
        true => Answer::StallAfter(1000),
        false => Answer::Pass,
    });
    let nacre = Nacre::new();
    let mut running = nacre.start(["run", &proxy.reference("small"), "true"]);
    while !proxy.seen().iter().any(Seen::is_blob) {
        assert!(!running.has_ended(), "{}", running.finish(Duration::ZERO));
        std::thread::sleep(Duration::from_millis(50));
    }
    running.signal(rustix::process::Signal::INT);
    running.finish(Duration::from_secs(60)).exited(130);
}

#[test]
fn what_is_no_image_is_refused_with_its_reason() {
    require!(vm, tool "umoci", tool "docker-registry");
    let registry = Registry::holding(images(), &["small"]);
    type Case = (&'static str, &'static str, Answer, &'static [&'static str]);
    let json = |text: &str| Answer::Own(200, vec![("Content-Type", MANIFEST.into())], text.into());
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    let huge = format!("{{\"schemaVersion\":2,\"x\":\"{}\"}}", "y".repeat(10 << 20));
    let elsewhere = Answer::Own(307, vec![("Location", "http://localhost:1/".into())], String::new());
    let cases: [Case; 6] = [
        ("a redirect to another port", "/blobs/", elsewhere, &["port 1 is not among", "--registry-port"]),
        ("not JSON", "/manifests/", json("<html>hello</html>"), &["manifest"]),
        ("another schema", "/manifests/", json("{\"schemaVersion\":1}"), &["manifest"]),
        ("a manifest without end", "/manifests/", json(&huge), &["manifest", "limit"]),
        ("forbidden", "/manifests/", Answer::Own(403, vec![], "{}".into()), &["refused"]),
        (
            "a circle of redirects",
            "/manifests/",
            Answer::Own(307, vec![("Location", "/v2/images/manifests/small".into())], String::new()),
            &["redirect"],
        ),
    ];
    let nacre = Nacre::new();
    for (what, path, answer, texts) in cases {
        let proxy = Proxy::start(registry.port, move |seen| match seen.path.contains(path) {
            true => answer.clone(),
            false => Answer::Pass,
        });
        let output = nacre.run(["run", &proxy.reference("small"), "true"]);
        assert_eq!(output.code, OWN_FAILURE, "{what}\n{output}");
        output.printed("").said(texts);
    }
}

#[test]
fn a_registry_cannot_move_the_sandbox_terminal() {
    require!(vm, tool "umoci", tool "docker-registry");
    let proxy = Proxy::start(1, |_| {
        let text = "{\"errors\":[{\"code\":\"X\",\"message\":\"\\u001b[2J\\u001b]0;owned\\u0007\"}]}";
        Answer::Own(400, vec![("Content-Type", "application/json".into())], text.into())
    });
    let output = Nacre::new().run(["run", &proxy.reference("small"), "true"]).exited(OWN_FAILURE);
    assert!(!output.stderr.contains(['\x1b', '\x07']), "{:?}", output.stderr);
}

/// skopeo 1.9 recompresses to zstd:chunked without changing the configuration, which then names another archive.
#[test]
fn a_layer_that_a_real_tool_gave_a_wrong_diff_id_is_refused() {
    require!(vm, tool "umoci", tool "docker-registry", tool "skopeo", tool "zstd");
    let registry = Registry::start();
    let nacre = Nacre::new();
    let remote = format!("docker://{}", registry.reference("chunked"));
    let small = images().reference("small");
    tool::run(
        "skopeo",
        [
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            "--dest-compress-format=zstd:chunked",
            small.as_str(),
            &remote,
        ],
    );
    let copy = nacre.guard().folder().join("copy");
    let local = format!("oci:{}:chunked", copy.display());
    tool::run("skopeo", ["copy", "--quiet", "--src-tls-verify=false", &remote, &local]);
    let copy = Layout::at(copy);
    let layers = copy.diff_ids_found("chunked");
    let promised = copy.json(&copy.manifest("chunked")["config"])["rootfs"]["diff_ids"].clone();
    if promised == serde_json::json!(layers) {
        return nacre_tests::need::skip("this skopeo writes zstd:chunked as it should");
    }
    let output = nacre.run(["run", &registry.reference("chunked"), "echo", "must not run"]);
    output.exited(OWN_FAILURE).printed("").said(&["pull", "digest", &layers[0]]);
}
