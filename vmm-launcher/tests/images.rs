//! Images of this host as the sandbox sees them: through HTTP, from layouts and archives made here by hand.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use nacre::images::{ImageServer, ImageSource};
use nacre_protocols::names::Sha256;
use sha2::{Digest, Sha256 as Hasher};

fn digest(bytes: &[u8]) -> Sha256 {
    Sha256(Hasher::digest(bytes).into())
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// One request on a connection of its own.
fn ask(port: u16, method: &str, path: &str, headers: &str) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head, body: bytes[end + 4..].to_vec() }
}

/// A layout with one image of one layer; returns the digests of manifest and layer.
fn layout(directory: &Path, layer: &[u8]) -> (Sha256, Sha256) {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        std::fs::write(blobs.join(digest(bytes).to_string()), bytes).unwrap();
        digest(bytes)
    };
    let layer = put(layer);
    let config = put(b"{\"rootfs\":{\"diff_ids\":[]}}");
    let manifest = put(format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"sha256:{config}"}},"layers":[{{"digest":"sha256:{layer}"}}]}}"#
    )
    .as_bytes());
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"sha256:{manifest}","size":1}}]}}"#);
    std::fs::write(directory.join("index.json"), index).unwrap();
    (manifest, layer)
}

fn serve(server: &ImageServer, source: &str) -> (String, String) {
    let files = ImageSource::parse(source).unwrap().open().unwrap().unwrap();
    let digest = format!("sha256:{}", files.root());
    (server.add(files).unwrap(), digest)
}

#[test]
fn a_layout_is_served_as_a_registry_would() {
    let directory = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    let (manifest, layer) = layout(directory.path(), &content);
    let server = ImageServer::start().unwrap();
    let (name, root) = serve(&server, &format!("oci:{}", directory.path().display()));
    assert_eq!(root, format!("sha256:{manifest}"));
    let get = |method: &str, path: &str, headers: &str| ask(server.port(), method, path, headers);

    assert_eq!(get("GET", "/v2/", "").status, 200);
    let found = get("GET", &format!("/v2/{name}/manifests/{root}"), "");
    assert_eq!((found.status, digest(&found.body)), (200, manifest));
    assert_eq!(found.header("Content-Type"), Some("application/vnd.oci.image.manifest.v1+json"));
    assert_eq!(found.header("Docker-Content-Digest"), Some(root.as_str()));

    let blob = format!("/v2/{name}/blobs/sha256:{layer}");
    assert_eq!(get("GET", &blob, "").body, content);
    let head = get("HEAD", &blob, "");
    assert_eq!((head.status, head.body.len(), head.header("Content-Length")), (200, 0, Some("100000")));
    for (range, status, expected) in [
        ("bytes=10-19", 206, &content[10..20]),
        ("bytes=99990-", 206, &content[99_990..]),
        ("bytes=-5", 206, &content[99_995..]),
        ("bytes=100000-", 416, &[][..]),
    ] {
        let part = get("GET", &blob, &format!("Range: {range}\r\n"));
        assert_eq!((part.status, part.body.as_slice()), (status, expected), "{range}");
    }
    let part = get("GET", &blob, "Range: bytes=10-19\r\n");
    assert_eq!(part.header("Content-Range"), Some("bytes 10-19/100000"));

    for (method, path, status) in [
        ("GET", format!("/v2/{name}/blobs/sha256:{}", Sha256([9; 32])), 404),
        ("GET", format!("/v2/{name}/blobs/sha256:../../index.json"), 404),
        ("GET", format!("/v2/{name}/manifests/latest"), 404),
        ("GET", format!("/v2/{}/manifests/{root}", "0".repeat(32)), 404),
        ("GET", "/v2/_catalog".to_owned(), 404),
        ("GET", "/".to_owned(), 404),
        ("DELETE", blob.clone(), 405),
    ] {
        assert_eq!(get(method, &path, "").status, status, "{method} {path}");
    }
}

