//! `nacre exec`.

use super::args::{Exec, first_word};
use super::attach::{Streams, attach};
use super::error::Failure;
use super::{environment, exit, find, terminal};
use crate::client::ProcessId;
use crate::sandbox::ToMonitor;
use crate::sandbox::session::{self, SessionError};
use crate::sandbox::spec::{ExecSettings, exec_process};

pub async fn exec(args: Exec) -> Result<u8, Failure> {
    let (name, command) = first_word(&args.words)
        .map_err(|problem| Failure::new("arguments", problem).next("see nacre exec --help"))?;
    let name = name.to_owned();
    if args.tty && args.interactive && !terminal::stdin_is_terminal() {
        return Err(
            Failure::new("arguments", "-it, but standard input is not a terminal").next("leave -t out")
        );
    }
    let target = find::live(&name).map_err(|failure| failure.with_code(exit::OWN_FAILURE))?;
    let settings = ExecSettings {
        command: command.to_vec(),
        env: environment::collect(&[], &args.env)?,
        cwd: args.workdir,
        user: args.user,
        terminal: args.tty.then(|| terminal::size().unwrap_or_default()),
    };
    let process = exec_process(&target.container.defaults, &settings)
        .map_err(|error| Failure::new("arguments", error))?;
    let id = ProcessId { container: name.clone(), exec: session::unique_id("exec") };
    let client = target.client()?;
    let control = target.control().await?;
    // Held before it exists: whatever happens to this command, the process does not outlive it.
    control.order(&ToMonitor::HoldExec { container: name, exec: id.exec.clone() }).await?;
    let streams = Streams { interactive: args.interactive, terminal: args.tty };
    let work = async {
        session::exec(&client, &id, process).await?;
        attach(&client, &id, streams)
            .await
            .map_err(|source| SessionError::Agent { action: "run the command", source })
    };
    tokio::select! {
        code = work => {
            let _ = control.order(&ToMonitor::ExecEnded { exec: id.exec.clone() }).await;
            code.map_err(|error| Failure::from_session("exec", error))
        }
        _ = control.gone() => Err(Failure::new("exec", "the sandbox ended while the command ran")),
    }
}
