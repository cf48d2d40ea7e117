//! Asks /dev/kvm to execute a tiny guest, in a child that can be killed when KVM hangs.
//!
//! A `/dev/kvm` that opens is no proof: software hypervisors exist that create VMs, run the first instructions and
//! then give up or crawl. The guest here runs, in long mode with paging, what every kernel needs early and what
//! such hypervisors lack: `lock cmpxchg16b`, `xsave` and `xrstor`, and a loop whose speed is measured.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

/// What the guest achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ran to its end; the loop of [`LOOP_INSTRUCTIONS`] took this long.
    Finished { loop_time: Duration },
    /// A call to KVM failed with this errno before or between guest instructions.
    Refused { call: Call, errno: i32 },
    /// KVM left the guest in a way that it cannot go on from, after stage `after`.
    Stopped { after: Stage, exit: Exit },
    /// Nothing happened until the limit; the child was killed.
    Hung { after: Stage },
}

/// How far the guest came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Created,
    LongMode,
    CompareExchange,
    Xsave,
    Loop,
}

/// A call that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Open,
    ApiVersion,
    CreateVm,
    Memory,
    CreateVcpu,
    Cpuid,
    Registers,
    Run,
}

/// An exit without a way on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    InternalError,
    FailEntry,
    Shutdown,
    Other,
}

/// Instructions that the timed loop executes: 1,000,000 rounds of `dec` and `jnz`.
pub const LOOP_INSTRUCTIONS: u64 = 2_000_000;

/// Runs the probe; returns within `limit` and a little.
///
/// # Errors
/// Only when the child cannot be made or waited for.
pub fn probe(limit: Duration) -> io::Result<Outcome> {
    let (reader, writer) = pipe()?;
    // SAFETY: the child of a threaded process may call only async-signal-safe functions by POSIX. It calls ioctls,
    // mmap, write and _exit, and allocates a little inside kvm-ioctls: glibc makes malloc usable in the child of
    // fork by taking its locks around the fork. It unwinds nowhere and returns nowhere: it ends by _exit.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => child(&writer),
        _ => {
            drop(writer);
            let outcome = listen(reader, limit);
            // SAFETY: the pid is our own child, not yet waited for, so it cannot have been reused.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            reap(pid);
            outcome
        }
    }
}

/// Waits for a killed child; one that a broken KVM holds in the kernel is left to init rather than waited for.
fn reap(pid: libc::pid_t) {
    let until = Instant::now() + Duration::from_millis(300);
    loop {
        // SAFETY: waitpid on our own child, with no status wanted.
        let done = unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
        if done != 0 || Instant::now() > until {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// One report of the child: kind, detail, then 8 bytes of number, little-endian.
const REPORT_BYTES: usize = 10;
const KIND_STAGE: u8 = 1;
const KIND_FINISHED: u8 = 2;
const KIND_REFUSED: u8 = 3;
const KIND_STOPPED: u8 = 4;

fn listen(reader: OwnedFd, limit: Duration) -> io::Result<Outcome> {
    let until = Instant::now() + limit;
    let mut reader = File::from(reader);
    let mut stage = Stage::Created;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || !readable(reader.as_fd().as_raw_fd(), left)? {
            return Ok(Outcome::Hung { after: stage });
        }
        let mut report = [0_u8; REPORT_BYTES];
        if reader.read_exact(&mut report).is_err() {
            // The child died without a word: killed by the kernel, or by a signal inside KVM_RUN.
            return Ok(Outcome::Stopped { after: stage, exit: Exit::Other });
        }
        let [kind, detail, number @ ..] = report;
        let number = u64::from_le_bytes(number);
        match kind {
            KIND_STAGE => stage = stage_of(detail),
            KIND_FINISHED => return Ok(Outcome::Finished { loop_time: Duration::from_nanos(number) }),
            KIND_REFUSED => return Ok(Outcome::Refused { call: call_of(detail), errno: number as i32 }),
            _ => return Ok(Outcome::Stopped { after: stage, exit: exit_of(detail) }),
        }
    }
}

fn readable(fd: RawFd, limit: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one live pollfd is passed with the count one.
    match unsafe { libc::poll(&mut poll, 1, limit.as_millis() as libc::c_int + 1) } {
        -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => Ok(true),
        -1 => Err(io::Error::last_os_error()),
        n => Ok(n > 0),
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0 as RawFd; 2];
    // SAFETY: pipe2 writes two descriptors into a live array of two.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were just opened and nothing else owns them.
    unsafe { Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))) }
}

