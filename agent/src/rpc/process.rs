//! Processes and their streams.

use super::{Context, Outcome, Reply, method, reply};
use crate::error::RpcError;
use crate::process::{Output, Process};
use nacre_protocols::agent_init::RequestBody;
use nacre_protocols::host_agent::kata::{
    CloseStdinRequest, Empty, ExecProcessRequest, ReadStreamRequest, ReadStreamResponse,
    SignalProcessRequest, TtyWinResizeRequest, WaitProcessResponse, WriteStreamRequest, WriteStreamResponse,
    agent_service,
};
use nacre_protocols::init_launcher::TerminalSize;
use std::pin::Pin;
use tokio::sync::oneshot;

method!(exec, agent_service::ExecProcess, exec_process);
method!(signal, agent_service::SignalProcess, signal_process);
method!(write_stdin, agent_service::WriteStdin, write);
method!(read_stdout, agent_service::ReadStdout, read_standard_output);
method!(read_stderr, agent_service::ReadStderr, read_standard_error);
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
        let (sent, was_sent) = oneshot::channel();
        let name = process.name.clone();
        tokio::task::spawn_local(async move {
            if was_sent.await.is_ok() && agent.containers.process(&name.container, &name.exec).is_ok() {
                agent.reaped(&name).await;
            }
        });
        let response =
            WaitProcessResponse { status: i32::from(status.code), out_of_memory: status.out_of_memory };
        let outcome = reply::<agent_service::WaitProcess>(&response);
        outcome.map(|reply| Reply { sent: Some(sent), ..reply })
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

async fn read_standard_output(
    context: Context,
    request: ReadStreamRequest,
) -> Result<ReadStreamResponse, RpcError> {
    read(context, request, Output::Stdout).await
}

async fn read_standard_error(
    context: Context,
    request: ReadStreamRequest,
) -> Result<ReadStreamResponse, RpcError> {
    read(context, request, Output::Stderr).await
}

async fn read(
    context: Context,
    request: ReadStreamRequest,
    which: Output,
) -> Result<ReadStreamResponse, RpcError> {
    let process = context.agent.containers.process(&request.container_id, &request.exec_id)?;
    Ok(ReadStreamResponse { data: process.read(which, request.len, &context.outbound).await? })
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
