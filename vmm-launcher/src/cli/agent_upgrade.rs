//! `nacre agent-upgrade`: another program in the place of a sandbox's agent, while its containers run.

use std::time::Duration;

use super::args::AgentUpgrade;
use super::error::Failure;
use super::{exit, find};

/// Longest program, in bytes: what one message to the agent holds, with room for what goes around it.
const PROGRAM_MAX: u64 = 4 * 1024 * 1024 - 1024;
/// How long the new agent may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn upgrade(args: AgentUpgrade) -> Result<u8, Failure> {
    let failed = |cause: String| Failure::new("agent-upgrade", cause);
    let shown = args.program.display();
    let unreadable = |error: std::io::Error| failed(format!("{shown}: {error}"));
    let length = std::fs::metadata(&args.program).map_err(unreadable)?.len();
    if length > PROGRAM_MAX {
        return Err(failed(format!("{shown} has {length} bytes, the limit is {PROGRAM_MAX}")));
    }
    let program = std::fs::read(&args.program).map_err(unreadable)?;
    let client = find::live(&args.name)?.client()?;
    let lost = |error: crate::client::ClientError| failed(error.to_string());
    let before = client.report().await.map_err(lost)?.agent_generation;
    client.upgrade_agent(program).await.map_err(lost)?;
    let new = async {
        loop {
            // The old one may take a call yet, and lose it.
            match client.report().await {
                Ok(report) if report.agent_generation > before => return report.agent_upgraded,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    match tokio::time::timeout(PATIENCE, new).await {
        Ok(true) => Ok(0),
        Ok(false) => {
            Err(failed(format!("{shown} does not run: the sandbox has the agent of its image again"))
                .with_code(exit::FAILED))
        }
        Err(_) => Err(failed(format!("no agent answers within {} s", PATIENCE.as_secs()))),
    }
}
