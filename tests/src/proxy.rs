//! Stands before a registry and answers in its place, or spoils its answers: the faults that no honest registry makes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Bytes of a request's head.
const HEAD_BYTES: u64 = 64 << 10;
/// How long a stalled answer stays without a byte.
const STALL: Duration = Duration::from_secs(600);

/// One request as the proxy saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Field names in lower case.
    pub fields: Vec<(String, String)>,
    /// How many requests for the same path came before.
    pub earlier: usize,
}

impl Seen {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// A request for a layer or a configuration.
    pub fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }
}

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// The registry's own answer.
    Pass,
    /// The registry's answer with one bit of the body turned, at this offset.
    TurnBit(u64),
    /// The registry's answer with its connection closed after so many bytes of the body.
    CutAfter(u64),
    /// The registry's answer until so many bytes of the body, then nothing, with the connection open.
    StallAfter(u64),
    /// An answer of the proxy's own: status, fields, body.
    Own(u16, Vec<(&'static str, String)>, String),
}

type Rule = dyn Fn(&Seen) -> Answer + Send + Sync;

/// A proxy on a loopback port; ends with its value.
pub struct Proxy {
    pub port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    ended: Arc<AtomicBool>,
}

impl Proxy {
    /// Before the registry at `upstream`, a port of the loopback.
    pub fn start(upstream: u16, rule: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_at(0, upstream, rule)
    }

    /// At a port of the caller's choosing.
    pub fn start_at(
        port: u16,
        upstream: u16,
        rule: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("no free port");
        let port = listener.local_addr().expect("no address").port();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let ended = Arc::new(AtomicBool::new(false));
        let rule: Arc<Rule> = Arc::new(rule);
        let (shared, stop) = (seen.clone(), ended.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                let (shared, rule) = (shared.clone(), rule.clone());
                // A client that hangs up is no fault of the test.
                thread::spawn(move || drop(serve(stream, upstream, &shared, &*rule)));
            }
        });
        Self { port, seen, ended }
    }

    /// `localhost:PORT/images:TAG`
    pub fn reference(&self, tag: &str) -> String {
        format!("localhost:{}/images:{tag}", self.port)
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("poisoned").clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

fn serve(mut client: TcpStream, upstream: u16, seen: &Mutex<Vec<Seen>>, rule: &Rule) -> std::io::Result<()> {
    let Some((mut request, body)) = read_request(&client)? else { return Ok(()) };
    {
        let mut seen = seen.lock().expect("poisoned");
        request.earlier = seen.iter().filter(|other| other.path == request.path).count();
        seen.push(request.clone());
    }
    match rule(&request) {
        Answer::Own(status, fields, text) => {
            write!(
                client,
                "HTTP/1.1 {status} As asked\r\nConnection: close\r\nContent-Length: {}\r\n",
                text.len()
            )?;
            for (name, value) in fields {
                write!(client, "{name}: {value}\r\n")?;
            }
            write!(client, "\r\n{text}")
        }
        answer => forward(&request, &body, client, upstream, &answer),
    }
}

/// `None` for what is not HTTP: a client that tries TLS first.
fn read_request(client: &TcpStream) -> std::io::Result<Option<(Seen, Vec<u8>)>> {
    let mut reader = BufReader::new(client.take(HEAD_BYTES));
    let mut first = Vec::new();
    reader.read_until(b'\n', &mut first)?;
    let Ok(first) = String::from_utf8(first) else { return Ok(None) };
    let mut words = first.split_whitespace();
    let (Some(method), Some(path), Some(_)) = (words.next(), words.next(), words.next()) else {
        return Ok(None);
    };
    let mut fields = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let request = Seen { method: method.to_owned(), path: path.to_owned(), fields, earlier: 0 };
    let length = request.field("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some((request, body)))
}

fn forward(
    request: &Seen,
    body: &[u8],
    mut client: TcpStream,
    upstream: u16,
    answer: &Answer,
) -> std::io::Result<()> {
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream))?;
    write!(server, "{} {} HTTP/1.1\r\nConnection: close\r\n", request.method, request.path)?;
    for (name, value) in &request.fields {
        // A bearer token is between the client and the proxy.
        let ours = name == "connection" || (name == "authorization" && value.starts_with("Bearer"));
        if !ours {
            write!(server, "{name}: {value}\r\n")?;
        }
    }
    server.write_all(b"\r\n")?;
    server.write_all(body)?;
    let mut reader = BufReader::new(server);
    loop {
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line)?;
        client.write_all(&line)?;
        if line.is_empty() || line == b"\r\n" {
            break;
        }
    }
    let limit = match answer {
        Answer::CutAfter(bytes) | Answer::StallAfter(bytes) => *bytes,
        _ => u64::MAX,
    };
    let mut offset = 0;
    let mut buffer = vec![0; 64 << 10];
    let mut body = reader.take(limit);
    loop {
        let count = body.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        if let Answer::TurnBit(at) = answer
            && (offset..offset + count as u64).contains(at)
        {
            buffer[(at - offset) as usize] ^= 1;
        }
        client.write_all(&buffer[..count])?;
        offset += count as u64;
    }
    if let Answer::StallAfter(_) = answer {
        client.set_read_timeout(Some(STALL))?;
        // Until the client gives up.
        let _ = client.read(&mut buffer);
    }
    Ok(())
}
