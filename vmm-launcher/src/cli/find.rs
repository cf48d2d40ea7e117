//! Containers by name, across the sandboxes of this user.

use super::error::Failure;
use super::exit;
use crate::client::Client;
use crate::sandbox::{ContainerRecord, Control, Found, Record, StateRoot};

/// A container and its sandbox.
#[derive(Debug)]
pub struct Target {
    pub sandbox: Found,
    pub record: Record,
    pub container: ContainerRecord,
}

/// Every container, with its sandbox.
pub fn all() -> Result<Vec<Target>, Failure> {
    let mut targets = Vec::new();
    for sandbox in StateRoot::open()?.list()? {
        let Some(record) = sandbox.record.clone() else { continue };
        for container in record.containers.clone() {
            let sandbox = Found {
                name: sandbox.name.clone(),
                place: sandbox.place.clone(),
                record: None,
                alive: sandbox.alive,
            };
            targets.push(Target { sandbox, record: record.clone(), container });
        }
    }
    Ok(targets)
}

/// The container of this name.
pub fn container(name: &str) -> Result<Target, Failure> {
    all()?.into_iter().find(|target| target.container.name == name).ok_or_else(|| {
        Failure::new("find", format!("there is no container {name:?}"))
            .next("see `nacre ps -a`")
            .with_code(exit::FAILED)
    })
}

/// The same, if it has not ended.
pub fn live(name: &str) -> Result<Target, Failure> {
    let target = container(name)?;
    if target.sandbox.alive && target.container.is_live() {
        Ok(target)
    } else {
        Err(Failure::new("find", format!("the container {name:?} has ended")).with_code(exit::FAILED))
    }
}

/// A container that runs in the sandbox that has this store.
pub fn of_store(store: &str) -> Result<Option<Target>, Failure> {
    Ok(all()?.into_iter().find(|target| {
        target.sandbox.alive && target.container.is_live() && target.record.store.as_deref() == Some(store)
    }))
}

impl Target {
    /// The agent of its sandbox.
    pub fn client(&self) -> Result<Client, Failure> {
        let vsock = self.record.vsock.as_ref();
        vsock
            .map(|vsock| Client::new(vsock))
            .ok_or_else(|| Failure::new("find", "the sandbox has no VM").with_code(exit::FAILED))
    }

    pub async fn control(&self) -> Result<Control, Failure> {
        Ok(Control::connect(&self.sandbox.place.control_socket()).await?)
    }
}
