//! Processes and their streams.

use super::{Context, Outcome, Reply, method, reply};
use crate::error::RpcError;
use crate::process::Process;
use nacre_protocols::agent_init::{OutputStream, RequestBody};
use nacre_protocols::host_agent::kata::{
    CloseStdinRequest, Empty, ExecProcessRequest, ReadStreamResponse, SignalProcessRequest,
    TtyWinResizeRequest, WaitProcessResponse, WriteStreamRequest, WriteStreamResponse, agent_service,
};
use nacre_protocols::init_launcher::TerminalSize;
use std::pin::Pin;

method!(exec, agent_service::ExecProcess, exec_process);
method!(signal, agent_service::SignalProcess, signal_process);
method!(write_stdin, agent_service::WriteStdin, write);
method!(close_stdin, agent_service::CloseStdin, close);
method!(resize, agent_service::TtyWinResize, resize_terminal);

async fn exec_process(context: Context, request: ExecProcessRequest) -> Result<Empty, RpcError> {
    context.agent.exec_process(request).await?;
    Ok(Empty {})
}

async fn signal_process(context: Context, request: SignalProcessRequest) -> Result<Empty, RpcError> {
    context.agent.signal(&request.container_id, &request.exec_id, request.signal).await?;
    Ok(Empty {})
}

/// The status is given to everybody who waits. When it was written to the first of them, the process is forgotten.
pub fn wait(context: Context, payload: Vec<u8>) -> Pin<Box<dyn Future<Output = Outcome>>> {
    Box::pin(async move {
        let request = super::request::<agent_service::WaitProcess>(&payload)?;
        drop(payload);
        let agent = context.agent;
        let process = agent.containers.process(&request.container_id, &request.exec_id)?;
        let status = process.wait().await?;
        let name = process.name.clone();
        let sent = move || {
            if agent.containers.process(&name.container, &name.exec).is_ok() {
                tokio::task::spawn_local(async move { agent.reaped(&name).await });
            }
        };
        let response =
            WaitProcessResponse { status: i32::from(status.code), out_of_memory: status.out_of_memory };
        let outcome = reply::<agent_service::WaitProcess>(&response);
        outcome.map(|reply| Reply { sent: Some(Box::new(sent)), ..reply })
    })
}

async fn write(context: Context, request: WriteStreamRequest) -> Result<WriteStreamResponse, RpcError> {
    let process = context.agent.containers.process(&request.container_id, &request.exec_id)?;
    if request.data.is_empty() {
        close_input(&context, &process).await?;
    } else {
        process.write(&request.data).await?;
    }
    Ok(WriteStreamResponse { len: request.data.len() as u32 })
}

pub fn read_stdout(context: Context, payload: Vec<u8>) -> Pin<Box<dyn Future<Output = Outcome>>> {
    Box::pin(read(context, payload, OutputStream::Output))
}

pub fn read_stderr(context: Context, payload: Vec<u8>) -> Pin<Box<dyn Future<Output = Outcome>>> {
    Box::pin(read(context, payload, OutputStream::Error))
}

/// What is read leaves the stream when the host has it: whoever gives up before, an agent that dies among them, leaves it to
/// the next read.
async fn read(context: Context, payload: Vec<u8>, which: OutputStream) -> Outcome {
    // The messages of both methods are the same.
    let request = super::request::<agent_service::ReadStdout>(&payload)?;
    drop(payload);
    let process = context.agent.containers.process(&request.container_id, &request.exec_id)?;
    let agent = context.agent;
    let read = process.read(&agent, which, request.len, request.received, &context.outbound);
    let Some(mut chunk) = read.await? else {
        return reply::<agent_service::ReadStdout>(&ReadStreamResponse::default());
    };
    let data = std::mem::take(&mut chunk.bytes);
    let length = data.len();
    let reply = reply::<agent_service::ReadStdout>(&ReadStreamResponse { data })?;
    if request.received.is_some() {
        // His next request says that he has them.
        return Ok(reply);
    }
    let sent = move || drop(tokio::task::spawn_local(async move { chunk.sent(&agent.init, length).await }));
    Ok(Reply { sent: Some(Box::new(sent)), ..reply })
}

async fn close(context: Context, request: CloseStdinRequest) -> Result<Empty, RpcError> {
    let process = context.agent.containers.process(&request.container_id, &request.exec_id)?;
    close_input(&context, &process).await?;
    Ok(Empty {})
}

async fn close_input(context: &Context, process: &Process) -> Result<(), RpcError> {
    if process.close_stdin().await? {
        let process = process.name.clone();
        context.agent.init.order(RequestBody::CloseStdin { process }).await?;
    }
    Ok(())
}

async fn resize_terminal(context: Context, request: TtyWinResizeRequest) -> Result<Empty, RpcError> {
    let process = context.agent.containers.process(&request.container_id, &request.exec_id)?;
    let clamp = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    process.resize(TerminalSize { rows: clamp(request.row), columns: clamp(request.column) })?;
    Ok(Empty {})
}
