//! What executes a VM: our own VMM where KVM really works, otherwise QEMU with its translator.

use std::fmt;
use std::io;
use std::time::Duration;

use nacre_sys::kvm_probe::{self, Call, Exit, LOOP_INSTRUCTIONS, Outcome, Stage};

/// How long the probe may take.
const PROBE_LIMIT: Duration = Duration::from_millis(1500);
/// Million instructions per second below which QEMU's translator is the faster choice.
const SLOW_MIPS: u64 = 20;

/// Which VMM the caller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Vmm {
    /// Our own where KVM works, otherwise QEMU.
    #[default]
    Auto,
    /// Our own ([`crate::kvm`]).
    Kvm,
    Qemu,
}

/// What QEMU is to execute the guest with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Accel {
    /// KVM if the probe says that it works, otherwise TCG.
    #[default]
    Auto,
    Kvm,
    Tcg,
}

/// What the VM runs on, and one line to tell the user when that is not KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccelChoice {
    /// Our own VMM, not QEMU.
    pub builtin: bool,
    pub kvm: bool,
    pub notice: Option<String>,
}

/// What /dev/kvm can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvmVerdict {
    /// It executes what a kernel needs, at this speed.
    Usable { mips: u64 },
    /// It cannot be opened.
    Missing { reason: String, fix: String },
    /// It opens and does not work.
    Broken { reason: String },
    /// It works, more slowly than QEMU's translator would.
    Slow { mips: u64 },
}

/// Asks /dev/kvm to run a tiny guest; takes 1.5 s at most, usually a few milliseconds.
#[must_use]
pub fn probe_kvm() -> KvmVerdict {
    match kvm_probe::probe(PROBE_LIMIT) {
        Ok(outcome) => judge(outcome),
        Err(error) => KvmVerdict::Broken { reason: format!("the probe cannot run: {error}") },
    }
}

/// Decides; probes only when it must. `qemu_only` says that the VM wants what QEMU alone has.
#[must_use]
pub fn choose_accel(vmm: Vmm, wanted: Accel, qemu_only: bool) -> AccelChoice {
    let qemu = |kvm| AccelChoice { builtin: false, kvm, notice: None };
    let own = AccelChoice { builtin: true, kvm: true, notice: None };
    match (vmm, wanted) {
        (Vmm::Kvm, _) => own,
        (_, Accel::Kvm) => qemu(true),
        (_, Accel::Tcg) => qemu(false),
        (_, Accel::Auto) => match probe_kvm() {
            KvmVerdict::Usable { .. } if vmm == Vmm::Auto && !qemu_only => own,
            KvmVerdict::Usable { .. } => qemu(true),
            other => AccelChoice {
                builtin: false,
                kvm: false,
                notice: Some(format!("no KVM ({other}); the VM runs in QEMU's translator, which is slower")),
            },
        },
    }
}

impl fmt::Display for KvmVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KvmVerdict::Usable { mips } => write!(f, "usable, {mips} million instructions/s measured"),
            KvmVerdict::Missing { reason, .. } => f.write_str(reason),
            KvmVerdict::Broken { reason } => write!(f, "/dev/kvm is broken: {reason}"),
            KvmVerdict::Slow { mips } => {
                write!(f, "/dev/kvm is slow: {mips} million instructions/s, below {SLOW_MIPS}")
            }
        }
    }
}

