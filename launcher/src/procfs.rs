//! A proc file system of our own: never mounted, so that nobody can lay anything over its files (CVE-2019-16884 and
//! its kind). It shows this process's pid namespace.

use crate::error::{Context, Result};
use crate::filesystem::FilesystemContext;
use crate::tree::Tree;
use nacre_protocols::init_launcher::{ContainerPlan, LaunchStage};
use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::MountAttrFlags;
use std::io;
use std::os::fd::OwnedFd;

pub struct Procfs(Tree);

impl Procfs {
    pub fn detached() -> Result<Self> {
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        FilesystemContext::open("proc")
            .and_then(|context| context.mount(attributes))
            .map(|mount| Self(Tree::container(mount)))
            .at(LaunchStage::Namespaces, || "making a proc file system of our own".to_owned())
    }

    /// Only where something of the plan is written there.
    pub fn detached_for(plan: &ContainerPlan) -> Result<Option<Self>> {
        let process = &plan.process;
        let labels = &process.attributes;
        let written = !plan.sysctls.is_empty()
            || process.oom_score_adj.is_some()
            || labels.apparmor_profile.is_some()
            || labels.selinux_label.is_some();
        written.then(Self::detached).transpose()
    }

    /// Writes each `net.ipv4.ip_forward` style name; the names were checked.
    pub fn set_sysctls(&self, sysctls: &[(String, String)]) -> Result<()> {
        sysctls.iter().try_for_each(|(name, value)| {
            let path = format!("/sys/{}", name.replace('.', "/"));
            self.write(&path, value).at(LaunchStage::Sysctls, || format!("setting {name} to {value:?}"))
        })
    }

    /// Of this process, and so of the command it becomes.
    pub fn set_oom_score_adj(&self, score: i16) -> Result<()> {
        self.write_own("oom_score_adj", &score.to_string())
            .at(LaunchStage::Rights, || format!("setting oom_score_adj to {score}"))
    }

    /// A file of this process's own directory. (`self` is a link, which nothing here follows.)
    pub fn write_own(&self, name: &str, value: &str) -> io::Result<()> {
        self.write_of(rustix::process::getpid().as_raw_nonzero().get().cast_unsigned(), name, value)
    }

    /// A file of the directory of process `pid`.
    pub fn write_of(&self, pid: u32, name: &str, value: &str) -> io::Result<()> {
        self.write(&format!("/{pid}/{name}"), value)
    }

    /// A file of this process's own directory, for writing.
    pub fn open_own(&self, name: &str) -> io::Result<OwnedFd> {
        let pid = rustix::process::getpid().as_raw_nonzero();
        self.0.open_plain(&format!("/{pid}/{name}"), OFlags::WRONLY)
    }

    /// A namespace of process `pid`.
    pub fn namespace(&self, pid: u32, kind: &str) -> io::Result<OwnedFd> {
        // The last component is a link that only proc can follow; this proc is ours.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(openat(self.0.fd(), format!("{pid}/ns/{kind}"), flags, Mode::empty())?)
    }

    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        let file = self.0.open_plain(path, OFlags::WRONLY)?;
        // One write(2): proc takes a value whole or not at all.
        let written = rustix::io::write(file, value.as_bytes())?;
        if written == value.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}
