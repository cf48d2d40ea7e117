//! What a shim asks, in its plainest form.

use super::client::Client;
use nacre_protocols::host_agent::kata::agent_service::*;
use nacre_protocols::host_agent::kata::{self, health};
use std::time::Duration;

pub fn seccomp() -> kata::LinuxSeccomp {
    let entry = kata::LinuxSyscall {
        names: vec!["socket".into()],
        action: "SCMP_ACT_ERRNO".into(),
        ..Default::default()
    };
    kata::LinuxSeccomp {
        default_action: "SCMP_ACT_ALLOW".into(),
        syscalls: vec![entry],
        ..Default::default()
    }
}

pub fn create_request(id: &str, storage: kata::Storage) -> kata::CreateContainerRequest {
    kata::CreateContainerRequest {
        container_id: id.into(),
        storages: vec![storage],
        oci: Some(kata::Spec {
            root: Some(kata::Root {
                path: format!("/run/kata-containers/shared/containers/{id}/rootfs"),
                readonly: false,
            }),
            process: Some(kata::Process { args: vec!["/bin/app".into()], ..Default::default() }),
            linux: Some(kata::Linux { seccomp: Some(seccomp()), ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub fn shm() -> kata::Storage {
    kata::Storage {
        driver: "ephemeral".into(),
        mount_point: "/run/kata-containers/sandbox/shm".into(),
        ..Default::default()
    }
}

pub fn create_and_start(client: &mut Client, id: &str) {
    client.call::<CreateContainer>(&create_request(id, shm())).unwrap();
    client.call::<StartContainer>(&kata::StartContainerRequest { container_id: id.into() }).unwrap();
}

pub fn create_sandbox(client: &mut Client) {
    client.call::<CreateSandbox>(&kata::CreateSandboxRequest::default()).unwrap();
}

pub fn exec(client: &mut Client, container: &str, exec: &str) {
    let request = kata::ExecProcessRequest {
        container_id: container.into(),
        exec_id: exec.into(),
        process: Some(kata::Process { args: vec!["/bin/app".into()], ..Default::default() }),
        ..Default::default()
    };
    client.call::<ExecProcess>(&request).unwrap();
}

pub fn read(container: &str, exec: &str, len: u32) -> kata::ReadStreamRequest {
    kata::ReadStreamRequest { container_id: container.into(), exec_id: exec.into(), len, received: None }
}

pub fn wait(container: &str, exec: &str) -> kata::WaitProcessRequest {
    kata::WaitProcessRequest { container_id: container.into(), exec_id: exec.into() }
}

/// Asks so much without reading that answers wait in the agent; not so much that it does not read any more.
pub fn fill(client: &mut Client) {
    for _ in 0..400 {
        client.send::<health::Version>(&kata::CheckRequest::default(), Duration::ZERO);
    }
}

pub fn check(client: &mut Client) {
    client.call::<health::Check>(&kata::CheckRequest::default()).unwrap();
}
