//! Small proxies on loopback: HTTP's two ways and SOCKS 5. Whatever name they are told, they connect to 127.0.0.1.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

pub struct TestProxy {
    pub address: SocketAddr,
    /// What was asked of it, a line each.
    pub asked: Arc<Mutex<Vec<String>>>,
}

/// Either end of a way.
pub trait Conversation: Read + Write + Send {}
impl<T: Read + Write + Send> Conversation for T {}

impl TestProxy {
    /// `authorization` is what `Proxy-Authorization` must be, if anything.
    pub fn http(authorization: Option<&'static str>) -> Self {
        Self::start(move |stream, asked| serve_http(stream, asked, authorization))
    }

    /// HTTP inside TLS; only for `CONNECT`.
    pub fn https(config: Arc<rustls::ServerConfig>) -> Self {
        Self::start(move |stream, asked| {
            let session = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut tls = rustls::StreamOwned::new(session, stream);
            let head = read_head(&mut tls)?;
            let line = head.lines().next().unwrap_or_default().to_owned();
            asked.lock().unwrap().push(line.clone());
            let upstream = connect_to_port_of(line.split(' ').nth(1).unwrap_or_default())?;
            tls.write_all(b"HTTP/1.1 200 way\r\n\r\n")?;
            tls.flush()?;
            relay_in_turns(&mut tls, upstream)
        })
    }

    pub fn socks(login: Option<(&'static str, &'static str)>) -> Self {
        Self::start(move |stream, asked| serve_socks(stream, asked, login))
    }

    fn start(
        serve: impl Fn(TcpStream, &Mutex<Vec<String>>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = super::ports::listener();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (serve, log) = (Arc::new(serve), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (serve, log) = (serve.clone(), log.clone());
                std::thread::spawn(move || serve(stream, &log));
            }
        });
        Self { address, asked }
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve_http(
    mut stream: TcpStream,
    asked: &Mutex<Vec<String>>,
    authorization: Option<&str>,
) -> io::Result<()> {
    loop {
        let head = read_head(&mut stream)?;
        let line = head.lines().next().unwrap_or_default().to_owned();
        asked.lock().unwrap().push(line.clone());
        let given = head.lines().find_map(|line| line.strip_prefix("Proxy-Authorization: "));
        if authorization.is_some() && authorization != given {
            stream.write_all(b"HTTP/1.1 407 no\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        }
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if method == "CONNECT" {
            let upstream = connect_to_port_of(target)?;
            stream.write_all(b"HTTP/1.1 200 way\r\nX: y\r\n\r\n")?;
            return relay(stream, upstream);
        }
        let rest = target.strip_prefix("http://").unwrap_or_default();
        let (authority, path) = rest.split_once('/').unwrap_or_default();
        let mut upstream = connect_to_port_of(authority)?;
        let head = head.replacen(target, &format!("/{path}"), 1);
        let kept: Vec<_> = head.lines().filter(|line| !line.starts_with("Proxy-")).collect();
        upstream
            .write_all(format!("{}\r\nConnection: close\r\n\r\n", kept.join("\r\n").trim_end()).as_bytes())?;
        return relay(stream, upstream);
    }
}

fn serve_socks(
    mut stream: TcpStream,
    asked: &Mutex<Vec<String>>,
    login: Option<(&str, &str)>,
) -> io::Result<()> {
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting)?;
    let mut methods = vec![0; greeting[1].into()];
    stream.read_exact(&mut methods)?;
    match login {
        None => stream.write_all(&[5, 0])?,
        Some(_) if !methods.contains(&2) => return stream.write_all(&[5, 0xff]),
        Some((user, password)) => {
            stream.write_all(&[5, 2])?;
            stream.read_exact(&mut [0])?;
            let mut word = || {
                let mut length = [0];
                stream.read_exact(&mut length)?;
                let mut text = vec![0; length[0].into()];
                stream.read_exact(&mut text)?;
                Ok::<_, io::Error>(String::from_utf8(text).unwrap())
            };
            let given = (word()?, word()?);
            let good = (given.0.as_str(), given.1.as_str()) == (user, password);
            stream.write_all(&[1, u8::from(!good)])?;
            if !good {
                return Ok(());
            }
        }
    }
    let mut request = [0; 4];
    stream.read_exact(&mut request)?;
    let host = match request[3] {
        1 => {
            let mut ip = [0; 4];
            stream.read_exact(&mut ip)?;
            std::net::Ipv4Addr::from(ip).to_string()
        }
        3 => {
            let mut length = [0];
            stream.read_exact(&mut length)?;
            let mut name = vec![0; length[0].into()];
            stream.read_exact(&mut name)?;
            String::from_utf8(name).unwrap()
        }
        _ => return stream.write_all(&[5, 8, 0, 1, 0, 0, 0, 0, 0, 0]),
    };
    let mut port = [0; 2];
    stream.read_exact(&mut port)?;
    let port = u16::from_be_bytes(port);
    asked.lock().unwrap().push(format!("{host}:{port}"));
    match TcpStream::connect(("127.0.0.1", port)) {
        Ok(upstream) => {
            stream.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 9])?;
            relay(stream, upstream)
        }
        Err(_) => stream.write_all(&[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]),
    }
}

fn read_head(stream: &mut impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        bytes.extend(byte);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn connect_to_port_of(authority: &str) -> io::Result<TcpStream> {
    let port = authority.rsplit_once(':').map_or(80, |(_, port)| port.parse().unwrap());
    TcpStream::connect(("127.0.0.1", port))
}

fn relay(client: TcpStream, upstream: TcpStream) -> io::Result<()> {
    let (mut from_client, mut to_client) = (client.try_clone()?, client);
    let (mut from_upstream, mut to_upstream) = (upstream.try_clone()?, upstream);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_upstream);
        let _ = to_upstream.shutdown(std::net::Shutdown::Write);
    });
    let _ = io::copy(&mut from_upstream, &mut to_client);
    to_client.shutdown(std::net::Shutdown::Both)
}

/// For a client that cannot be cloned: a request and its answer by turns.
fn relay_in_turns(client: &mut dyn Conversation, mut upstream: TcpStream) -> io::Result<()> {
    upstream.set_read_timeout(Some(std::time::Duration::from_millis(50)))?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = client.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        upstream.write_all(&buffer[..read])?;
        loop {
            match upstream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => client.write_all(&buffer[..read])?,
                Err(_) => break,
            }
        }
        client.flush()?;
    }
}
