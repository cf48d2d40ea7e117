//! Boots a guest without a sandbox and prints what its own processes take of memory: for `cargo xtask bench agent`.

use std::error::Error;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nacre::vmm::{Accel, Vm, VmConfig};
use nacre_protocols::names::AGENT_VSOCK_PORT;
use nacre_tests::agentctl::{Client, encode, reply};
use nacre_tests::artefacts;

/// How long the answer may take.
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn Error>> {
    let artefacts = artefacts::find()?;
    let folder = tempfile::Builder::new().prefix("nacre-idle").tempdir()?;
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o700))?;
    let mut config = VmConfig::new(artefacts.kernel, folder.path().to_owned());
    config.image = Some(artefacts.image);
    config.accel = Accel::Tcg;
    let vm = Vm::start(config)?;
    let client = Client::connect_when_booted(vm.vsock_path(), AGENT_VSOCK_PORT)?;
    let (service, payload) = encode("GetReport", &serde_json::json!({}))?;
    let response = client.begin(service, "GetReport", payload, None)?.wait(LIMIT)?;
    match response.ok_or("no answer")?.into_result() {
        Ok(payload) => println!("{:#}", reply("GetReport", &payload)?),
        Err(status) => return Err(status.message.into()),
    }
    Ok(())
}
