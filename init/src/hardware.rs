//! What belongs to the machine: processors and random numbers.

use crate::agent::failure;
use nacre_protocols::agent_init::{Failure, FailureKind, SEED_MAX};
use std::path::PathBuf;

/// Most processors of the kernel (`NR_CPUS`).
const CPUS_MAX: u32 = 64;

/// Brings processors up, lowest first, until `count` are.
pub fn online_cpus(count: u32) -> Result<(), Failure> {
    let mut online = 0;
    for number in 0..CPUS_MAX {
        let directory = PathBuf::from(format!("/sys/devices/system/cpu/cpu{number}"));
        let switch = directory.join("online");
        let is_online = match std::fs::read(&switch) {
            Ok(text) => text.first() == Some(&b'1'),
            // The first processor has no switch.
            Err(_) => directory.exists(),
        };
        if is_online {
            online += 1;
        } else if online < count && switch.exists() {
            std::fs::write(&switch, "1").map_err(|error| {
                failure(FailureKind::System, format!("bringing processor {number} up: {error}"))
            })?;
            online += 1;
        }
    }
    if online < count {
        return Err(failure(FailureKind::State, format!("{online} of {count} processors are there")));
    }
    Ok(())
}

pub fn reseed(data: &[u8]) -> Result<(), Failure> {
    if data.is_empty() || data.len() > SEED_MAX {
        let message = format!("a seed has 1 to {SEED_MAX} bytes, not {}", data.len());
        return Err(failure(FailureKind::Refused, message));
    }
    nacre_sys::random::add(data).map_err(|error| failure(FailureKind::System, format!("reseeding: {error}")))
}
