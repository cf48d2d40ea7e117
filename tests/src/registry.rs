//! Debian's docker-registry on a loopback port, with a storage of its own.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fixtures::Layout;
use crate::tool;

const START: Duration = Duration::from_secs(20);

/// Who may enter.
pub const USER: &str = "tester";
pub const PASSWORD: &str = "p:ass wörd";

/// Whether and how the registry asks who is there, and hides what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Open,
    /// [`USER`] and [`PASSWORD`].
    Basic,
}

/// A running registry; ends with its value.
pub struct Registry {
    process: Child,
    folder: tempfile::TempDir,
    pub port: u16,
}

impl Registry {
    pub fn start() -> Self {
        Self::with(Door::Open)
    }

    /// A registry that holds these tags of a layout, as `images:TAG`.
    pub fn holding(layout: &Layout, tags: &[&str]) -> Self {
        let registry = Self::start();
        for tag in tags {
            registry.push(layout, tag);
        }
        registry
    }

    /// # Panics
    /// When it does not come up.
    pub fn with(door: Door) -> Self {
        let folder =
            tempfile::Builder::new().prefix("nacre-registry-").tempdir_in("/var/tmp").expect("no directory");
        let port = free_port();
        let mut config = configuration(folder.path(), &format!("127.0.0.1:{port}"));
        if door == Door::Basic {
            let file = folder.path().join("htpasswd").display().to_string();
            tool::run("htpasswd", ["-Bbc", &file, USER, PASSWORD]);
            config.push_str(&format!("auth: {{htpasswd: {{realm: test, path: \"{file}\"}}}}\n"));
        }
        let process = serve(folder.path(), &config, &[]);
        let mut registry = Self { process, folder, port };
        registry.wait_until_up();
        registry
    }

    /// The same registry, with what it holds, started again at another address, behind TLS if given the files of a
    /// certificate and its key. `words` go before its command and may lead into another network.
    pub fn moved(mut self, words: &[&str], address: Ipv4Addr, tls: Option<(&str, &str)>) -> Self {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let mut config = configuration(self.folder.path(), &format!("{address}:{}", self.port));
        if let Some((certificate, key)) = tls {
            config.push_str(&format!("  tls: {{certificate: \"{certificate}\", key: \"{key}\"}}\n"));
        }
        self.process = serve(self.folder.path(), &config, words);
        // It cannot be reached from here.
        self.wait_until(|log| log.contains("listening on"));
        self
    }

    /// `localhost:PORT/images:TAG`
    pub fn reference(&self, tag: &str) -> String {
        format!("localhost:{}/images:{tag}", self.port)
    }

    /// Puts what a tag of a layout names, and all that it leads to, into the repository `images`.
    pub fn push(&self, layout: &Layout, tag: &str) {
        self.push_manifest(layout, &layout.find(tag), tag);
    }

    /// How many requests of this method the registry answered for paths that contain `part`.
    pub fn answered(&self, method: &str, part: &str) -> usize {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let request = format!("\"{method} ");
        log.lines().filter(|line| line.contains(&request) && line.contains(part)).count()
    }

    fn push_manifest(&self, layout: &Layout, descriptor: &Value, name: &str) {
        let manifest = layout.json(descriptor);
        for child in manifest["manifests"].as_array().into_iter().flatten() {
            self.push_manifest(layout, child, child["digest"].as_str().expect("no digest"));
        }
        let layers = manifest["layers"].as_array().into_iter().flatten();
        for blob in layers.chain(manifest.get("config")) {
            self.push_blob(layout, blob);
        }
        let media_type = descriptor["mediaType"].as_str().expect("no media type");
        let path = format!("/v2/images/manifests/{name}");
        let answer = self.ask("PUT", &path, &[("Content-Type", media_type)], &layout.blob(descriptor));
        assert_eq!(answer.status, 201, "{path}: {}", answer.text());
    }

    fn push_blob(&self, layout: &Layout, descriptor: &Value) {
        let digest = descriptor["digest"].as_str().expect("no digest");
        if self.ask("HEAD", &format!("/v2/images/blobs/{digest}"), &[], &[]).status == 200 {
            return;
        }
        let begun = self.ask("POST", "/v2/images/blobs/uploads/", &[], &[]);
        let location = begun.field("location").expect("no location");
        let path = &location[location.find("/v2/").expect("an odd location")..];
        let path = format!("{path}&digest={digest}");
        let kind = [("Content-Type", "application/octet-stream")];
        let answer = self.ask("PUT", &path, &kind, &layout.blob(descriptor));
        assert_eq!(answer.status, 201, "{path}: {}", answer.text());
    }

    fn ask(&self, method: &str, path: &str, fields: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        head.push_str(&format!("Authorization: Basic {}\r\n", base64(&format!("{USER}:{PASSWORD}"))));
        for (name, value) in fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).expect("the registry is gone");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).expect("cannot send");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("cannot read the answer");
        Answer::parse(&bytes)
    }

    fn wait_until_up(&mut self) {
        let port = self.port;
        self.wait_until(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
    }

    fn wait_until(&mut self, up: impl Fn(&str) -> bool) {
        let until = Instant::now() + START;
        while !up(&fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()) {
            let ended = self.process.try_wait().expect("cannot wait");
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(
                ended.is_none() && Instant::now() < until,
                "docker-registry does not start ({ended:?}):\n{log}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("not HTTP");
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("no status");
        Self { status, head, body: bytes[end + 4..].to_owned() }
    }

    fn field(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.into_iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Starts docker-registry. Should the test be killed, the registry goes with it.
fn serve(folder: &Path, config: &str, words: &[&str]) -> Child {
    let file = folder.join("config.yml");
    fs::write(&file, config).expect("cannot write");
    let log = fs::File::create(folder.join("log")).expect("cannot write");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).args(words);
    command.arg(tool::find("docker-registry").expect("no docker-registry")).arg("serve").arg(&file);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("no descriptor")).stderr(log);
    command.spawn().expect("cannot start setpriv")
}

/// The last section is `http`, and may be added to.
fn configuration(folder: &Path, address: &str) -> String {
    format!(
        "version: 0.1\nlog: {{level: info, accesslog: {{disabled: false}}}}\nstorage:\n  filesystem:\n    \
         rootdirectory: {}\n  delete: {{enabled: true}}\nhttp:\n  addr: \"{address}\"\n",
        folder.join("storage").display()
    )
}

/// A port that nobody has now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("no free port");
    listener.local_addr().expect("no address").port()
}

/// RFC 4648, section 4.
pub fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let word =
            chunk.iter().enumerate().fold(0u32, |word, (i, byte)| word | u32::from(*byte) << (16 - 8 * i));
        for digit in 0..4 {
            let index = word >> (18 - 6 * digit) & 63;
            encoded.push(if digit > chunk.len() { '=' } else { char::from(DIGITS[index as usize]) });
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(text), encoded);
        }
    }
}
