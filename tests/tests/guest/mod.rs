//! A guest that is booted for a client of the agent, without `nacre run`.
#![allow(dead_code)]

use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nacre::devices::fs::{Access, Share};
use nacre::vmm::{Accel, Vm, VmConfig};
use nacre_protocols::names::AGENT_VSOCK_PORT;
use nacre_tests::agentctl::{Client, trace};
use nacre_tests::{artefacts, root};

/// How long a guest may take to end.
pub const END: Duration = Duration::from_secs(30);
/// Containers of the traces: each has a root of its own.
const CONTAINERS: [&str; 2] = ["pause0", "app0"];

/// A booted guest without a sandbox, and what it shares with the host.
pub struct Guest {
    pub vm: Vm,
    pub folder: tempfile::TempDir,
}

impl Guest {
    pub fn boot() -> Self {
        Self::boot_with(|_, _| ())
    }

    pub fn boot_with(change: impl FnOnce(&Path, &mut VmConfig)) -> Self {
        let artefacts = artefacts::find().expect("no guest");
        let folder = tempfile::Builder::new().prefix("nacre-trace").tempdir().expect("no folder");
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).expect("no rights");
        let mut config = VmConfig::new(artefacts.kernel, folder.path().to_owned());
        config.image = Some(artefacts.image);
        config.accel = Accel::Tcg;
        config.vcpus = 2;
        config.console_log = Some(folder.path().join("console.log"));
        for name in CONTAINERS {
            let host = folder.path().join("shared").join(name);
            root::of_busybox(&host.join("rootfs"));
            config.shares.push(Share { name: name.into(), host, access: Access::ReadWrite });
        }
        change(folder.path(), &mut config);
        Self { vm: Vm::start(config).expect("no VM"), folder }
    }

    pub fn client(&self) -> Client {
        Client::connect_when_booted(self.vm.vsock_path(), AGENT_VSOCK_PORT).expect("no agent")
    }

    #[track_caller]
    pub fn play(&self, name: &str) {
        let file = artefacts::workspace().join("tests/traces").join(name);
        self.play_text(name, &std::fs::read_to_string(&file).expect("no trace"));
    }

    pub fn console(&self) -> String {
        let console = std::fs::read(self.folder.path().join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&console).into_owned()
    }

    /// Connects to a port of the guest; gives the port that the connection has on this side, too.
    pub fn dial(&self, port: u32) -> io::Result<(UnixStream, u32)> {
        let mut stream = UnixStream::connect(self.vm.vsock_path())?;
        stream.set_read_timeout(Some(END))?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            answer.extend(byte);
        }
        let answer = String::from_utf8_lossy(&answer);
        let own = answer.strip_prefix("OK ").and_then(|port| port.trim().parse().ok());
        own.map(|own| (stream, own)).ok_or_else(|| io::Error::other(answer.into_owned()))
    }

    #[track_caller]
    pub fn play_text(&self, name: &str, text: &str) {
        let client = self.client();
        if let Err(error) = trace::play(&client, text) {
            panic!("{name}, {error}\nthe console:\n{}", self.console());
        }
    }
}
