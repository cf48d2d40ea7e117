//! The puller's two helper containers: their plans, which are init's own and depend on nothing from outside, and how they
//! are connected.
//!
//! | | network | store | reads archives |
//! |---|---|---|---|
//! | fetcher | the sandbox's | read and write | no |
//! | indexer | its own, empty | only files that the fetcher hands it | yes |

use crate::agent::failure;
use crate::console::say;
use crate::launch::{Grant, Purpose, launch};
use crate::serve::Init;
use nacre_protocols::agent_init::{Event, FailureKind, PullerEnd, PullerProcess, ReplyBody};
use nacre_protocols::init_launcher::{
    Capabilities, CgroupLimits, ContainerPlan, Hooks, Mode, Mount, MountAttributes, MountChanges, MountKind,
    Namespace, Namespaces, Plan, Process, ProcessAttributes, Propagation, Rlimit, Rootfs, User,
};
use nacre_protocols::names;
use nacre_sys::process::PidNamespace;
use nacre_sys::seqpacket;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// `asm-generic/resource.h`.
const RLIMIT_CORE: u8 = 4;
const RLIMIT_NOFILE: u8 = 7;
/// Descriptors of a fetcher or an indexer: sockets, pipes and files of eight pulls with four layers each.
const FILES_MAX: u64 = 512;

/// Init's record of a puller: its two processes live and end together.
pub struct Puller {
    fetcher: Option<u32>,
    indexer: Option<u32>,
    /// What the cgroups counted when it was started: fetcher, indexer.
    out_of_memory_kills: [u64; 2],
    /// Of the first that ended.
    end: Option<PullerEnd>,
    /// Who waits for the next one.
    waiting: Option<u32>,
}

impl Puller {
    /// Those that run, by name.
    pub fn processes(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let named = [("fetcher", self.fetcher), ("indexer", self.indexer)];
        named.into_iter().filter_map(|(name, pid)| Some((name, pid?)))
    }

    fn kill(&self) {
        for (_, pid) in self.processes() {
            // Not reaped yet, so the number is still its own.
            let _ = rustix::process::Pid::from_raw(pid.cast_signed())
                .map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
        }
    }
}

impl Init {
    /// Starts both helper containers of the puller and hands the agent its end. One that an earlier agent had goes first:
    /// two fetchers must never have the store at the same time.
    pub(crate) fn connect_puller(&mut self, tag: u32) {
        match self.puller.as_mut() {
            Some(old) => {
                old.kill();
                // Of an agent that has died, if there was one.
                old.waiting = Some(tag);
            }
            None => self.answer_with_puller(tag),
        }
    }

    /// True if it was one of the puller's.
    pub(crate) fn puller_ended(&mut self, pid: u32, code: u8) -> bool {
        let kills = self.cgroups.puller_out_of_memory_kills();
        let Some(puller) = self.puller.as_mut() else { return false };
        let process = if puller.fetcher == Some(pid) {
            puller.fetcher = None;
            PullerProcess::Fetcher
        } else if puller.indexer == Some(pid) {
            puller.indexer = None;
            PullerProcess::Indexer
        } else {
            return false;
        };
        let [fetcher, indexer] = puller.out_of_memory_kills;
        let out_of_memory = match (process, kills) {
            (PullerProcess::Fetcher, [now, _]) => now > fetcher,
            (PullerProcess::Indexer, [_, now]) => now > indexer,
        };
        let end = PullerEnd { process, code, out_of_memory };
        // Of two that die at once the one is to blame that was killed for its memory.
        if puller.end.is_none_or(|first| out_of_memory && !first.out_of_memory) {
            puller.end = Some(end);
        }
        if puller.processes().next().is_some() {
            // The other sees the end of its peer, too; but it must be gone before the next pull.
            puller.kill();
            return true;
        }
        let Some(Puller { end: Some(end), waiting, .. }) = self.puller.take() else { return true };
        if end.code != 0 {
            say(&format!("the puller ended: {end:?}"));
        }
        self.tell(Event::PullerExited(end));
        if let Some(tag) = waiting {
            self.answer_with_puller(tag);
        }
        true
    }

    fn answer_with_puller(&mut self, tag: u32) {
        let result = self.start_puller();
        let Some(agent) = self.agent.as_mut() else { return };
        match result {
            Ok(socket) => agent.reply(tag, Ok(ReplyBody::Puller), &[socket.as_fd()]),
            Err(error) => {
                let why = failure(FailureKind::System, format!("starting the puller: {error}"));
                agent.reply(tag, Err(why), &[]);
            }
        }
    }

    fn start_puller(&mut self) -> io::Result<OwnedFd> {
        let (agent_end, fetcher_end) = seqpacket::pair()?;
        let (fetcher_inner, indexer_end) = seqpacket::pair()?;
        let out_of_memory_kills = self.cgroups.puller_out_of_memory_kills();
        let cgroup = self.cgroups.indexer.try_clone()?;
        let indexer = self.start_helper("indexer", &indexer_plan(), &cgroup, &[indexer_end.as_fd()])?;
        let new =
            Puller { fetcher: None, indexer: Some(indexer), out_of_memory_kills, end: None, waiting: None };
        self.puller = Some(new);
        let cgroup = self.cgroups.fetcher.try_clone();
        let plan = fetcher_plan(&self.store);
        let inherited = [fetcher_end.as_fd(), fetcher_inner.as_fd()];
        let started = cgroup.and_then(|cgroup| self.start_helper("fetcher", &plan, &cgroup, &inherited));
        match (started, self.puller.as_mut()) {
            (Ok(fetcher), Some(puller)) => puller.fetcher = Some(fetcher),
            // Its peer is gone, so the indexer goes, too.
            (Err(error), _) => return Err(error),
            (Ok(_), None) => {}
        }
        Ok(agent_end)
    }

