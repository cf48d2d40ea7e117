//! A ttrpc client for tests: blocking, one request after the other, or sent and received apart.

use super::PATIENCE;
use nacre_protocols::host_agent::Rpc;
use nacre_protocols::host_agent::ttrpc::{
    Code, HEADER_LEN, Header, Request, Response, Status, request_frame,
};
use prost::Message;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub struct Client {
    pub socket: UnixStream,
    next: u32,
    early: BTreeMap<u32, Response>,
}

impl Client {
    pub fn connect(path: &Path) -> Self {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, next: 1, early: BTreeMap::new() }
    }

    pub fn call<R: Rpc>(&mut self, request: &R::Request) -> Result<R::Response, Status> {
        let stream = self.send::<R>(request, Duration::ZERO);
        self.receive::<R>(stream)
    }

    pub fn call_within<R: Rpc>(
        &mut self,
        request: &R::Request,
        deadline: Duration,
    ) -> Result<R::Response, Status> {
        let stream = self.send::<R>(request, deadline);
        self.receive::<R>(stream)
    }

    /// The code and the text of a refusal.
    #[track_caller]
    pub fn refused<R: Rpc>(&mut self, request: &R::Request) -> (Code, String) {
        match self.call::<R>(request) {
            Ok(_) => panic!("{} was not refused", R::METHOD),
            Err(status) => (Code::from_number(status.code).unwrap(), status.message),
        }
    }

    pub fn send<R: Rpc>(&mut self, request: &R::Request, deadline: Duration) -> u32 {
        self.send_raw(R::SERVICE, R::METHOD, request.encode_to_vec(), deadline)
    }

    pub fn send_raw(&mut self, service: &str, method: &str, payload: Vec<u8>, deadline: Duration) -> u32 {
        let stream = self.next;
        self.next += 2;
        let request = Request {
            service: service.into(),
            method: method.into(),
            payload,
            timeout_nano: deadline.as_nanos() as i64,
            metadata: vec![],
        };
        self.socket.write_all(&request_frame(stream, &request).unwrap()).unwrap();
        stream
    }

    /// False when the connection was closed.
    pub fn try_check(&mut self) -> bool {
        let request = Request { service: "grpc.Health".into(), method: "Check".into(), ..Default::default() };
        let frame = request_frame(self.next, &request).unwrap();
        self.socket.write_all(&frame).is_ok() && self.next_response().is_ok()
    }

    pub fn receive<R: Rpc>(&mut self, stream: u32) -> Result<R::Response, Status> {
        self.receive_raw(stream).into_result().map(|payload| R::Response::decode(&*payload).unwrap())
    }

    pub fn receive_raw(&mut self, stream: u32) -> Response {
        loop {
            if let Some(response) = self.early.remove(&stream) {
                return response;
            }
            let (of, response) = self.next_response().expect("a response");
            self.early.insert(of, response);
        }
    }

    pub fn next_response(&mut self) -> std::io::Result<(u32, Response)> {
        let mut head = [0; HEADER_LEN];
        self.socket.read_exact(&mut head)?;
        let header = Header::decode(&head);
        let mut payload = vec![0; header.length as usize];
        self.socket.read_exact(&mut payload)?;
        Ok((header.stream, Response::from_payload(&payload).unwrap()))
    }
}
