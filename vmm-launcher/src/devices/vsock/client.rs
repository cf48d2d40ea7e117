//! The host program's end: connecting to a port of the guest through the hybrid socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::handshake::{MAX_LINE_BYTES, parse_ok};

/// Connects to `port` of the guest; waits at most `limit` for it to accept.
///
/// # Errors
/// `ConnectionRefused`: nobody listens in the guest. `TimedOut`: the guest does not answer (it may still boot).
/// Others as the socket gives them.
pub fn connect(path: &Path, port: u32, limit: Duration) -> io::Result<UnixStream> {
    let until = Instant::now() + limit;
    let mut stream = UnixStream::connect(path)?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut line = Vec::with_capacity(MAX_LINE_BYTES);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        stream.set_read_timeout(Some(left))?;
        // Byte by byte, because what follows the line is the guest's.
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
            Ok(_) => line.extend(byte),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
            }
            Err(e) => return Err(e),
        }
        if parse_ok(&line).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?.is_some() {
            stream.set_read_timeout(None)?;
            return Ok(stream);
        }
    }
}
