//! Lets one system call of PID 1 fail: ptrace(2), since nothing outside the guest could. The call is not made, and PID 1 sees the
//! error in its place.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

const INIT: Pid = Pid::from_raw(1);
/// What is in the place of the result while a call has none yet (x86-64).
const NO_RESULT: i64 = -(Errno::ENOSYS as i64);
/// The number of no system call: the kernel makes none.
const NO_CALL: u64 = u64::MAX;
/// How often PID 1 is looked at in vain before the looker sleeps.
const SPINS: u32 = 1000;
const NAP: Duration = Duration::from_micros(200);

/// Which call fails: its number, with which error, and which of its kind.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub call: u64,
    pub error: i32,
    pub when: u64,
}

/// What was called how often, and whether the fault has come to pass.
#[derive(Debug, Default)]
pub struct Seen {
    pub calls: BTreeMap<u64, u64>,
    pub injected: bool,
}

pub struct Tracer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Seen>>,
}

impl Tracer {
    /// From its return on every call of PID 1 is seen.
    pub fn begin(fault: Option<Fault>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, attached) = channel();
        let seen_by_thread = Arc::clone(&stop);
        // A tracer is a thread: the same one for all of it.
        let thread = thread::spawn(move || trace(fault, &seen_by_thread, &sender));
        match attached.recv() {
            Ok(()) => Ok(Self { stop, thread }),
            Err(_) => Err(thread.join().map_or_else(|_| lost(), |result| result.err().unwrap_or_else(lost))),
        }
    }

    pub fn end(self) -> io::Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| Err(lost()))
    }
}

fn lost() -> io::Error {
    io::Error::other("the tracer is gone")
}

fn trace(fault: Option<Fault>, stop: &AtomicBool, attached: &Sender<()>) -> io::Result<Seen> {
    ptrace::seize(INIT, ptrace::Options::PTRACE_O_TRACESYSGOOD)?;
    ptrace::interrupt(INIT)?;
    let (mut seen, mut pending, mut interrupted, mut idle) = (Seen::default(), false, false, 0);
    loop {
        let status = waitpid(INIT, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG))?;
        let stopping = stop.load(Ordering::Relaxed);
        if status != WaitStatus::StillAlive {
            idle = 0;
        }
        let mut signal = None;
        match status {
            WaitStatus::StillAlive => {
                if stopping && !interrupted {
                    ptrace::interrupt(INIT)?;
                    interrupted = true;
                }
                idle += 1;
                if idle < SPINS {
                    thread::yield_now()
                } else {
                    thread::sleep(NAP)
                }
                continue;
            }
            WaitStatus::PtraceSyscall(_) => {
                let mut registers = ptrace::getregs(INIT)?;
                if pending {
                    let error = fault.map_or(0, |fault| fault.error);
                    registers.rax = i64::from(-error).cast_unsigned();
                    ptrace::setregs(INIT, registers)?;
                    (pending, seen.injected) = (false, true);
                } else if registers.rax.cast_signed() == NO_RESULT {
                    let count = seen.calls.entry(registers.orig_rax).or_default();
                    *count += 1;
                    if fault.is_some_and(|fault| fault.call == registers.orig_rax && fault.when == *count) {
                        registers.orig_rax = NO_CALL;
                        ptrace::setregs(INIT, registers)?;
                        pending = true;
                    }
                }
            }
            WaitStatus::PtraceEvent(..) => {
                // The tests' end may not wait for it.
                let _ = attached.send(());
            }
            WaitStatus::Stopped(_, with) => signal = Some(with),
            ended => return Err(io::Error::other(format!("PID 1: {ended:?}"))),
        }
        if stopping && !pending {
            ptrace::detach(INIT, signal)?;
            return Ok(seen);
        }
        ptrace::syscall(INIT, signal)?;
    }
}
