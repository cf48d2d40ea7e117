//! `nacre vmm-control`: what can be asked of a virtual machine that is our own VMM's.

use std::path::PathBuf;

use nacre_protocols::host_vmm::{Reply, Request};

use super::args::{VmmControl, VmmRequest};
use super::error::Failure;
use super::find::Target;
use super::values::mib;
use super::{exit, find};
use crate::kvm::control::ask;
use crate::vmm::CONTROL_NAME;

/// Asks once, and shows the reply.
pub fn vmm_control(args: &VmmControl) -> Result<u8, Failure> {
    let request = match args.request {
        VmmRequest::Pause => Request::Pause,
        VmmRequest::Resume => Request::Resume,
        VmmRequest::Stop => Request::Stop,
        VmmRequest::Resize { memory, processors } => {
            Request::Resize { memory_mib: memory.map(mib), processors }
        }
        VmmRequest::Status => Request::Status,
        VmmRequest::Metrics => Request::Metrics,
    };
    let path = socket(&args.target)?;
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new("vmm-control", format!("{}: {error}", path.display())).with_code(exit::FAILED)
    };
    let reply = ask(&path, request).map_err(|error| {
        failed(&error).next("a sandbox has this socket while it runs with --vmm kvm; see `nacre ps`")
    })?;
    let shown = match &reply {
        Reply::Done => return Ok(0),
        Reply::Error(error) => return Err(failed(error)),
        Reply::Status(status) => serde_json::to_string_pretty(status),
        Reply::Metrics(metrics) => serde_json::to_string_pretty(metrics),
    };
    println!("{}", shown.map_err(|error| failed(&error))?);
    Ok(0)
}

/// The path itself, or that of the sandbox of a container.
fn socket(target: &str) -> Result<PathBuf, Failure> {
    if target.contains('/') {
        return Ok(target.into());
    }
    socket_of(&find::live(target)?)
        .ok_or_else(|| Failure::new("vmm-control", "the sandbox has no VM").with_code(exit::FAILED))
}

/// Where the control socket of a container's sandbox is, if our own VMM runs it.
pub fn socket_of(target: &Target) -> Option<PathBuf> {
    target.record.vsock.as_deref().map(|vsock| vsock.with_file_name(CONTROL_NAME))
}