fn judge(outcome: Outcome) -> KvmVerdict {
    match outcome {
        Outcome::Finished { loop_time } => {
            let mips = LOOP_INSTRUCTIONS / (loop_time.as_micros() as u64).max(1);
            if mips < SLOW_MIPS { KvmVerdict::Slow { mips } } else { KvmVerdict::Usable { mips } }
        }
        Outcome::Refused { call: Call::Open, errno } => missing(errno),
        Outcome::Refused { call, errno } => KvmVerdict::Broken {
            reason: format!("{} fails: {}", call_name(call), io::Error::from_raw_os_error(errno)),
        },
        Outcome::Stopped { after, exit } => {
            KvmVerdict::Broken { reason: format!("{} at {}", exit_name(exit), failed_step(after)) }
        }
        Outcome::Hung { after: Stage::Xsave } => KvmVerdict::Slow {
            // The loop was begun and did not end: slower than this.
            mips: LOOP_INSTRUCTIONS / PROBE_LIMIT.as_micros() as u64,
        },
        Outcome::Hung { after } => KvmVerdict::Broken {
            reason: format!("no answer within {} ms at {}", PROBE_LIMIT.as_millis(), failed_step(after)),
        },
    }
}

fn missing(errno: i32) -> KvmVerdict {
    let reason = format!("/dev/kvm: {}", io::Error::from_raw_os_error(errno));
    let fix = match errno {
        libc::EACCES | libc::EPERM => "sudo usermod -aG kvm $USER, then log in again",
        libc::ENOENT => {
            "sudo modprobe kvm-intel or kvm-amd; enable virtualization in the firmware or the outer VM"
        }
        _ => "enable virtualization (VT-x, SVM) in the firmware, or nested virtualization in the outer VM",
    };
    KvmVerdict::Missing { reason, fix: fix.to_owned() }
}

fn call_name(call: Call) -> &'static str {
    match call {
        Call::Open => "open",
        Call::ApiVersion => "KVM_GET_API_VERSION",
        Call::CreateVm => "KVM_CREATE_VM",
        Call::Memory => "KVM_SET_USER_MEMORY_REGION",
        Call::CreateVcpu => "KVM_CREATE_VCPU",
        Call::Cpuid => "KVM_SET_CPUID2",
        Call::Registers => "KVM_SET_SREGS",
        Call::Run => "KVM_RUN",
    }
}

fn exit_name(exit: Exit) -> &'static str {
    match exit {
        Exit::InternalError => "internal error (an instruction that it cannot execute)",
        Exit::FailEntry => "the processor refuses to enter the guest",
        Exit::Shutdown => "the guest crashed (triple fault)",
        Exit::Other => "an exit that makes no sense",
    }
}

/// What was being tried when this was the last stage reached.
fn failed_step(after: Stage) -> &'static str {
    match after {
        Stage::Created => "the first instruction",
        Stage::LongMode => "lock cmpxchg16b",
        Stage::CompareExchange => "xsave or xrstor",
        Stage::Xsave => "a counting loop",
        Stage::Loop => "hlt",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_become_verdicts() {
        let finished = |ms| Outcome::Finished { loop_time: Duration::from_millis(ms) };
        assert_eq!(judge(finished(1)), KvmVerdict::Usable { mips: 2000 });
        assert_eq!(judge(finished(1000)), KvmVerdict::Slow { mips: 2 });
        let denied = judge(Outcome::Refused { call: Call::Open, errno: libc::EACCES });
        assert!(matches!(&denied, KvmVerdict::Missing { fix, .. } if fix.contains("usermod")), "{denied:?}");
        let stopped = judge(Outcome::Stopped { after: Stage::LongMode, exit: Exit::InternalError });
        assert!(stopped.to_string().contains("lock cmpxchg16b"), "{stopped}");
        assert!(matches!(judge(Outcome::Hung { after: Stage::Xsave }), KvmVerdict::Slow { .. }));
        assert!(matches!(judge(Outcome::Hung { after: Stage::Created }), KvmVerdict::Broken { .. }));
    }

    #[test]
    fn a_forced_choice_does_not_probe() {
        for (vmm, accel, builtin, kvm) in [
            (Vmm::Auto, Accel::Tcg, false, false),
            (Vmm::Auto, Accel::Kvm, false, true),
            (Vmm::Qemu, Accel::Kvm, false, true),
            (Vmm::Kvm, Accel::Auto, true, true),
        ] {
            assert_eq!(choose_accel(vmm, accel, false), AccelChoice { builtin, kvm, notice: None });
        }
    }
}
