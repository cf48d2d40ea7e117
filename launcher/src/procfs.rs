//! A proc file system of our own: never mounted, so that nobody can lay anything over its files (CVE-2019-16884 and
//! its kind). It shows this process's pid namespace.

use crate::error::{Context, Result};
use crate::filesystem::FilesystemContext;
use crate::tree::Tree;
use nacre_protocols::init_launcher::LaunchStage;
use rustix::fs::OFlags;
use rustix::mount::MountAttrFlags;
use std::io;

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

    /// Writes each `net.ipv4.ip_forward` style name; the names were checked.
    pub fn set_sysctls(&self, sysctls: &[(String, String)]) -> Result<()> {
        sysctls.iter().try_for_each(|(name, value)| {
            let path = format!("/sys/{}", name.replace('.', "/"));
            self.write(&path, value).at(LaunchStage::Sysctls, || format!("setting {name} to {value:?}"))
        })
    }

    /// Of this process, and so of the command it becomes.
    pub fn set_oom_score_adj(&self, score: i16) -> Result<()> {
        // `self` is a link, but within proc and to this process's directory alone.
        let path = format!("/{}/oom_score_adj", rustix::process::getpid().as_raw_nonzero());
        self.write(&path, &score.to_string())
            .at(LaunchStage::Rights, || format!("setting oom_score_adj to {score}"))
    }

    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        let file = self.0.open_plain(path, OFlags::WRONLY)?;
        // One write(2): proc takes a value whole or not at all.
        let written = rustix::io::write(file, value.as_bytes())?;
        if written == value.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}