#[test]
fn a_connection_serves_many_requests_and_bounds_them() {
    let directory = tempfile::tempdir().unwrap();
    let (_, layer) = layout(directory.path(), b"layer");
    let server = ImageServer::start().unwrap();
    let (name, _) = serve(&server, &format!("oci:{}", directory.path().display()));
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    for _ in 0..3 {
        write!(stream, "GET /v2/{name}/blobs/sha256:{layer} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    }
    let mut text = String::new();
    while text.matches("\r\n\r\nlayer").count() < 3 {
        let mut chunk = [0; 1024];
        let read = stream.read(&mut chunk).unwrap();
        assert!(read > 0, "{text}");
        text.push_str(std::str::from_utf8(&chunk[..read]).unwrap());
    }
    // A head without end is refused, not collected.
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    let line = format!("X: {}\r\n", "y".repeat(1000));
    let _ = stream.write_all(format!("GET / HTTP/1.1\r\n{}", line.repeat(20)).as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn the_port_is_free_when_the_server_is_dropped() {
    let server = ImageServer::start().unwrap();
    let port = server.port();
    drop(server);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

/// A tar archive of files and symbolic links (`Err` is a link's target).
fn archive(path: &Path, entries: &[(&str, Result<&[u8], &str>)]) {
    let mut bytes = Vec::new();
    for (name, content) in entries {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        let length = content.map_or(0, <[u8]>::len);
        header[124..136].copy_from_slice(format!("{length:011o}\0").as_bytes());
        header[156] = if content.is_ok() { b'0' } else { b'2' };
        if let Err(target) = content {
            header[157..157 + target.len()].copy_from_slice(target.as_bytes());
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(content.unwrap_or_default());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_docker_archive_becomes_an_oci_image() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.tar");
    let (plain, zipped) = (b"plain tar".as_slice(), [0x1f, 0x8b, 8, 0, 1, 2, 3].as_slice());
    let diff_ids = [digest(plain), Sha256([7; 32]), digest(plain)];
    let config = format!(
        r#"{{"architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["sha256:{}","sha256:{}","sha256:{}"]}}}}"#,
        diff_ids[0], diff_ids[1], diff_ids[2]
    );
    let manifest = r#"[{"Config":"config.json","RepoTags":["docker.io/library/x:v1"],
        "Layers":["one/layer.tar","two/layer.tar","three/layer.tar"]},
        {"Config":"config.json","RepoTags":null,"Layers":null}]"#;
    archive(
        &path,
        &[
            ("one/layer.tar", Ok(plain)),
            ("two/layer.tar", Ok(zipped)),
            ("three/layer.tar", Err("../one/layer.tar")),
            ("config.json", Ok(config.as_bytes())),
            ("manifest.json", Ok(manifest.as_bytes())),
        ],
    );
    let server = ImageServer::start().unwrap();
    let source = format!("docker-archive:{}", path.display());
    let ambiguous = ImageSource::parse(&source).unwrap().open().unwrap_err();
    assert!(ambiguous.to_string().contains("choose one"), "{ambiguous}");
    let (name, root) = serve(&server, &format!("{source}:v1"));
    let found = ask(server.port(), "GET", &format!("/v2/{name}/manifests/{root}"), "");
    assert_eq!(format!("sha256:{}", digest(&found.body)), root);
    let made: serde_json::Value = serde_json::from_slice(&found.body).unwrap();
    assert_eq!(made["config"]["digest"], format!("sha256:{}", digest(config.as_bytes())));
    for (index, (content, suffix)) in [(plain, ""), (zipped, "+gzip"), (plain, "")].into_iter().enumerate() {
        let layer = &made["layers"][index];
        assert_eq!(layer["mediaType"], format!("application/vnd.oci.image.layer.v1.tar{suffix}"));
        assert_eq!(layer["size"], content.len());
        let digest_text = layer["digest"].as_str().unwrap();
        assert_eq!(digest_text, format!("sha256:{}", digest(content)));
        let blob = ask(server.port(), "GET", &format!("/v2/{name}/blobs/{digest_text}"), "");
        assert_eq!(blob.body, content);
        let part =
            ask(server.port(), "GET", &format!("/v2/{name}/blobs/{digest_text}"), "Range: bytes=2-\r\n");
        assert_eq!(part.body, content[2..]);
    }
}

#[test]
fn archives_that_are_not_docker_images_say_what_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.tar");
    let config = r#"{"rootfs":{"diff_ids":[]}}"#;
    let open = |entries: &[(&str, Result<&[u8], &str>)]| {
        archive(&path, entries);
        let source = ImageSource::DockerArchive { file: path.clone(), tag: None };
        source.open().unwrap_err().to_string()
    };
    for (entries, text) in [
        (vec![("index.json", Ok(b"{}".as_slice()))], "oci-archive:"),
        (vec![("repositories", Ok(b"{}".as_slice()))], "before 1.10"),
        (vec![("file", Ok(b"x".as_slice()))], "no archive of docker save"),
        (vec![("manifest.json", Ok(b"[]".as_slice()))], "no image"),
        (vec![("manifest.json", Ok(br#"[{"Config":"c","Layers":[]}]"#.as_slice()))], "\"c\" is not in it"),
        (
            vec![
                ("c", Ok(config.as_bytes())),
                ("manifest.json", Ok(br#"[{"Config":"c","Layers":["l"]}]"#.as_slice())),
            ],
            "1 layers in manifest.json, 0 in the configuration",
        ),
        (vec![("../x", Ok(b"x".as_slice()))], "leaves it"),
    ] {
        let error = open(&entries);
        assert!(error.contains(text), "{text}: {error}");
    }
}

#[test]
fn an_oci_layout_in_a_tar_file_is_served_in_place() {
    let directory = tempfile::tempdir().unwrap();
    let unpacked = directory.path().join("layout");
    std::fs::create_dir(&unpacked).unwrap();
    let (manifest, layer) = layout(&unpacked, b"the layer");
    let mut entries = Vec::new();
    for path in ["index.json".to_owned()].into_iter().chain(
        std::fs::read_dir(unpacked.join("blobs/sha256"))
            .unwrap()
            .map(|entry| format!("blobs/sha256/{}", entry.unwrap().file_name().to_str().unwrap())),
    ) {
        let content = std::fs::read(unpacked.join(&path)).unwrap();
        entries.push((path, content));
    }
    let borrowed: Vec<(&str, Result<&[u8], &str>)> =
        entries.iter().map(|(path, content)| (path.as_str(), Ok(content.as_slice()))).collect();
    let path: PathBuf = directory.path().join("image.tar");
    archive(&path, &borrowed);
    let server = ImageServer::start().unwrap();
    let (name, root) = serve(&server, &format!("oci-archive:{}", path.display()));
    assert_eq!(root, format!("sha256:{manifest}"));
    let blob = ask(server.port(), "GET", &format!("/v2/{name}/blobs/sha256:{layer}"), "");
    assert_eq!(blob.body, b"the layer");
}
