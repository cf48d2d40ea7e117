//! Runs steps of commands, again and again, and prints for each round `wall_us processor_us resident_kib`.
//!
//! Steps are divided by `;`. `@` in a word is the number of the round, the step `wait` waits until every process that
//! the round has left behind has ended. All that descends from a step is counted, also what it leaves behind: this
//! process is the reaper of orphans, and every round ends when there are none.
//!
//! A program of its own because a process begins with what the one that forked it had resident.

use nacre_sys::usage::{Reaped, wait};
use rustix::process::{getpid, set_child_subreaper};
use std::io;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Used {
    processor_time: Duration,
    resident_kib: u64,
}

impl Used {
    fn add(&mut self, reaped: &Reaped) {
        self.processor_time += reaped.processor_time;
        self.resident_kib = self.resident_kib.max(reaped.resident_kib);
    }
}

pub fn meter(times: &str, words: &[&str]) -> io::Result<u8> {
    let times: u32 = times.parse().map_err(|_| io::Error::other("TIMES is not a number"))?;
    set_child_subreaper(Some(getpid()))?;
    let steps: Vec<&[&str]> = words.split(|word| *word == ";").collect();
    for number in 0..times {
        let (used, wall) = round(&steps, &number.to_string())?;
        println!("{} {} {}", wall.as_micros(), used.processor_time.as_micros(), used.resident_kib);
    }
    Ok(0)
}

fn round(steps: &[&[&str]], number: &str) -> io::Result<(Used, Duration)> {
    let mut used = Used::default();
    let begun = Instant::now();
    for step in steps {
        if *step == ["wait"] {
            wait_for_all(&mut used)?;
            continue;
        }
        let mut words = step.iter().map(|word| word.replace('@', number));
        let program = words.next().ok_or_else(|| io::Error::other("an empty step"))?;
        let child = Command::new(&program).args(words).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        loop {
            let reaped = wait(None)?.ok_or_else(|| io::Error::other("a step got lost"))?;
            used.add(&reaped);
            if reaped.pid == child.id() {
                match reaped.code {
                    0 => break,
                    code => return Err(io::Error::other(format!("{step:?} ended with {code}"))),
                }
            }
        }
    }
    wait_for_all(&mut used)?;
    Ok((used, begun.elapsed()))
}

fn wait_for_all(used: &mut Used) -> io::Result<()> {
    while let Some(reaped) = wait(None)? {
        used.add(&reaped);
    }
    Ok(())
}
