//! `nacre pull`: an image into a store, or into a sandbox that runs, to be there when it is wanted.

use super::args::{MachineOptions, Pull, Run};
use super::error::Failure;
use super::find;
use super::plan::Plan;
use super::progress::{Progress, Timings};
use super::run::{Sandbox, bring_up, interrupted, pull_image};

pub async fn pull(args: Pull) -> Result<u8, Failure> {
    let mut run = *Run::plain(&args.image).map_err(|problem| Failure::new("arguments", problem))?;
    run.words = vec![args.image];
    run.registry = args.registry;
    run.image_quota = args.image_quota;
    run.quiet = args.quiet;
    place(&mut run, args.store, args.within, args.machine)?;
    let mut plan = Plan::new(run)?;
    plan.wanted.keep = true;
    let mut progress = Progress::new(args.quiet);
    let outcome = in_sandbox(&plan, &mut progress, async |sandbox, progress| {
        let mut timings = Timings::default();
        bring_up(&plan, sandbox, progress, &mut timings).await?;
        let (_, pulled) = pull_image(&plan, sandbox, progress, &mut timings).await?;
        Ok((timings, pulled))
    });
    let (timings, pulled) = outcome.await?;
    progress.pulled(&timings);
    println!("{}", pulled.manifest);
    Ok(0)
}

/// Where: a sandbox that runs, or a new one for a store that none has.
pub fn place(
    run: &mut Run,
    store: Option<String>,
    within: Option<String>,
    machine: MachineOptions,
) -> Result<(), Failure> {
    run.machine = machine;
    run.within = within;
    if let Some(name) = store {
        match find::of_store(&name)? {
            Some(target) => run.within = Some(target.container.name),
            None => run.store = Some(name),
        }
    }
    Ok(())
}

/// Does something in a sandbox, and ends it afterwards if it is a new one. An interrupt ends what goes on.
pub async fn in_sandbox<T>(
    plan: &Plan,
    progress: &mut Progress,
    work: impl AsyncFnOnce(&Sandbox, &mut Progress) -> Result<T, Failure>,
) -> Result<T, Failure> {
    for notice in &plan.notices {
        progress.note(notice);
    }
    // Between the steps, too, a signal is not lost.
    let interrupted = interrupted();
    let mut sandbox = Sandbox::open(plan, progress).await?;
    let outcome = tokio::select! {
        outcome = work(&sandbox, progress) => outcome,
        gone = sandbox.control.gone() => Err(sandbox.died(gone)),
        number = interrupted => Err(Failure::new("pull", "interrupted").with_code(128 + number)),
    };
    progress.clear();
    let outcome = match outcome {
        Ok(value) => Ok(value),
        Err(failure) => Err(sandbox.explain(failure).await),
    };
    sandbox.abandon().await;
    outcome
}
