//! The command line. Words are docker's wherever docker has one.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use super::registry::RegistryOptions;
use super::values::{self, PublishArg, ScratchArg, VolumeArg};
use crate::sandbox::spec::Limits;

/// Runs each container in a virtual machine of its own. The image is pulled, verified and laid down inside.
#[derive(Debug, Parser)]
#[command(name = "nacre", version, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a new container
    Run(Box<Run>),
    /// Run a command in a container that runs
    Exec(Exec),
    /// List containers
    Ps(Ps),
    /// Show the output of a detached container
    Logs(Logs),
    /// Ask a container to end, and kill it if it does not
    Stop(Stop),
    /// Send a signal to a container
    Kill(Kill),
    /// Remove what is left of a container
    Rm(Rm),
    /// Change the limits of a container that runs, and the size of its virtual machine
    Update(Update),
    /// Put another program in the place of a sandbox's agent, while its containers run
    AgentUpgrade(AgentUpgrade),
    /// Pull an image into a store, or into the sandbox of a container, and keep it there
    Pull(Box<Pull>),
    /// Show what images sandboxes and stores hold, or let go of some
    Images(Box<Images>),
    /// Stores: disks that keep image layers from one sandbox to the next
    #[command(subcommand)]
    Store(StoreCommand),
    /// Say what this host can do, and how to fix what it cannot
    Doctor(Doctor),
    /// The process that owns a sandbox; started by `run`
    #[command(hide = true)]
    Monitor { directory: PathBuf },
    /// Run a virtual machine on KVM; its console is standard output. What `run` starts, and any other launcher may
    Vmm {
        /// The machine, as JSON
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Pause, resume or stop the virtual machine of our own VMM, or show what it does
    VmmControl(VmmControl),
}

