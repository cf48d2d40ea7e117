//! What benches compare launchers with, as small as it can be.
//!
//! `bare-container run ROOTFS CGROUP FILTER COMMAND [devices]`: the system calls that a container with docker's defaults takes, and
//! nothing else: no configuration, no state, no checks, every path trusted. FILTER is a seccomp program as the kernel takes it.
//! With `devices`, those that it has are the only ones that can be used.
//! It is no launcher: whatever it is pointed at, it believes. That makes it the victim that the attacks of
//! `launcher/cli/tests` are shown to work on, too.
//!
//! `bare-container meter TIMES STEP…`: runs commands and prints what each round used; see [`meter`].
//!
//! `bare-container peer COMMAND…`: becomes the command, as far as it can run on this machine; see [`peers`].

#![forbid(unsafe_code)]

mod container;
mod meter;
mod peers;

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        // Executed by itself, as `/proc/self/exe` in a container: whoever plays an attack needs it to stay.
        [] => std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map(|_| 0),
        ["run", rootfs, cgroup, filter, command] => container::run(rootfs, cgroup, filter, command, false),
        ["run", rootfs, cgroup, filter, command, "devices"] => {
            container::run(rootfs, cgroup, filter, command, true)
        }
        ["meter", times, steps @ ..] => {
            peers::pretend_to_raise_locked_memory().and_then(|()| meter::meter(times, steps))
        }
        ["peer", program, arguments @ ..] => peers::pretend_to_raise_locked_memory()
            .and_then(|()| Err(std::process::Command::new(program).args(arguments).exec())),
        _ => Err(std::io::Error::other(
            "usage: bare-container run ROOTFS CGROUP FILTER COMMAND [devices] | meter TIMES STEP… [';' STEP…]",
        )),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("bare-container: {error}");
            ExitCode::from(125)
        }
    }
}
