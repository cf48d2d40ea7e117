//! The puller's two helper containers: their plans, which are init's own and depend on nothing from outside, and how they
//! are connected.
//!
//! | | network | store | reads archives |
//! |---|---|---|---|
//! | fetcher | the sandbox's | read and write | no |
//! | indexer | its own, empty | only files that the fetcher hands it | yes |

use nacre_protocols::init_launcher::{
    AccessTime, Capabilities, ContainerPlan, Mount, MountAttributes, MountKind, Plan, Process, Propagation,
    Rlimit, Rootfs, User,
};
use nacre_protocols::names;

/// `asm-generic/resource.h`.
const RLIMIT_CORE: u8 = 4;
const RLIMIT_NOFILE: u8 = 7;
/// Descriptors of a fetcher or an indexer: sockets, pipes and files of eight pulls with four layers each.
const FILES_MAX: u64 = 512;

/// Init's record of a running puller.
pub struct Puller {
    pub fetcher: u32,
    pub indexer: u32,
}

pub fn fetcher_plan() -> Plan {
    let store = Mount {
        destination: names::STORE_MOUNT.to_owned(),
        kind: MountKind::Bind { source: names::STORE_DIR.to_owned(), recursive: false },
        attributes: MountAttributes { no_suid: true, no_dev: true, no_exec: true, ..NO_ATTRIBUTES },
        propagation: None,
    };
    let resolver = Mount {
        destination: "/etc/resolv.conf".to_owned(),
        kind: MountKind::Bind { source: format!("{}/resolv.conf", names::SANDBOX_DIR), recursive: false },
        attributes: MountAttributes {
            read_only: true,
            no_suid: true,
            no_dev: true,
            no_exec: true,
            ..NO_ATTRIBUTES
        },
        propagation: None,
    };
    let args = ["/nacre-puller"].map(str::to_owned).to_vec();
    // The agent's socket and the indexer's.
    helper("fetcher", vec![store, resolver], args, names::FETCHER_UID, false, 2)
}

pub fn indexer_plan() -> Plan {
    let args = ["/nacre-puller", "index"].map(str::to_owned).to_vec();
    helper("indexer", Vec::new(), args, names::INDEXER_UID, true, 1)
}

const NO_ATTRIBUTES: MountAttributes = MountAttributes {
    read_only: false,
    no_suid: false,
    no_dev: false,
    no_exec: false,
    no_symlinks: false,
    access_time: AccessTime::Relative,
    no_dir_access_time: false,
};

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
    };
    Plan::Create(Box::new(ContainerPlan {
        id: id.to_owned(),
        hostname: Some(id.to_owned()),
        own_ipc: true,
        own_network,
        rootfs: Rootfs::Puller,
        rootfs_readonly: true,
        rootfs_propagation: Propagation::RecursivePrivate,
        mounts,
        devices: Vec::new(),
        device_rules: Vec::new(),
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        cgroup: Vec::new(),
        sysctls: Vec::new(),
        process,
        inherited,
    }))
}
