//! The hooks that run in the runtime's own namespaces: prestart, createRuntime, poststart, poststop.

use crate::error::{Result, refused};
use crate::state::{Record, Status};
use nacre_plan::oci;
use nacre_protocols::init_launcher::StateText;

/// While the container's process waits before its root changes.
pub fn before_create(record: &Record, hooks: &oci::Hooks) -> Result<()> {
    run("prestart", &hooks.prestart, record, Status::Creating)?;
    run("createRuntime", &hooks.create_runtime, record, Status::Creating)
}

/// The command runs already: what fails is told, and changes nothing.
pub fn after_start(record: &Record) {
    if let Some(hooks) = &record.hooks {
        warn(run("poststart", &hooks.poststart, record, Status::Running));
    }
}

pub fn after_delete(record: &Record) {
    if let Some(hooks) = &record.hooks {
        // Each has its turn, whatever becomes of the one before.
        for hook in &hooks.poststop {
            warn(run("poststop", std::slice::from_ref(hook), record, Status::Stopped));
        }
    }
}

fn run(kind: &'static str, list: &[oci::Hook], record: &Record, status: Status) -> Result<()> {
    if list.is_empty() {
        return Ok(());
    }
    let hooks = nacre_plan::runtime_hooks(kind, list).map_err(|error| refused(error.to_string()))?;
    let state = StateText(vec![record.state(status).to_string()]);
    nacre_launcher::hooks::run(kind, &hooks, &state, record.pid, || Ok(()))
        .map_err(|error| refused(error.message))
}

fn warn(result: Result<()>) {
    if let Err(error) = result {
        eprintln!("nacre-launcher: {error}");
    }
}
