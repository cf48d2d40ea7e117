//! Files of the kernel's that the agent may read: opened here, decoded there.

use crate::agent::failure;
use crate::serve::Init;
use nacre_protocols::agent_init::{Failure, FailureKind, KernelFile, ReplyBody};
use rustix::fs::{Mode, OFlags, open, openat};
use std::os::fd::{AsFd, OwnedFd};

const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

impl Init {
    pub(crate) fn open_file(&mut self, tag: u32, file: &KernelFile) {
        let opened = self.open(file);
        let Some(agent) = self.agent.as_mut() else { return };
        match opened {
            Ok(fd) => agent.reply(tag, Ok(ReplyBody::Opened), &[fd.as_fd()]),
            Err(why) => agent.reply(tag, Err(why), &[]),
        }
    }

    fn open(&self, file: &KernelFile) -> Result<OwnedFd, Failure> {
        let (opened, name) = match file {
            KernelFile::Guest(file) => (open(file.path(), READ, Mode::empty()), file.path()),
            KernelFile::Agent(file) => {
                let pid = self.agent.as_ref().map_or(0, |agent| agent.pid);
                (open(format!("/proc/{pid}/{}", file.name()), READ, Mode::empty()), file.name())
            }
            KernelFile::Cgroup { id, file } => {
                let container = self
                    .containers
                    .get(id)
                    .ok_or_else(|| failure(FailureKind::NotFound, format!("no container {id:?}")))?;
                (openat(&container.cgroup.directory, file.name(), READ, Mode::empty()), file.name())
            }
        };
        opened.map_err(|errno| {
            let kind = match errno {
                rustix::io::Errno::NOENT => FailureKind::NotFound,
                _ => FailureKind::System,
            };
            failure(kind, format!("opening {name}: {errno}"))
        })
    }
}
