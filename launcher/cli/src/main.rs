//! `nacre-launcher`: the launcher with a command line like runc's, for engines such as podman and containerd on machines that
//! are no guest of ours. The guest image does not contain it.
//!
//! It reads `config.json`, makes the plan with the library that the sandbox's agent uses, and applies it with the library that
//! the guest's launcher is: a child of this program becomes the container, without another program in between.

#![forbid(unsafe_code)]

mod args;
mod birth;
mod cgroup;
mod clock;
mod config;
mod create;
mod error;
mod exec;
mod features;
mod foreground;
mod hooks;
mod lifecycle;
mod own_binary;
mod signal_names;
mod spec;
mod state;
mod stats;
mod update;

use args::Arguments;
use error::{CliError, Result};
use state::Store;
use std::process::ExitCode;

const HELP: &str = "\
usage: nacre-launcher [--root DIR] [--log FILE] [--log-format text|json] COMMAND …

  create [-b BUNDLE] [--console-socket PATH] [--pid-file FILE] [--preserve-fds N] ID
  start ID
  run [-d] [--keep] [what create takes] ID
  exec [-d] [-t] [-p FILE | -u UID[:GID] -e NAME=VALUE --cwd DIR --cap CAP] ID [COMMAND…]
  state ID
  list [-q] [-f table|json]
  ps [-f table|json] ID [PS-OPTIONS]
  kill [-a] ID [SIGNAL]
  pause ID
  resume ID
  update [-r FILE] [--memory BYTES] [--pids-limit N] [--cpu-quota US] … ID
  events [--stats] [--interval SECONDS] ID
  delete [-f] ID
  spec [-b BUNDLE]
  features
";

fn main() -> ExitCode {
    let (log, arguments) = Arguments::read(std::env::args().skip(1));
    match arguments.and_then(dispatch) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log.error(&error);
            ExitCode::from(if matches!(error, CliError::Usage(_)) { 2 } else { 1 })
        }
    }
}

fn dispatch(arguments: Arguments) -> Result<u8> {
    let Arguments { root, command, rest, .. } = arguments;
    let store = Store::new(&root);
    match command.as_str() {
        "create" => create::create_command(&store, rest),
        "run" => create::run_command(&store, rest),
        "start" => lifecycle::start(&store, rest),
        "exec" => exec::command(&store, rest),
        "state" => lifecycle::state(&store, rest),
        "list" => lifecycle::list(&store, rest),
        "ps" => lifecycle::ps(&store, rest),
        "kill" => lifecycle::kill(&store, rest),
        "pause" => lifecycle::pause(&store, rest),
        "resume" => lifecycle::resume(&store, rest),
        "delete" => lifecycle::delete(&store, rest),
        "events" => stats::command(&store, rest),
        "features" => features::command(rest),
        "spec" => spec::command(rest),
        "update" => update::command(&store, rest),
        "help" => {
            print!("{HELP}");
            Ok(0)
        }
        "version" => {
            println!("nacre-launcher version {}\nspec: {}", env!("CARGO_PKG_VERSION"), state::OCI_VERSION);
            Ok(0)
        }
        "checkpoint" | "restore" => {
            Err(args::unsupported(&command, "a process image is not what this launcher can make"))
        }
        other => Err(args::usage(format!("unknown command {other:?}"))),
    }
}
