//! The agent's whole life: take the descriptors that init gave, give up every right, greet init, take back what it holds,
//! and serve the host.

use nacre_agent::stream::Mirror;
use nacre_agent::{AgentError, agent::Agent, confine, init, log, say, server};
use nacre_protocols::agent_init::agent_fd;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Comes back only when init is gone or something failed.
fn run() -> Result<(), AgentError> {
    nacre_sys::malloc::give_back_early();
    let [listener, init, state] = inherited()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AgentError::io("making the runtime"))?;
    let mirror = Mirror::new().map_err(AgentError::io("making a pipe"))?;
    confine::confine()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let mut edge = init::Edge::new(init)?;
        let (welcome, ports) = edge.greet().await?;
        let log = ports.log.map(log::serve);
        say(&format!("agent {} is up", welcome.generation));
        let agent = Agent::resume(edge, welcome, state, mirror).await?;
        tokio::select! {
            ended = agent.init.ended() => Err(ended),
            served = server::serve(&agent, listener) => served,
            () = agent.keep_watched() => Ok(()),
            ended = or_never(log) => ended,
            ended = or_never(ports.passed.map(|port| agent.passed.serve(port))) => ended,
        }
    })
}

/// What the host asked for; without it nothing, for ever.
async fn or_never<T>(work: Option<impl Future<Output = T>>) -> T {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

fn inherited() -> Result<[OwnedFd; 3], AgentError> {
    let wanted = [agent_fd::LISTENER, agent_fd::INIT, agent_fd::STATE];
    let taken = nacre_sys::exec::take_over(&wanted).map_err(AgentError::io("taking over descriptors"))?;
    let taken: Option<Vec<OwnedFd>> = taken.into_iter().collect();
    taken.and_then(|taken| taken.try_into().ok()).ok_or(AgentError::Descriptors)
}