// ---- the child ----

struct Refusal(Call, i32);

fn child(writer: &OwnedFd) -> ! {
    let out = writer.as_raw_fd();
    if let Err(Refusal(call, errno)) = run(out) {
        report(out, KIND_REFUSED, call as u8, errno as u64);
    }
    // SAFETY: ends the process without running destructors or atexit handlers of the parent's copy.
    unsafe { libc::_exit(0) }
}

fn report(out: RawFd, kind: u8, detail: u8, number: u64) {
    let mut bytes = [0_u8; REPORT_BYTES];
    bytes[0] = kind;
    bytes[1] = detail;
    bytes[2..].copy_from_slice(&number.to_le_bytes());
    // SAFETY: the buffer is live and as long as said. A short write cannot happen: it is below PIPE_BUF.
    unsafe { libc::write(out, bytes.as_ptr().cast(), REPORT_BYTES) };
}

fn run(out: RawFd) -> Result<(), Refusal> {
    let refused = |call| move |e: kvm_ioctls::Error| Refusal(call, e.errno());
    let kvm = Kvm::new().map_err(refused(Call::Open))?;
    if kvm.get_api_version() != 12 {
        return Err(Refusal(Call::ApiVersion, libc::EPROTO));
    }
    let vm = kvm.create_vm().map_err(refused(Call::CreateVm))?;
    // Old Intel processors want this; others do not mind, and AMD has no use for it.
    let _ = vm.set_tss_address(0xfffb_d000);
    add_memory(&vm)?;
    let mut vcpu = vm.create_vcpu(0).map_err(refused(Call::CreateVcpu))?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused(Call::Cpuid))?;
    vcpu.set_cpuid2(&cpuid).map_err(refused(Call::Cpuid))?;
    set_registers(&vcpu).map_err(refused(Call::Registers))?;
    execute(&mut vcpu, out)
}

const MEMORY_BYTES: usize = 0x1_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const CODE: u64 = 0x8000;
const DATA: u64 = 0x9000;
const XSAVE_AREA: u64 = 0xa000;
const STACK_TOP: u64 = 0xf000;
/// The port on which the guest says which stage it reached.
const STAGE_PORT: u16 = 0xf5;

/// The guest. Entered in 64-bit mode with rdi = [`DATA`], rsi = [`XSAVE_AREA`], rax, rdx = 0, rbx, rcx = 1.
#[rustfmt::skip]
const GUEST: &[u8] = &[
    0xb0, 0x01,                         // mov  al, 1          stage 1: long mode works
    0xe6, 0xf5,                         // out  0xf5, al
    0x31, 0xc0,                         // xor  eax, eax       expect 0:0 in memory
    0x31, 0xd2,                         // xor  edx, edx
    0xf0, 0x48, 0x0f, 0xc7, 0x0f,       // lock cmpxchg16b [rdi]
    0x75, 0x25,                         // jne  +37 (ud2)      memory was zero, so ZF must be set
    0xb0, 0x02,                         // mov  al, 2
    0xe6, 0xf5,                         // out  0xf5, al
    0xb8, 0x03, 0x00, 0x00, 0x00,       // mov  eax, 3         x87 and SSE state
    0x0f, 0xae, 0x26,                   // xsave  [rsi]
    0x0f, 0xae, 0x2e,                   // xrstor [rsi]
    0xb0, 0x03,                         // mov  al, 3
    0xe6, 0xf5,                         // out  0xf5, al
    0xb9, 0x40, 0x42, 0x0f, 0x00,       // mov  ecx, 1000000
    0xff, 0xc9,                         // dec  ecx
    0x75, 0xfc,                         // jnz  -4
    0xb0, 0x04,                         // mov  al, 4
    0xe6, 0xf5,                         // out  0xf5, al
    0xf4,                               // hlt
    0x90, 0x90, 0x90, 0x90,             // padding up to the jump's target
    0x0f, 0x0b,                         // ud2                 without an IDT: triple fault, a shutdown exit
];

