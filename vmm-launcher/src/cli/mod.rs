//! The command line of `nacre`.

mod agent_upgrade;
pub mod args;
mod attach;
mod doctor;
mod environment;
mod error;
mod exec;
pub mod exit;
mod find;
mod guest_files;
mod images;
mod manage;
mod plan;
mod progress;
mod pull;
mod registry;
mod run;
mod store;
mod terminal;
mod update;
mod values;
mod vmm_control;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
pub use error::Failure;

/// The whole life of a command.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { exit::code(exit::OWN_FAILURE) } else { ExitCode::SUCCESS };
        }
    };
    let result = match cli.command {
        Command::Monitor { directory } => return crate::sandbox::run_monitor(directory),
        Command::Vmm { config } => return crate::kvm::run(&config),
        Command::VmmControl(args) => vmm_control::vmm_control(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Run(args) => on_runtime(run::run(*args)),
        Command::Exec(args) => on_runtime(exec::exec(args)),
        Command::Ps(args) => manage::ps(&args),
        Command::Logs(args) => manage::logs(&args),
        Command::Stop(args) => on_runtime(manage::stop(args)),
        Command::Kill(args) => on_runtime(manage::kill(args)),
        Command::Pull(args) => on_runtime(pull::pull(*args)),
        Command::Images(args) => on_runtime(images::images(*args)),
        Command::Store(command) => store::store(&command),
        Command::Rm(args) => on_runtime(manage::rm(args)),
        Command::Update(args) => on_runtime(update::update(args)),
        Command::AgentUpgrade(args) => on_runtime(agent_upgrade::upgrade(args)),
    };
    match result {
        Ok(code) => exit::code(code),
        Err(failure) => {
            eprintln!("{failure}");
            exit::code(failure.code)
        }
    }
}

fn on_runtime(work: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("start", error))?;
    let result = runtime.block_on(work);
    // A thread may still wait for a key.
    runtime.shutdown_background();
    result
}