#[derive(Debug, Args)]
pub struct VmmControl {
    /// A container, whose sandbox is meant; or the path of a control socket, with a slash in it
    #[arg(value_name = "NAME|SOCKET")]
    pub target: String,
    #[command(subcommand)]
    pub request: VmmRequest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum VmmRequest {
    /// Hold processors and devices
    Pause,
    /// Let them go on
    Resume,
    /// End the machine at once, without asking the guest
    Stop,
    /// Give it other memory or more processors, up to what its configuration says; the guest is not told of processors
    Resize {
        /// All its memory, such as 1g
        #[arg(long, value_name = "SIZE", value_parser = values::size)]
        memory: Option<u64>,
        #[arg(long, value_name = "NUMBER")]
        processors: Option<u8>,
    },
    /// State, process, uptime, memory, processors, devices and what they noticed, as JSON
    Status,
    /// Exits of each processor, requests and bytes of each device, as JSON
    Metrics,
}

#[derive(Debug, Args)]
pub struct Run {
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Run in the background, and print the name
    #[arg(short, long)]
    pub detach: bool,
    /// Remove the container when it has ended; this is what happens anyway, see --keep
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = ArgAction::Set)]
    pub rm: bool,
    /// Keep the record and the log of the container when it has ended, until `nacre rm`
    #[arg(long)]
    pub keep: bool,
    /// A name for the container (and for its sandbox)
    #[arg(long)]
    pub name: Option<String>,
    /// Run in the sandbox of this container, sharing its layers and network, instead of a new one
    #[arg(long = "in", value_name = "NAME", conflicts_with_all = ["volume", "publish", "accel", "scratch", "vm_memory", "vm_memory_max", "vm_cpus_max"])]
    pub within: Option<String>,

    /// Set a variable: NAME=VALUE, or NAME to take it from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Read variables from a file, one a line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIRECTORY", value_parser = values::directory)]
    pub workdir: Option<String>,
    /// User, or user:group, by name or number
    #[arg(short, long)]
    pub user: Option<String>,
    /// Host name
    #[arg(long)]
    pub hostname: Option<String>,
    /// Instead of the image's entrypoint; empty for none
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,

    /// Share a directory of the host: HOST:CONTAINER[:ro]
    #[arg(short, long, value_name = "HOST:CONTAINER[:ro]", value_parser = values::volume)]
    pub volume: Vec<VolumeArg>,
    /// Make the root file system read-only
    #[arg(long)]
    pub read_only: bool,
    /// Where layers and writes go: a size such as 20g for a disk, or tmpfs for the sandbox's memory
    #[arg(long, value_name = "SIZE|tmpfs", value_parser = values::scratch)]
    pub scratch: Option<ScratchArg>,
    /// Keep image layers in this store, which outlives the sandbox; see nacre store
    #[arg(long, value_name = "NAME", conflicts_with_all = ["scratch", "within"])]
    pub store: Option<String>,
    /// Most room that image layers may take, such as 10g
    #[arg(long, value_name = "SIZE", value_parser = values::bytes, conflicts_with = "within")]
    pub image_quota: Option<u64>,
    /// What the sandbox may ever be asked for, whoever asks: containers=N, capabilities=HEX, storage=WORD,…,
    /// images=sha256:HEX,…, allow=console,upgrade,swap
    #[arg(long, value_name = "WORD=VALUE", value_parser = values::bound, conflicts_with = "within")]
    pub bound: Vec<String>,

    /// Network of the container
    #[arg(long, value_enum, default_value_t = Network::User)]
    pub net: Network,
    /// Lead a port of the host into the container: [ADDRESS:]HOST:CONTAINER[/udp]
    #[arg(short, long, value_name = "[ADDRESS:]HOST:CONTAINER[/udp]", value_parser = values::publish)]
    pub publish: Vec<PublishArg>,

    #[command(flatten)]
    pub limits: LimitOptions,

    /// Give a capability, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<String>,
    /// Take a capability, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<String>,
    /// seccomp=unconfined, seccomp=FILE, or no-new-privileges
    #[arg(long, value_name = "OPTION", value_parser = values::security)]
    pub security_opt: Vec<values::Security>,

    #[command(flatten)]
    pub registry: RegistryOptions,
    #[command(flatten)]
    pub machine: MachineOptions,

    /// Print nothing of our own but errors
    #[arg(short, long)]
    pub quiet: bool,
    /// Write stages, times and sizes as JSON to this file
    #[arg(long, value_name = "FILE")]
    pub timings: Option<PathBuf>,

    /// An image (a reference, oci:DIRECTORY[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:TAG]), then the
    /// command and its arguments, instead of the image's
    #[arg(value_names = ["IMAGE", "COMMAND"], required = true, num_args = 1.., trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<String>,
}

/// What a container may use; by `update`, its virtual machine grows for it where it may.
#[derive(Debug, Args)]
pub struct LimitOptions {
    /// Memory of the container, such as 512m
    #[arg(short, long, value_name = "SIZE", value_parser = values::size)]
    pub memory: Option<u64>,
    /// Processors, such as 0.5
    #[arg(long, value_parser = values::cpus)]
    pub cpus: Option<f64>,
    /// Most processes and threads; -1 for no limit
    #[arg(long, value_parser = values::pids, allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
}

/// The virtual machine of a new sandbox.
#[derive(Debug, Args)]
pub struct MachineOptions {
    /// Memory of the virtual machine, such as 1g
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub vm_memory: Option<u64>,
    /// What it may grow to by `nacre update`; on our own VMM alone
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub vm_memory_max: Option<u64>,
    /// How many processors it may grow to; the same
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub vm_cpus_max: Option<u8>,
    /// The program that is the virtual machine
    #[arg(long, value_enum, default_value_t = VmmArg::Auto)]
    pub vmm: VmmArg,
    /// What QEMU executes the virtual machine with
    #[arg(long, value_enum, default_value_t = AccelArg::Auto)]
    pub accel: AccelArg,
    /// Kernel of the virtual machine
    #[arg(long, env = "NACRE_KERNEL", value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Guest image of the virtual machine
    #[arg(long = "image", env = "NACRE_IMAGE", value_name = "FILE")]
    pub image_file: Option<PathBuf>,
    /// Seconds that the virtual machine may take to boot
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub boot_timeout: u32,
}

