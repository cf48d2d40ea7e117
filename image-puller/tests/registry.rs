//! Pulls from a real registry (Debian's `docker-registry`) of images that a real tool (skopeo) pushed there.

mod common;

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use nacre_protocols::agent_puller::{Credentials, HostAlias, Pull, PullFailureKind};
use nacre_puller::pull::pull;
use nacre_puller::registry::transport::Cancel;

struct DockerRegistry {
    process: Child,
    address: SocketAddr,
}

impl DockerRegistry {
    /// `authorization` is the `auth` part of its configuration.
    fn start(directory: &Path, authorization: &str) -> Self {
        Self::start_with(directory, authorization, "")
    }

    /// `tls` goes into the `http` part. What it is asked is in `access.log`.
    fn start_with(directory: &Path, authorization: &str, tls: &str) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let root = directory.join("registry").display().to_string();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}}}}}\n\
             http: {{addr: '{address}'{tls}}}\n{authorization}"
        );
        let file = directory.join("registry.yml");
        fs::write(&file, config).unwrap();
        let process = Command::new("docker-registry")
            .args(["serve".as_ref(), file.as_os_str()])
            .stdout(fs::File::create(directory.join("access.log")).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10), "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { process, address }
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn tools_are_there() -> bool {
    let missing: Vec<_> = ["docker-registry", "skopeo", "htpasswd"]
        .into_iter()
        .filter(|tool| {
            Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
        })
        .collect();
    assert!(missing.is_empty() || std::env::var_os("CI").is_none(), "missing: {missing:?}");
    if !missing.is_empty() {
        eprintln!("skipped: missing {missing:?} (Debian: docker-registry, skopeo, apache2-utils)");
    }
    missing.is_empty()
}

/// Writes a test image as an OCI layout.
fn write_layout(image: &TestImage, directory: &Path) {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    for (name, (_, body)) in &image.parts {
        if let Some((_, hex)) = name.split_once("sha256:") {
            fs::write(blobs.join(hex), body).unwrap();
        }
    }
    let manifest = &image.parts[&format!("manifests/{}", image.manifest)].1;
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{MANIFEST_TYPE}","digest":"{}","size":{},
        "annotations":{{"org.opencontainers.image.ref.name":"latest"}}}}]}}"#,
        image.manifest,
        manifest.len()
    );
    fs::write(directory.join("index.json"), index).unwrap();
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn push(layout: &Path, registry: SocketAddr, extra: &[&str]) {
    let output = Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", "--preserve-digests"])
        .args(extra)
        .arg(format!("oci:{}:latest", layout.display()))
        .arg(format!("docker://{registry}/test/image:latest"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn test_image() -> TestImage {
    let large: Vec<u8> = (0..1_500_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    TestImage::new(&[&large, b"second", b"third"])
}

#[test]
fn an_image_that_skopeo_pushed_is_pulled() {
    if !tools_are_there() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let registry = DockerRegistry::start(work.path(), "");
    let image = test_image();
    write_layout(&image, &work.path().join("layout"));
    push(&work.path().join("layout"), registry.address, &[]);
    let context = context(work.path());
    let cancel = Cancel::default();
    let pulled = pull(&context, &request(registry.address), &cancel, &|_| {}).unwrap();
    assert_eq!(format!("sha256:{}", pulled.manifest), image.manifest);
    for (layer, expected) in pulled.layers.iter().zip(&image.layers) {
        let tar = work.path().join("store/layers").join(layer.diff_id.to_string()).join("layer.tar");
        assert_eq!(&fs::read(tar).unwrap(), expected);
    }
    let unknown =
        Pull { reference: format!("{}/test/image:none", registry.address), ..request(registry.address) };
    let error = pull(&context, &unknown, &Cancel::default(), &|_| {}).unwrap_err();
    assert_eq!(error.kind(), PullFailureKind::NotFound, "{error}");
    assert!(error.to_string().contains("MANIFEST_UNKNOWN"), "{error}");
}

#[test]
fn a_registry_with_tls_speaks_http_2() {
    if !tools_are_there() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(["registry.test".to_owned()]).unwrap();
    let (certificate, key) = (work.path().join("cert.pem"), work.path().join("key.pem"));
    fs::write(&certificate, certified.cert.pem()).unwrap();
    fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
    let tls = format!(", tls: {{certificate: {}, key: {}}}", certificate.display(), key.display());
    let registry = DockerRegistry::start_with(work.path(), "", &tls);
    // More than the windows of a connection.
    let image = TestImage::new(&[&noise(40_000_000, 1), b"second", b"third", b"fourth", b"fifth", b"sixth"]);
    write_layout(&image, &work.path().join("layout"));
    push(&work.path().join("layout"), registry.address, &[]);
    let request = Pull {
        reference: format!("registry.test:{}/test/image", registry.address.port()),
        aliases: vec![HostAlias { host: "registry.test".into(), address: registry.address.ip() }],
        certificate_authorities: vec![certified.cert.pem()],
        ..request(registry.address)
    };
    let pulled = pull(&context(work.path()), &request, &Cancel::default(), &|_| {}).unwrap();
    let tar = work.path().join("store/layers").join(pulled.layers[0].diff_id.to_string()).join("layer.tar");
    assert!(fs::read(tar).unwrap() == image.layers[0]);
    let log = fs::read_to_string(work.path().join("access.log")).unwrap();
    let ours: Vec<&str> = log.lines().filter(|line| line.contains("\"nacre/")).collect();
    assert_eq!(ours.iter().filter(|line| line.contains("/blobs/")).count(), 7, "{log}");
    assert!(ours.iter().all(|line| line.contains("HTTP/2.0\" 200")), "{log}");
}

#[test]
fn a_registry_with_passwords_takes_the_right_one() {
    if !tools_are_there() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let passwords = Command::new("htpasswd").args(["-Bbn", "user", "secret"]).output().unwrap().stdout;
    fs::File::create(work.path().join("htpasswd")).unwrap().write_all(&passwords).unwrap();
    let authorization =
        format!("auth: {{htpasswd: {{realm: r, path: {}}}}}\n", work.path().join("htpasswd").display());
    let registry = DockerRegistry::start(work.path(), &authorization);
    write_layout(&test_image(), &work.path().join("layout"));
    push(&work.path().join("layout"), registry.address, &["--dest-creds=user:secret"]);
    let context = context(work.path());
    let attempt = |credentials| {
        let request = Pull { credentials, ..request(registry.address) };
        pull(&context, &request, &Cancel::default(), &|_| {}).map_err(|error| error.kind())
    };
    let basic = |password: &str| Credentials::Basic { user: "user".into(), password: password.into() };
    assert!(attempt(basic("secret")).is_ok());
    assert_eq!(attempt(basic("wrong")), Err(PullFailureKind::Unauthorized));
    assert_eq!(attempt(Credentials::Anonymous), Err(PullFailureKind::Unauthorized));
}