    fn start_helper(
        &mut self,
        name: &'static str,
        plan: &Plan,
        cgroup: &OwnedFd,
        inherited: &[BorrowedFd<'_>],
    ) -> io::Result<u32> {
        let plan = self.seal_plan(plan)?;
        let (gate_read, gate_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // The gate is open from the start.
        rustix::io::write(&gate_write, &[1])?;
        let grant = Grant {
            gate: Some(gate_read.as_fd()),
            cgroup: Some(cgroup.as_fd()),
            inherited,
            pid_namespace: PidNamespace::New,
            ..self.own_grant(Mode::Helper, plan.as_fd())
        };
        let status = self.expect_launcher()?;
        let child = launch(&grant, status.theirs.as_fd())?;
        self.follow(child.pid, status, Purpose::Helper { name });
        Ok(child.pid)
    }
}

/// What the fetcher is told of its store.
#[derive(Debug, Default)]
pub struct StoreOptions {
    /// The name of this boot, if the disk outlives it.
    pub boot: Option<String>,
    /// Most bytes of all layers.
    pub quota: Option<u64>,
    /// Manifests that may be pulled, if not all may.
    pub images: Option<Vec<names::Sha256>>,
}

pub fn fetcher_plan(options: &StoreOptions) -> Plan {
    let store = Mount {
        destination: names::STORE_MOUNT.to_owned(),
        kind: MountKind::Bind { source: names::STORE_DIR.to_owned(), recursive: false },
        attributes: MountAttributes { no_suid: true, no_dev: true, no_exec: true, ..Default::default() },
        changes: MountChanges::default(),
        id_mapping: None,
        propagation: None,
    };
    let resolver = Mount {
        destination: names::RESOLVER_MOUNT.to_owned(),
        kind: MountKind::Bind { source: names::RESOLVER_DIR.to_owned(), recursive: false },
        attributes: MountAttributes {
            read_only: true,
            no_suid: true,
            no_dev: true,
            no_exec: true,
            ..Default::default()
        },
        changes: MountChanges::default(),
        id_mapping: None,
        propagation: None,
    };
    let boot = options.boot.as_ref().map(|name| format!("boot={name}"));
    let quota = options.quota.map(|bytes| format!("quota={bytes}"));
    let digests = |images: &Vec<names::Sha256>| images.iter().map(|it| it.to_string()).collect::<Vec<_>>();
    let images = options.images.as_ref().map(|images| format!("images={}", digests(images).join(",")));
    let args = [Some("/nacre-puller".to_owned()), boot, quota, images].into_iter().flatten().collect();
    // The agent's socket and the indexer's.
    helper("fetcher", vec![store, resolver], args, names::FETCHER_UID, false, 2)
}

pub fn indexer_plan() -> Plan {
    let args = ["/nacre-puller", "index"].map(str::to_owned).to_vec();
    helper("indexer", Vec::new(), args, names::INDEXER_UID, true, 1)
}

fn helper(
    id: &str,
    mounts: Vec<Mount>,
    args: Vec<String>,
    uid: u32,
    own_network: bool,
    inherited: u8,
) -> Plan {
    let process = Process {
        args,
        env: Vec::new(),
        cwd: "/".to_owned(),
        user: User::Ids { uid, gid: uid, additional: Vec::new() },
        terminal: None,
        capabilities: Capabilities::default(),
        rlimits: vec![
            Rlimit { resource: RLIMIT_CORE, soft: 0, hard: 0 },
            Rlimit { resource: RLIMIT_NOFILE, soft: FILES_MAX, hard: FILES_MAX },
        ],
        no_new_privileges: true,
        oom_score_adj: None,
        // Each process of the puller lays its own filter before it reads the first byte from outside.
        seccomp: None,
        umask: Some(0o077),
        attributes: ProcessAttributes::default(),
    };
    Plan::Create(Box::new(ContainerPlan {
        id: id.to_owned(),
        namespaces: Namespaces {
            pid: Namespace::Fresh,
            mount: Namespace::Fresh,
            cgroup: Namespace::Fresh,
            ipc: Namespace::Fresh,
            uts: Namespace::Fresh,
            network: if own_network { Namespace::Fresh } else { Namespace::Shared },
            ..Default::default()
        },
        hostname: Some(id.to_owned()),
        domainname: None,
        rootfs: Rootfs::Puller,
        rootfs_readonly: true,
        rootfs_propagation: Propagation::RecursivePrivate,
        mounts,
        devices: Vec::new(),
        device_rules: Vec::new(),
        disks: Vec::new(),
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        cgroup: CgroupLimits::default(),
        sysctls: Vec::new(),
        net_devices: Vec::new(),
        hooks: Hooks::default(),
        process,
        inherited,
    }))
}
