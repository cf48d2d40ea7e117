//! `nacre-launcher MODE CEILING STORAGE`: takes over its descriptors, reads one sealed plan, checks it, applies it, reports. It
//! becomes the container's command or ends; it asks nothing back and serves nobody.
//!
//! It needs no protection of its own file against a container that reaches it through `/proc/PID/exe` (CVE-2019-5736):
//! the guest image is an EROFS on a read-only disk.

#![forbid(unsafe_code)]

use nacre_launcher::check::{CheckedPlan, Origin, check};
use nacre_launcher::confine::confine;
use nacre_launcher::container::{Given, create};
use nacre_launcher::descriptors::{Descriptors, required};
use nacre_launcher::error::{Context, LaunchError, Result};
use nacre_launcher::exec::exec;
use nacre_launcher::status::StatusSocket;
use nacre_launcher::{cgroup, images, network, storage};
use nacre_protocols::frame;
use nacre_protocols::init_launcher::storage::OTHER_ROOTS;
use nacre_protocols::init_launcher::{LaunchStage, Mode, Outcome, PLAN_MAX, Plan, Status};
use nacre_sys::memfd::read_sealed;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(mode), Some(ceiling), Some(kinds), None) = (
        arguments.next().and_then(|word| Mode::ALL.into_iter().find(|mode| mode.word() == word)),
        arguments.next().and_then(|hex| u64::from_str_radix(&hex, 16).ok()),
        arguments.next().and_then(|hex| u32::from_str_radix(&hex, 16).ok()),
        arguments.next(),
    ) else {
        eprintln!("usage: nacre-launcher create|exec|storage|network|update|helper CEILING STORAGE");
        return ExitCode::from(125);
    };
    let descriptors = match Descriptors::take(mode) {
        Ok(descriptors) => descriptors,
        Err(error) => {
            eprintln!("nacre-launcher: {error}");
            return ExitCode::from(125);
        }
    };
    let status = StatusSocket::new(descriptors.status);
    let given =
        Given { gate: descriptors.gate, cgroup: descriptors.cgroup, inherited: descriptors.inherited };
    match launch(mode, (ceiling, kinds), descriptors.plan, given, descriptors.target, &status) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error, &status),
    }
}

fn launch(
    mode: Mode,
    (ceiling, kinds): (u64, u32),
    plan: OwnedFd,
    given: Given,
    target: Option<OwnedFd>,
    status: &StatusSocket,
) -> Result<()> {
    // Until the command is executed, nobody but who may trace anything looks into this process: an exec is visible to the
    // container that it enters.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .at(LaunchStage::Rights, || "making this process unreadable".to_owned())?;
    confine(mode)?;
    match check(read_plan(plan)?, mode, ceiling, kinds)
        .map_err(|error| LaunchError::refused(LaunchStage::Plan, error.to_string()))?
    {
        CheckedPlan::Create(plan) => {
            if mode == Mode::Create && kinds & OTHER_ROOTS == 0 {
                images::require(&plan.rootfs)?;
            }
            create(&plan, Origin::of(mode), given, status)
        }
        CheckedPlan::Exec(plan) => Err(exec(&plan, Origin::of(mode), target, Vec::new(), status)),
        CheckedPlan::Storage(steps) => {
            let outcome = storage::apply(&steps)?;
            status.send(&Status::Done(outcome), None)
        }
        CheckedPlan::Network(steps) => {
            let (interfaces, routes) = network::apply(&steps)?;
            status.send(&Status::Done(Outcome::Network { interfaces, routes }), None)
        }
        CheckedPlan::Update(limits) => {
            cgroup::apply(&required(given.cgroup, "cgroup")?, &limits)?;
            status.send(&Status::Done(Outcome::Applied), None)
        }
    }
}

fn read_plan(plan: OwnedFd) -> Result<Plan> {
    let bytes = read_sealed(plan, PLAN_MAX as u64).at(LaunchStage::Plan, || "reading the plan".to_owned())?;
    frame::decode(&bytes, PLAN_MAX)
        .map_err(|error| LaunchError::refused(LaunchStage::Plan, format!("the plan: {error}")))
}

/// Reports; the exit code is for who sees only that: 127 for a command that is not there, 126 for one that cannot be
/// executed, else 125 (as docker's).
fn fail(error: LaunchError, status: &StatusSocket) -> ExitCode {
    let code = match error.stage {
        LaunchStage::Exec if error.errno == Errno::NOENT.raw_os_error() => 127,
        LaunchStage::Exec => 126,
        _ => 125,
    };
    // A filter of the container's may forbid even this; then the exit code is all there is.
    if let Err(unheard) = status.send(&Status::Failed(error.clone().into_failure()), None) {
        eprintln!("nacre-launcher: {error}; {unheard}");
    }
    ExitCode::from(code)
}
