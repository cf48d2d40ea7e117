//! Pulls one image into a directory, outside of any sandbox, with both processes of the program as they are in the guest:
//! other users, no capabilities, their own filters. Prints what it cost. Needs root.
//!
//! ```text
//! cargo run -p nacre-puller --example pull -- PROGRAM STORE REFERENCE
//! ```

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Instant;

use nacre_protocols::agent_puller::{
    FETCHER_FD, FRAME_MAX, INDEXER_FD, OPENING_MAX, Opening, Platform, Pull, Reply, Request,
};
use nacre_protocols::{fetcher_indexer, frame, names};
use nacre_sys::process::{Child, PidNamespace, Program, Spawn, spawn};
use nacre_sys::seqpacket;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [program, store, reference] = arguments.as_slice() else {
        return Err("usage: pull PROGRAM STORE REFERENCE".into());
    };
    std::fs::create_dir_all(store)?;
    rustix::fs::chown(Path::new(store), Some(rustix::fs::Uid::from_raw(names::FETCHER_UID)), None)?;
    let (agent, fetcher_end) = seqpacket::pair()?;
    let (to_indexer, indexer_end) = seqpacket::pair()?;
    let fds = [(indexer_end.as_fd(), fetcher_indexer::FETCHER_FD)];
    let indexer = start(program, "index", &fds, names::INDEXER_UID)?;
    let fds = [(fetcher_end.as_fd(), FETCHER_FD), (to_indexer.as_fd(), INDEXER_FD)];
    let fetcher = start(program, store, &fds, names::FETCHER_UID)?;
    drop((fetcher_end, to_indexer, indexer_end));

    let location = nacre_puller::reference::Reference::parse(reference)?.location();
    let ports = [443, 80].into_iter().chain(location.host_and_port().1).collect();
    let begun = Instant::now();
    seqpacket::send(&agent, &frame::encode(&Opening { ports }, OPENING_MAX)?, &[])?;
    let platform = Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() };
    let pull = Pull::anonymous(reference.clone(), platform);
    seqpacket::send(&agent, &frame::encode(&Request::Pull { id: 1, pull: Box::new(pull) }, FRAME_MAX)?, &[])?;
    let mut buffer = vec![0; FRAME_MAX];
    let image = loop {
        let (length, _) = seqpacket::receive(&agent, &mut buffer)?.ok_or("the fetcher is gone")?;
        match frame::decode(&buffer[..length], FRAME_MAX)? {
            Reply::Done { image, .. } => break image,
            Reply::Failed { failure, .. } => {
                return Err(format!("{:?}: {}", failure.kind, failure.message).into());
            }
            _ => {}
        }
    };
    let seconds = begun.elapsed().as_secs_f64();
    let compressed: u64 = image.layers.iter().map(|layer| layer.compressed).sum();
    let tar: u64 = image.layers.iter().map(|layer| layer.tar).sum();
    println!("{} ({:?})", image.reference, image.manifest);
    println!(
        "{} layers, {} MB compressed, {} MB as tar, {seconds:.2} s, {:.0} MB/s of tar",
        image.layers.len(),
        compressed / 1_000_000,
        tar / 1_000_000,
        tar as f64 / 1e6 / seconds
    );
    for (name, child) in [("fetcher", &fetcher), ("indexer", &indexer)] {
        println!("{name}: {}", usage(child.pid)?);
    }
    Ok(())
}

fn start(program: &str, argument: &str, fds: &[(BorrowedFd<'_>, i32)], uid: u32) -> std::io::Result<Child> {
    let [program, argument] = [program, argument].map(|text| CString::new(text).unwrap_or_default());
    spawn(&Spawn {
        program: Program::At(&program),
        args: &[&program, &argument],
        env: &[],
        fds,
        cgroup: None,
        pid_namespace: PidNamespace::Same,
        unprivileged: Some(uid),
    })
}

/// CPU seconds (user and system) and memory of a process, out of /proc.
fn usage(pid: u32) -> Result<String, Box<dyn std::error::Error>> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let seconds = |at: usize| -> Result<f64, Box<dyn std::error::Error>> {
        Ok(fields.get(at).ok_or("short /proc/PID/stat")?.parse::<f64>()? / TICKS_PER_SECOND)
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let memory: Vec<String> = status
        .lines()
        .filter(|line| line.starts_with("VmHWM") || line.starts_with("RssAnon"))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    Ok(format!("{:.2} s user, {:.2} s system, {}", seconds(11)?, seconds(12)?, memory.join(", ")))
}
