//! One connection: requests in, responses out in any order.

use super::outbound::{Frame, Outbound};
use super::socket::{Reader, Socket};
use crate::agent::Agent;
use crate::error::RpcError;
use crate::rpc::{self, Context, Outcome, Route, Work};
use nacre_protocols::host_agent::ttrpc::{
    Code, FrameError, FrameKind, HEADER_LEN, Header, Request, Response, response_frame,
};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

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
        let mut payload = vec![0; header.length as usize];
        if !payload.is_empty() && !reader.fill(&mut payload).await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
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
