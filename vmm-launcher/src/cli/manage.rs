//! `ps`, `logs`, `stop`, `kill`, `rm`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use super::args::{Kill, Logs, Ps, Rm, Stop};
use super::error::Failure;
use super::exit;
use super::find::{self, Target};
use crate::client::{ProcessId, printable};
use crate::sandbox::spec::{SIGTERM, signal_number};
use crate::sandbox::{ContainerState, FromMonitor, LogReader, Stream, ToMonitor, now};

/// How often a followed log is looked at.
const FOLLOW_PAUSE: Duration = Duration::from_millis(100);
/// How long a killed container may take to be gone.
const KILL_GRACE: Duration = Duration::from_secs(15);
/// How often a sandbox that is about to end is looked at.
const END_PAUSE: Duration = Duration::from_millis(20);
/// Longest command that `ps` shows on a terminal, in characters.
const COMMAND_MAX: usize = 32;
/// The same of an image's name.
const IMAGE_MAX: usize = 64;

pub fn ps(args: &Ps) -> Result<u8, Failure> {
    let targets = find::all().map_err(failed)?;
    let shown =
        targets.iter().filter(|target| args.all || (target.sandbox.alive && target.container.is_live()));
    if args.quiet {
        return print(shown.map(|target| target.container.name.clone()));
    }
    let mut rows = vec![["NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "SANDBOX"].map(str::to_owned)];
    rows.extend(shown.map(row));
    print(table(&rows))
}

fn row(target: &Target) -> [String; 6] {
    let container = &target.container;
    // A program wants all of it.
    let up_to = |max| if std::io::stdout().is_terminal() { max } else { usize::MAX };
    let age = now().saturating_sub(container.created);
    let status = match container.state {
        ContainerState::Exited { code, at } => {
            format!("exited ({code}) {} ago", duration(now().saturating_sub(at)))
        }
        _ if !target.sandbox.alive => "lost".to_owned(),
        ContainerState::Created => "starting".to_owned(),
        ContainerState::Running => "running".to_owned(),
    };
    [
        container.name.clone(),
        printable(&container.image, up_to(IMAGE_MAX)),
        printable(&container.command.join(" "), up_to(COMMAND_MAX)),
        format!("{} ago", duration(age)),
        status,
        target.sandbox.name.clone(),
    ]
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Columns as wide as their widest entry.
pub fn table<const N: usize>(rows: &[[String; N]]) -> impl Iterator<Item = String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    rows.iter().map(move |row| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    })
}

pub fn print(lines: impl Iterator<Item = String>) -> Result<u8, Failure> {
    let mut output = std::io::stdout().lock();
    for line in lines {
        if writeln!(output, "{line}").is_err() {
            break;
        }
    }
    Ok(0)
}

pub fn logs(args: &Logs) -> Result<u8, Failure> {
    let target = find::container(&args.name)?;
    if !target.container.detached {
        return Err(Failure::new(
            "logs",
            format!("{:?} is not detached: its output goes to its own terminal", args.name),
        )
        .with_code(exit::FAILED));
    }
    let read = |error: std::io::Error| Failure::new("logs", error).with_code(exit::FAILED);
    let mut reader = LogReader::open(&target.sandbox.place.container_log(&args.name)).map_err(read)?;
    loop {
        // Asked before the log is read to its end, so that nothing that was written last is missed.
        let ended = !args.follow || find::live(&args.name).is_err();
        while let Some((stream, data)) = reader.next_frame().map_err(read)? {
            let written = match stream {
                Stream::Output => {
                    std::io::stdout().lock().write_all(&data).and_then(|()| std::io::stdout().flush())
                }
                Stream::Error => std::io::stderr().lock().write_all(&data),
            };
            if written.is_err() {
                return Ok(0);
            }
        }
        if ended {
            return Ok(0);
        }
        std::thread::sleep(FOLLOW_PAUSE);
    }
}

pub async fn stop(args: Stop) -> Result<u8, Failure> {
    each(&args.names, async |name| stop_one(name, args.time).await).await
}

async fn stop_one(name: &str, seconds: u32) -> Result<(), Failure> {
    let target = find::live(name)?;
    let number = signal_number(&target.container.stop_signal).unwrap_or(SIGTERM);
    let control = target.control().await.map_err(failed)?;
    let client = target.client()?;
    let id = ProcessId::first(name);
    client.signal(&id, number).await.map_err(|error| Failure::new("stop", error).with_code(exit::FAILED))?;
    let ended = ended(&control, name);
    tokio::pin!(ended);
    let patience = Duration::from_secs(seconds.into());
    if tokio::time::timeout(patience, &mut ended).await.is_err() {
        // It may have ended in this instant.
        let _ = client.kill_all(name).await;
        if tokio::time::timeout(KILL_GRACE, ended).await.is_err() {
            return Err(Failure::new("stop", format!("{name:?} does not end"))
                .next(format!("nacre rm -f {name}"))
                .with_code(exit::FAILED));
        }
    }
    Ok(())
}

/// Until the container has ended, or its sandbox with it.
async fn ended(control: &crate::sandbox::Control, name: &str) {
    let question = ToMonitor::Wait { container: name.to_owned() };
    let exited = control.ask(&question);
    tokio::select! {
        _ = exited => {}
        _ = control.gone() => {}
    }
}

pub async fn kill(args: Kill) -> Result<u8, Failure> {
    each(&args.names, async |name| {
        let sent = find::live(name)?.client()?.signal(&ProcessId::first(name), args.signal).await;
        sent.map_err(|error| Failure::new("kill", error).with_code(exit::FAILED))
    })
    .await
}

pub async fn rm(args: Rm) -> Result<u8, Failure> {
    each(&args.names, async |name| remove(name, args.force).await).await
}

/// Does the same to each, prints the names of those to which it was done, and fails if one of them was not.
async fn each(
    names: &[String],
    mut work: impl AsyncFnMut(&str) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let mut failure = None;
    for name in names {
        match work(name).await {
            Ok(()) => println!("{name}"),
            Err(error) => {
                if let Some(earlier) = failure.replace(error) {
                    eprintln!("{earlier}");
                }
            }
        }
    }
    failure.map_or(Ok(0), Err)
}

async fn remove(name: &str, force: bool) -> Result<(), Failure> {
    let target = find::container(name)?;
    if target.sandbox.alive && target.container.is_live() {
        if !force {
            return Err(Failure::new("rm", format!("{name:?} is running"))
                .next(format!("nacre stop {name}, or nacre rm -f {name}"))
                .with_code(exit::FAILED));
        }
        end(&target, name).await?;
    } else if target.sandbox.alive && !has_others(&target, name) {
        // It has just ended, and its sandbox is about to.
        let gone = async {
            while find::container(name).is_ok_and(|target| target.sandbox.alive) {
                tokio::time::sleep(END_PAUSE).await;
            }
        };
        let _ = tokio::time::timeout(KILL_GRACE, gone).await;
    }
    forget(name)
}

/// Kills the container; if its agent does not answer, the whole sandbox.
async fn end(target: &Target, name: &str) -> Result<(), Failure> {
    let control = target.control().await.map_err(failed)?;
    let asked = tokio::time::timeout(KILL_GRACE, async {
        target.client()?.kill_all(name).await.map_err(|error| Failure::new("rm", error))?;
        match control.ask(&ToMonitor::Wait { container: name.to_owned() }).await {
            Ok(FromMonitor::Exited { .. }) | Err(_) => Ok(()),
            Ok(_) => Err(Failure::new("rm", "the monitor gave a wrong answer")),
        }
    });
    if !matches!(asked.await, Ok(Ok(()))) {
        let _ = control.tell(&ToMonitor::Stop).await;
    }
    if !has_others(target, name) {
        let _ = tokio::time::timeout(KILL_GRACE, control.gone()).await;
    }
    Ok(())
}

fn has_others(target: &Target, name: &str) -> bool {
    target.record.containers.iter().any(|other| other.name != name && other.is_live())
}

/// Removes what a kept container has left.
fn forget(name: &str) -> Result<(), Failure> {
    let Ok(target) = find::container(name) else { return Ok(()) };
    let place = &target.sandbox.place;
    if target.sandbox.alive {
        return Err(Failure::new(
            "rm",
            format!("other containers run in the sandbox of {name:?}; its record goes with them"),
        )
        .with_code(exit::FAILED));
    }
    let mut record = target.record;
    record.containers.retain(|container| container.name != name);
    if record.is_kept() {
        let _ = std::fs::remove_file(place.container_log(name));
        return record.write(place.path()).map_err(|error| Failure::new("rm", error).with_code(exit::FAILED));
    }
    place.remove().map_err(|error| failed(error.into()))
}

fn failed(failure: Failure) -> Failure {
    failure.with_code(exit::FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = [["A", "B", "C", "D", "E", "F"], ["long", "x", "é", "", "z", "last"]]
            .map(|row| row.map(str::to_owned));
        let lines: Vec<_> = table(&rows).collect();
        assert_eq!(lines, ["A      B   C   D   E   F", "long   x   é       z   last"]);
    }

    #[test]
    fn ages_are_short() {
        for (seconds, expected) in [(0, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (200_000, "2 d")]
        {
            assert_eq!(duration(seconds), expected);
        }
    }
}