/// What of `words` comes first, and the rest. The parser lets every word through from the first that it does not know, so
/// that the command's own options reach it; a first word that looks like an option is a mistake.
pub fn first_word(words: &[String]) -> Result<(&str, &[String]), String> {
    match words.split_first() {
        Some((first, _)) if first.starts_with('-') => Err(format!("there is no option {first:?}")),
        Some((first, rest)) => Ok((first, rest)),
        None => Err("an argument is missing".to_owned()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// Through this user's own sockets, without privilege
    User,
    /// QEMU's own, which does not filter: the container reaches every service on this host's loopback
    Slirp,
    /// None at all
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum VmmArg {
    /// Our own where KVM really executes, else QEMU
    Auto,
    /// Our own, on KVM
    Kvm,
    Qemu,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AccelArg {
    /// KVM if it really executes, else tcg
    Auto,
    Kvm,
    /// QEMU's translator
    Tcg,
}

#[derive(Debug, Args)]
pub struct Pull {
    /// Into this store
    #[arg(long, value_name = "NAME", required_unless_present = "within", conflicts_with = "within")]
    pub store: Option<String>,
    /// Into the sandbox of this container
    #[arg(long = "in", value_name = "NAME")]
    pub within: Option<String>,
    #[command(flatten)]
    pub registry: RegistryOptions,
    #[command(flatten)]
    pub machine: MachineOptions,
    /// Most room that image layers may take, such as 10g
    #[arg(long, value_name = "SIZE", value_parser = values::bytes, conflicts_with = "within")]
    pub image_quota: Option<u64>,
    /// Print nothing but errors and the image's digest
    #[arg(short, long)]
    pub quiet: bool,
    pub image: String,
}

#[derive(Debug, Args)]
pub struct Images {
    /// Of this store; a sandbox is started for it, if none has it
    #[arg(long, value_name = "NAME", conflicts_with = "within")]
    pub store: Option<String>,
    /// Of the sandbox of this container; of every sandbox without this and --store
    #[arg(long = "in", value_name = "NAME")]
    pub within: Option<String>,
    /// Remove images that no container uses and that were not pulled on purpose, and layers that no image has
    #[arg(long)]
    pub prune: bool,
    /// Do not keep this image any more; it goes unless a container uses it. A reference, a digest, or as it is shown
    #[arg(long, value_name = "IMAGE")]
    pub rm: Vec<String>,
    #[command(flatten)]
    pub machine: MachineOptions,
}

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Make a store; it takes no more room than is used
    Create {
        /// The most that it may hold
        #[arg(long, default_value = "32g", value_name = "SIZE", value_parser = values::size)]
        size: u64,
        name: String,
    },
    /// List the stores of this user
    Ls {
        /// Names only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove stores that no sandbox has
    Rm {
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct Exec {
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set a variable: NAME=VALUE, or NAME to take it from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIRECTORY", value_parser = values::directory)]
    pub workdir: Option<String>,
    /// User, or user:group, by name or number
    #[arg(short, long)]
    pub user: Option<String>,
    /// The container, then the command and its arguments
    #[arg(value_names = ["NAME", "COMMAND"], required = true, num_args = 2.., trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Ps {
    /// Those that have ended, too
    #[arg(short, long)]
    pub all: bool,
    /// Names only
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct Logs {
    /// Go on until the container ends
    #[arg(short, long)]
    pub follow: bool,
    pub name: String,
}

#[derive(Debug, Args)]
pub struct Stop {
    /// Seconds until the container is killed
    #[arg(short, long, default_value_t = 10)]
    pub time: u32,
    #[arg(required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Kill {
    /// By name or number
    #[arg(short, long, default_value = "KILL", value_parser = values::signal)]
    pub signal: u32,
    #[arg(required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Rm {
    /// Kill the container first, if it runs
    #[arg(short, long)]
    pub force: bool,
    #[arg(required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Update {
    #[command(flatten)]
    pub limits: LimitOptions,
    /// Memory of the virtual machine, up to the --vm-memory-max that it was started with
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub vm_memory: Option<u64>,
    /// Processors of the virtual machine, up to its --vm-cpus-max; none is ever taken away
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub vm_cpus: Option<u8>,
    pub name: String,
}

#[derive(Debug, Args)]
pub struct AgentUpgrade {
    /// A container of the sandbox, which was started with --bound allow=upgrade
    pub name: String,
    /// The agent's program, as the guest image has it
    #[arg(value_name = "FILE")]
    pub program: PathBuf,
}

#[derive(Debug, Args)]
pub struct Doctor {
    /// Kernel of the virtual machine
    #[arg(long, env = "NACRE_KERNEL", value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Guest image of the virtual machine
    #[arg(long = "image", env = "NACRE_IMAGE", value_name = "FILE")]
    pub image_file: Option<PathBuf>,
}

impl LimitOptions {
    pub fn limits(&self) -> Limits {
        Limits { memory: self.memory, cpus: self.cpus, pids: self.pids_limit }
    }
}

impl Run {
    /// `nacre run IMAGE`, with the default of every option.
    pub fn plain(image: &str) -> Result<Box<Self>, String> {
        match Cli::try_parse_from(["nacre", "run", image]) {
            Ok(Cli { command: Command::Run(run) }) => Ok(run),
            Ok(_) => Err(format!("{image:?} is no image")),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run(line: &str) -> Result<Box<Run>, clap::Error> {
        match Cli::try_parse_from(line.split_whitespace())?.command {
            Command::Run(run) => Ok(run),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_the_image_belongs_to_the_command() {
        let parsed = run("nacre run -it -e A=1 -v /a:/b:ro img -t --rm -- x").unwrap();
        assert!(parsed.interactive && parsed.tty && parsed.rm);
        assert_eq!(parsed.words, ["img", "-t", "--rm", "--", "x"]);
        assert_eq!(parsed.env, ["A=1"]);
        assert!(parsed.volume[0].read_only);
    }

    #[test]
    fn options_have_dockers_words_and_defaults() {
        let plain = run("nacre run img").unwrap();
        assert!(plain.rm && plain.registry.tls_verify && !plain.keep);
        assert_eq!(
            (plain.net, plain.machine.accel, plain.machine.boot_timeout),
            (Network::User, AccelArg::Auto, 120)
        );
        assert_eq!(plain.registry.platform.1, "amd64");
        let full = run(
            "nacre run -d --rm=false --name web -m 512m --cpus 1.5 --pids-limit -1 -p 127.0.0.1:8080:80 -w /srv -u 1:2 \
             --entrypoint sh --net none --scratch 2g --tls-verify=false --insecure-registry r:5000 --creds a:b \
             --cap-drop ALL --cap-add KILL --security-opt no-new-privileges --read-only img a b",
        )
        .unwrap();
        assert!(full.detach && !full.rm && !full.registry.tls_verify && full.read_only);
        assert_eq!(
            (full.limits.memory, full.limits.cpus, full.limits.pids_limit),
            (Some(512 << 20), Some(1.5), Some(-1))
        );
        assert_eq!(full.words, ["img", "a", "b"]);
    }

    #[test]
    fn wrong_lines_are_refused() {
        for line in [
            "nacre run",
            "nacre run -m 1k img",
            "nacre run -v named:/x:zz img",
            "nacre run -p 80 img",
            "nacre run --net host img",
            "nacre run --in other -v /a:/b img",
            "nacre run --in other --store s img",
            "nacre run --store s --scratch 1g img",
            "nacre pull img",
            "nacre pull --store s --in c img",
            "nacre store rm",
            "nacre exec name",
            "nacre kill -s NOTHING x",
            "nacre stop",
            "nacre vmm-control box",
            "nacre vmm-control box jump",
            "nacre vmm-control box resize --memory 1k",
            "nacre frobnicate",
        ] {
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }
}
