//! A connection, whichever HTTP is spoken on it: a request goes out, heads and a body come back.

use std::io::{self, Write};

use super::http::{self, Head, Request};
use super::http2;
use super::input::Input;
use super::proxy::Proxy;
use super::transport::{Limit, Stream};

pub enum Channel {
    /// HTTP/1.1.
    One(Input),
    Two(Box<http2::Connection>),
}

impl Channel {
    /// What a new stream speaks was settled in its TLS handshake.
    pub fn new(stream: Stream) -> Self {
        match stream.protocol() == Some(http2::PROTOCOL) {
            true => Self::Two(Box::new(http2::Connection::new(stream))),
            false => Self::One(Input::new(stream)),
        }
    }

    /// `forwarder` is a proxy that takes the request whole.
    pub fn begin(&mut self, request: &Request<'_>, forwarder: Option<&Proxy>) -> io::Result<()> {
        match self {
            Self::One(input) => {
                input.stream.write_all(&http::request_head(request, forwarder))?;
                input.stream.flush()
            }
            Self::Two(connection) => connection.begin(request, &http::form_fields(request)),
        }
    }

    pub fn head(&mut self) -> io::Result<Head> {
        match self {
            Self::One(input) => input.head(),
            Self::Two(connection) => connection.head(),
        }
    }

    /// Bytes of the body as they come; 0 where no more do.
    pub fn read(&mut self, wanted: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::One(input) => input.read(wanted),
            Self::Two(connection) => connection.read(wanted),
        }
    }

    pub fn line(&mut self) -> io::Result<Vec<u8>> {
        match self {
            Self::One(input) => input.line(),
            Self::Two(_) => Err(super::input::malformed("chunks are HTTP/1.1's")),
        }
    }

    /// Whether another request may follow, the answer being read.
    pub fn is_reusable(&self) -> bool {
        match self {
            Self::One(input) => input.is_empty(),
            Self::Two(connection) => connection.is_reusable(),
        }
    }

    pub fn limit(&self, limit: Limit) {
        match self {
            Self::One(input) => input.stream.limit(limit),
            Self::Two(connection) => connection.input.stream.limit(limit),
        }
    }
}
