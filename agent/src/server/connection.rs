//! One connection: requests in, responses out in any order.

use super::outbound::{Frame, Outbound};
use super::socket::{Reader, Socket};
use crate::agent::Agent;
use crate::error::RpcError;
use crate::rpc::{self, Context, Outcome, Route, Work};
use nacre_protocols::host_agent::ttrpc::{
    Code, FrameError, FrameKind, HEADER_LEN, Header, Request, Response, names, response_frame,
};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

/// Read of a payload before it is decided whether the rest is worth its memory: room for the names, in bytes.
const START_LEN: usize = 512;
/// What stands around a request's message, metadata with it, at most; in bytes.
const ENVELOPE_MAX: usize = 4 * 1024;
/// Frames beyond this many bytes are received one at a time.
const SMALL_FRAME_MAX: usize = 16 * 1024;
/// How long a frame may take to arrive once it has begun.
const FRAME_PATIENCE: Duration = Duration::from_secs(10);

/// Serves until the peer ends the connection or breaks the framing.
pub async fn serve(agent: Rc<Agent>, connection: OwnedFd) -> io::Result<()> {
    let socket = Socket::new(connection)?;
    let context = Context { agent, outbound: Rc::default() };
    let result = tokio::select! {
        read = read_requests(&context, &socket) => read,
        written = write_frames(&context.outbound, &socket) => written,
    };
    context.outbound.close();
    match result {
        // The usual ends of a connection.
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            Ok(())
        }
        result => result,
    }
}

async fn write_frames(outbound: &Outbound, socket: &Socket) -> io::Result<()> {
    loop {
        let frame = outbound.next().await;
        socket.write_all(&frame.bytes).await?;
        // At once: who is killed before it does what was sent again.
        if let Some(sent) = frame.sent {
            sent();
        }
        outbound.written(frame.bytes.len());
    }
}

async fn read_requests(context: &Context, socket: &Socket) -> io::Result<()> {
    let mut reader = Reader::new(socket);
    loop {
        context.outbound.space().await;
        let mut head = [0; HEADER_LEN];
        if !reader.fill(&mut head).await? {
            return Ok(());
        }
        let header = Header::decode(&head);
        let refusal = match header.check() {
            Err(error) => Some(RpcError::invalid(error.to_string())),
            Ok(()) if header.kind != FrameKind::Request => {
                Some(RpcError::unsupported("a frame that is not a request"))
            }
            Ok(()) => None,
        };
        if let Some(error) = refusal {
            reader.skip(header.length as usize).await?;
            answer(&context.outbound, header.stream, Err(error));
            continue;
        }
        let length = header.length as usize;
        let mut payload = vec![0; length.min(START_LEN)];
        if !payload.is_empty() && !reader.fill(&mut payload).await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if length > START_LEN {
            if let Err(error) = judge(&payload, length) {
                reader.skip(length - START_LEN).await?;
                answer(&context.outbound, header.stream, Err(error));
                continue;
            }
            payload = whole(context, &mut reader, &payload, length).await?;
        }
        match Request::from_payload(&payload) {
            Ok(request) => {
                drop(payload);
                begin(context, header.stream, request);
            }
            Err(error) => answer(&context.outbound, header.stream, Err(RpcError::invalid(error.to_string()))),
        }
    }
}

/// Whether a request of so many bytes, of which these are the first, may go on.
fn judge(start: &[u8], length: usize) -> Result<(), RpcError> {
    let Some((service, method)) = names(start) else {
        return Err(RpcError::invalid("the message does not begin with the names of a service and a method"));
    };
    let limit = rpc::route(service, method)?.request_max;
    if length > limit + ENVELOPE_MAX {
        let message = format!("{method} takes messages of at most {limit} bytes, not {length}");
        return Err(RpcError::invalid(message));
    }
    Ok(())
}

/// The rest of a payload that begins with `start`.
async fn whole(
    context: &Context,
    reader: &mut Reader<'_>,
    start: &[u8],
    length: usize,
) -> io::Result<Vec<u8>> {
    let is_large = length > SMALL_FRAME_MAX;
    let turn = if is_large { Some(context.agent.limits.large.lock().await) } else { None };
    let mut payload = vec![0; length];
    payload.iter_mut().zip(start).for_each(|(to, from)| *to = *from);
    let rest = payload.get_mut(start.len()..).unwrap_or_default();
    let Ok(filled) = tokio::time::timeout(FRAME_PATIENCE, reader.fill(rest)).await else {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "a frame that does not end"));
    };
    if !filled? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    drop(turn);
    Ok(payload)
}

/// Answers at once what needs no waiting; gives everything else a task of its own.
fn begin(context: &Context, stream: u32, request: Request) {
    let route = match route(&request) {
        Ok(route) => route,
        Err(error) => return answer(&context.outbound, stream, Err(error)),
    };
    let (work, goes_on) = match route.work {
        // However busy the agent is.
        Work::AtOnce(work) => return answer(&context.outbound, stream, work(&request.payload)),
        Work::UntilDeadline(work) => (work, false),
        Work::ToTheEnd(work) => (work, true),
    };
    let Some(share) = context.agent.limits.share(request.payload.len()) else {
        let error = RpcError::new(Code::ResourceExhausted, "too many requests are being worked on");
        return answer(&context.outbound, stream, Err(error));
    };
    let deadline =
        u64::try_from(request.timeout_nano).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos);
    let outbound = Rc::clone(&context.outbound);
    let work = work(context.clone(), request.payload);
    let work = async move {
        let outcome = work.await;
        drop(share);
        outcome
    };
    if goes_on {
        let mut task = tokio::task::spawn_local(work);
        tokio::task::spawn_local(async move {
            let work =
                async { (&mut task).await.unwrap_or_else(|_| Err(RpcError::internal("the work ended"))) };
            respond(&outbound, stream, deadline, work).await;
        });
    } else {
        tokio::task::spawn_local(async move { respond(&outbound, stream, deadline, work).await });
    }
}

fn route(request: &Request) -> Result<Route, RpcError> {
    let route = rpc::route(&request.service, &request.method)?;
    let length = request.payload.len();
    if length > route.request_max {
        let message =
            format!("{} takes messages of at most {} bytes, not {length}", request.method, route.request_max);
        return Err(RpcError::invalid(message));
    }
    Ok(route)
}

/// Answers with the outcome of `work`, or that it came too late; not at all when the connection is gone.
async fn respond(
    outbound: &Outbound,
    stream: u32,
    deadline: Option<Duration>,
    work: impl Future<Output = Outcome>,
) {
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = outbound.closed() => return,
        () = passed(deadline) => Err(RpcError::new(Code::DeadlineExceeded, "the request's deadline has passed")),
    };
    answer(outbound, stream, outcome);
}

async fn passed(deadline: Option<Duration>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline).await,
        None => std::future::pending().await,
    }
}

fn answer(outbound: &Outbound, stream: u32, outcome: Outcome) {
    let (response, sent) = match outcome {
        Ok(reply) => (Response { status: None, payload: reply.payload }, reply.sent),
        Err(error) => (Response::error(error.code, error.message), None),
    };
    let bytes = response_frame(stream, &response).or_else(|error: FrameError| {
        response_frame(stream, &Response::error(Code::Internal, error.to_string()))
    });
    match bytes {
        Ok(bytes) => outbound.push(Frame { bytes, sent }),
        Err(error) => crate::say(&format!("a response cannot be made: {error}")),
    }
}
