//! The host side's greeting on the hybrid socket: `CONNECT <port>\n`, answered by `OK <port>\n`. Pure functions.
//!
//! The form is that of Firecracker's vsock device (docs/vsock.md there), which Kata's runtime and many tools speak.

/// Bytes of the greeting, its newline included.
pub const MAX_LINE_BYTES: usize = 32;

/// Judges what has arrived so far.
///
/// Returns the port and how many bytes belong to the line, or `None` while the line is not complete.
///
/// # Errors
/// The line can never become a greeting.
pub fn parse_connect(received: &[u8]) -> Result<Option<(u32, usize)>, HandshakeError> {
    let window = received.get(..MAX_LINE_BYTES).unwrap_or(received);
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        return if window.len() == MAX_LINE_BYTES { Err(HandshakeError::TooLong) } else { Ok(None) };
    };
    let line = window.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = std::str::from_utf8(line).map_err(|_| HandshakeError::Command)?;
    let (command, port) = line.split_once(' ').ok_or(HandshakeError::Command)?;
    if !command.eq_ignore_ascii_case("connect") {
        return Err(HandshakeError::Command);
    }
    // `parse` alone would take a plus sign.
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(HandshakeError::Port);
    }
    let port = port.parse().map_err(|_| HandshakeError::Port)?;
    Ok(Some((port, end + 1)))
}

/// The answer once the guest has accepted; `port` is the host's end of the connection.
#[must_use]
pub fn ok_line(port: u32) -> String {
    format!("OK {port}\n")
}

/// Judges the answer; the same rules as [`parse_connect`].
///
/// # Errors
/// It is not `OK <port>\n`.
pub fn parse_ok(received: &[u8]) -> Result<Option<u32>, HandshakeError> {
    let window = received.get(..MAX_LINE_BYTES).unwrap_or(received);
    let Some(line) = window.strip_suffix(b"\n") else {
        return if window.len() == MAX_LINE_BYTES { Err(HandshakeError::TooLong) } else { Ok(None) };
    };
    let line = std::str::from_utf8(line).map_err(|_| HandshakeError::Command)?;
    let port = line.strip_prefix("OK ").ok_or(HandshakeError::Command)?;
    port.parse().map(Some).map_err(|_| HandshakeError::Port)
}

/// Why a greeting is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("vsock greeting: no newline within {MAX_LINE_BYTES} bytes")]
    TooLong,
    #[error("vsock greeting: not `CONNECT <port>`")]
    Command,
    #[error("vsock greeting: the port is not a number below 2^32")]
    Port,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_taken_or_refused_by_name() {
        type Case = (&'static [u8], Result<Option<(u32, usize)>, HandshakeError>);
        let cases: &[Case] = &[
            (b"CONNECT 1024\n", Ok(Some((1024, 13)))),
            (b"connect 1024\n", Ok(Some((1024, 13)))),
            (b"CoNnEcT 1\r\nrest", Ok(Some((1, 11)))),
            (b"CONNECT 4294967295\nGET /", Ok(Some((u32::MAX, 19)))),
            (b"CONNECT 4294967296\n", Err(HandshakeError::Port)),
            (b"CONNECT +1\n", Err(HandshakeError::Port)),
            (b"CONNECT -1\n", Err(HandshakeError::Port)),
            (b"CONNECT \n", Err(HandshakeError::Port)),
            (b"CONNECT 1 2\n", Err(HandshakeError::Port)),
            (b"CONNECT\n", Err(HandshakeError::Command)),
            (b"\n", Err(HandshakeError::Command)),
            (b"HELLO 1024\n", Err(HandshakeError::Command)),
            (b"\xff\xfe 1\n", Err(HandshakeError::Command)),
            (b"", Ok(None)),
            (b"CONNECT 10", Ok(None)),
            (b"CONNECT 00000000000000000000001\n", Ok(Some((1, 32)))),
            (b"CONNECT 000000000000000000000001\n", Err(HandshakeError::TooLong)),
        ];
        for (received, expected) in cases {
            assert_eq!(parse_connect(received), *expected, "{:?}", String::from_utf8_lossy(received));
        }
    }

    #[test]
    fn the_answer_round_trips() {
        assert_eq!(parse_ok(ok_line(1_073_741_824).as_bytes()), Ok(Some(1_073_741_824)));
        assert_eq!(parse_ok(b"OK 10"), Ok(None));
        assert_eq!(parse_ok(b"NO 10\n"), Err(HandshakeError::Command));
    }
}
