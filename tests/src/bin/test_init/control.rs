//! What a test on the host asks of the prober: a line of JSON each way, over a vsock port of the guest's that is open only where
//! the image has a file [`FILE`]. `tests/tests/init.rs` asks.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::tracer::{Fault, Tracer};

/// Its text is the port.
const FILE: &str = "/etc/nacre-test-control";
/// Whose files and directories may be left over.
const FOLDERS: [&str; 2] = ["/run/nacre", "/run/kata-containers"];
const DEPTH_MAX: usize = 4;
const CONTAINERS: &str = "/sys/fs/cgroup/containers";

pub fn port() -> Option<u32> {
    fs::read_to_string(FILE).ok()?.trim().parse().ok()
}

/// One connection after the other, for ever.
pub fn serve(port: u32) -> io::Result<()> {
    let listener = nacre_sys::vsock::listen(port)?;
    rustix::io::ioctl_fionbio(&listener, false)?;
    loop {
        let (connection, _) = nacre_sys::vsock::accept(listener.as_fd())?;
        rustix::io::ioctl_fionbio(&connection, false)?;
        // Any stream socket will do: only its read and write are used.
        if let Err(error) = converse(&UnixStream::from(connection)) {
            crate::say(&format!("PROBE a connection: {error}\n"));
        }
    }
}

fn converse(stream: &UnixStream) -> io::Result<()> {
    let mut tracer = None;
    for line in BufReader::new(stream).lines() {
        let asked: Value = serde_json::from_str(&line?)?;
        let answer = match asked["ask"].as_str().unwrap_or_default() {
            "trace" => {
                let number = |name: &str| asked[name].as_u64();
                let fault = match (number("call"), number("error"), number("when")) {
                    (Some(call), Some(error), Some(when)) => {
                        Some(Fault { call, error: error.try_into().map_err(io::Error::other)?, when })
                    }
                    _ => None,
                };
                tracer = Some(Tracer::begin(fault)?);
                json!({})
            }
            "traced" => {
                let seen = tracer.take().ok_or_else(|| io::Error::other("nothing is traced"))?.end()?;
                let calls: BTreeMap<String, u64> =
                    seen.calls.into_iter().map(|(call, count)| (call.to_string(), count)).collect();
                json!({"calls": calls, "injected": seen.injected})
            }
            "look" => look(),
            other => return Err(io::Error::other(format!("{other:?} is not known"))),
        };
        let mut stream = stream;
        stream.write_all(format!("{answer}\n").as_bytes())?;
    }
    // Whoever asked for a trace and left must not leave PID 1 traced.
    tracer.map_or(Ok(()), |tracer| tracer.end().map(drop))
}

/// All that a container may leave behind.
fn look() -> Value {
    let (mut processes, mut sizes) = (Vec::new(), BTreeMap::new());
    for pid in crate::pids() {
        let status = |name: &str| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.unwrap_or_default().trim().to_owned()
        };
        let name = status("Name");
        // Of a kernel thread's children the parent is 2.
        if pid == 2 || status("PPid") == "2" || name.is_empty() || pid == std::process::id() {
            continue;
        }
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        let anonymous: u64 =
            status("RssAnon").split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        sizes.insert(name.clone(), json!({"descriptors": descriptors, "anonymous_kib": anonymous}));
        // Whether it runs or sleeps is of the moment; that nobody has reaped it is not.
        processes.push(if status("State").starts_with('Z') { format!("zombie {name}") } else { name });
    }
    processes.sort();
    let mounts = fs::read_to_string("/proc/1/mountinfo").unwrap_or_default();
    let mounts: Vec<_> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    let mut cgroups = Vec::new();
    list(Path::new(CONTAINERS), DEPTH_MAX, &mut |path, is_folder| {
        if is_folder {
            cgroups.push(path.to_string_lossy().into_owned());
        }
    });
    let mut files = Vec::new();
    for folder in FOLDERS {
        list(Path::new(folder), DEPTH_MAX, &mut |path, _| files.push(path.to_string_lossy().into_owned()));
    }
    cgroups.sort();
    files.sort();
    json!({"left": {"processes": processes, "mounts": mounts, "cgroups": cgroups, "files": files}, "sizes": sizes})
}

fn list(folder: &Path, depth: usize, found: &mut dyn FnMut(&Path, bool)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        found(&entry.path(), is_folder);
        if let Some(deeper) = depth.checked_sub(1)
            && is_folder
        {
            list(&entry.path(), deeper, found);
        }
    }
}