fn add_memory(vm: &VmFd) -> Result<(), Refusal> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh anonymous mapping, never unmapped: the process ends with it.
    let base = unsafe {
        libc::mmap(std::ptr::null_mut(), MEMORY_BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    if base == libc::MAP_FAILED {
        return Err(Refusal(Call::Memory, libc::ENOMEM));
    }
    let base = base.cast::<u8>();
    // Identity map of the first 2 MiB: present and writable, the last entry a large page (bit 7).
    // SAFETY: all addresses are below MEMORY_BYTES, page-aligned, in a mapping that only we use yet.
    unsafe {
        base.add(PML4 as usize).cast::<u64>().write(PDPT | 3);
        base.add(PDPT as usize).cast::<u64>().write(PD | 3);
        base.add(PD as usize).cast::<u64>().write(0x83);
        std::ptr::copy_nonoverlapping(GUEST.as_ptr(), base.add(CODE as usize), GUEST.len());
    }
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES as u64,
        userspace_addr: base as u64,
    };
    // SAFETY: the region is mapped for the rest of the process, and no Rust reference into it exists.
    unsafe { vm.set_user_memory_region(region) }.map_err(|e| Refusal(Call::Memory, e.errno()))
}

fn set_registers(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut sregs: kvm_sregs = vcpu.get_sregs()?;
    let code = kvm_segment {
        limit: 0xffff_ffff,
        selector: 8,
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: 16, type_: 3, l: 0, db: 1, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr3 = PML4;
    sregs.cr4 = 0x4_0220; // PAE, OSFXSR, OSXSAVE
    sregs.cr0 = 0x8000_0033; // PG, NE, ET, MP, PE
    sregs.efer = 0x500; // LME, LMA
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: CODE,
        rsp: STACK_TOP,
        rflags: 2,
        rdi: DATA,
        rsi: XSAVE_AREA,
        rbx: 1,
        rcx: 1,
        ..Default::default()
    })
}

fn execute(vcpu: &mut VcpuFd, out: RawFd) -> Result<(), Refusal> {
    let mut loop_started = Instant::now();
    let mut loop_time = Duration::ZERO;
    // Four stages and a halt; anything longer is not our guest.
    for _ in 0..16 {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(STAGE_PORT, &[stage])) => {
                report(out, KIND_STAGE, stage, 0);
                match stage_of(stage) {
                    Stage::Xsave => loop_started = Instant::now(),
                    Stage::Loop => loop_time = loop_started.elapsed(),
                    _ => {}
                }
            }
            Ok(VcpuExit::Hlt) if !loop_time.is_zero() => {
                report(out, KIND_FINISHED, 0, loop_time.as_nanos() as u64);
                return Ok(());
            }
            Ok(other) => {
                let exit = match other {
                    VcpuExit::InternalError => Exit::InternalError,
                    VcpuExit::FailEntry(..) => Exit::FailEntry,
                    VcpuExit::Shutdown => Exit::Shutdown,
                    _ => Exit::Other,
                };
                report(out, KIND_STOPPED, exit as u8, 0);
                return Ok(());
            }
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(Refusal(Call::Run, e.errno())),
        }
    }
    report(out, KIND_STOPPED, Exit::Other as u8, 0);
    Ok(())
}

fn stage_of(byte: u8) -> Stage {
    match byte {
        0 => Stage::Created,
        1 => Stage::LongMode,
        2 => Stage::CompareExchange,
        3 => Stage::Xsave,
        _ => Stage::Loop,
    }
}

fn call_of(byte: u8) -> Call {
    const CALLS: [Call; 8] = [
        Call::Open,
        Call::ApiVersion,
        Call::CreateVm,
        Call::Memory,
        Call::CreateVcpu,
        Call::Cpuid,
        Call::Registers,
        Call::Run,
    ];
    CALLS.get(usize::from(byte)).copied().unwrap_or(Call::Run)
}

fn exit_of(byte: u8) -> Exit {
    const EXITS: [Exit; 4] = [Exit::InternalError, Exit::FailEntry, Exit::Shutdown, Exit::Other];
    EXITS.get(usize::from(byte)).copied().unwrap_or(Exit::Other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failure_jump_of_the_guest_lands_on_ud2() {
        let jump = GUEST.windows(2).position(|w| w == [0x75, 0x25]).unwrap();
        let target = jump + 2 + 0x25;
        assert_eq!(GUEST.get(target..), Some(&[0x0f, 0x0b][..]), "{target} of {}", GUEST.len());
    }

    #[test]
    fn a_probe_answers_in_time_whatever_kvm_is_here() {
        let start = Instant::now();
        let outcome = probe(Duration::from_millis(1500)).unwrap();
        assert!(start.elapsed() < Duration::from_millis(2500), "{outcome:?} after {:?}", start.elapsed());
        if !std::path::Path::new("/dev/kvm").exists() {
            assert_eq!(outcome, Outcome::Refused { call: Call::Open, errno: libc::ENOENT });
        }
        println!("{outcome:?} after {:?}", start.elapsed());
    }
}
