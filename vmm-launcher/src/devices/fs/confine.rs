//! What the threads of virtio-fs may still do once the shares are open: reach the shared files, and nothing else.

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::FsError;
use super::share::OpenShare;

/// The newest set of rights that we name; older kernels enforce what they know.
const LANDLOCK: ABI = ABI::V5;

/// Confines the calling thread and those that it starts. Returns what could not be enforced, for a note.
///
/// # Errors
/// The kernel refuses a rule, or root's capabilities cannot be dropped.
pub fn confine(shares: &[OpenShare]) -> Result<Option<&'static str>, FsError> {
    drop_capabilities().map_err(|e| FsError::Confine(Box::new(e)))?;
    match restrict(shares).map_err(FsError::Confine)? {
        RulesetStatus::NotEnforced => {
            Ok(Some("landlock is not available: the virtio-fs threads are not confined"))
        }
        _ => Ok(None),
    }
}

fn restrict(shares: &[OpenShare]) -> Result<RulesetStatus, Box<dyn std::error::Error + Send + Sync>> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .create()?;
    for share in shares {
        let wanted =
            if share.is_writable() { AccessFs::from_all(LANDLOCK) } else { AccessFs::from_read(LANDLOCK) };
        // Nothing is ever executed, nor are devices driven.
        let wanted =
            wanted & !(AccessFs::Execute | AccessFs::IoctlDev | AccessFs::MakeChar | AccessFs::MakeBlock);
        let wanted = if share.is_single_file() { wanted & AccessFs::from_file(LANDLOCK) } else { wanted };
        rules = rules.add_rule(PathBeneath::new(PathFd::new(&share.allowed)?, wanted))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

/// Run by root, the thread keeps what reading and writing anybody's files needs. Without `CAP_FSETID` the kernel
/// clears the set-id bits of a file that the guest writes to.
fn drop_capabilities() -> rustix::io::Result<()> {
    let current = rustix::thread::capabilities(None)?;
    let keep = current.permitted & (CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER);
    set_capabilities(
        None,
        CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() },
    )
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::ErrorKind;

    use super::super::{Access, Share};
    use super::*;

    #[test]
    fn a_confined_thread_reaches_the_shares_only() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["rw", "ro"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("file"), "").unwrap();
        }
        std::fs::write(dir.path().join("secret"), "").unwrap();
        let open = |name: &str, access| {
            OpenShare::open(&Share { name: name.into(), host: dir.path().join(name), access }).unwrap()
        };
        let shares = [open("rw", Access::ReadWrite), open("ro", Access::ReadOnly)];
        std::thread::scope(|scope| {
            let confined = scope.spawn(|| {
                if let Some(weakness) = confine(&shares).unwrap() {
                    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{weakness}");
                    eprintln!("skipped: {weakness}");
                    return;
                }
                let denied = |path: &str| File::open(dir.path().join(path)).unwrap_err().kind();
                let written =
                    |path: &str| OpenOptions::new().append(true).open(dir.path().join(path)).map(|_| ());
                File::open(dir.path().join("ro/file")).unwrap();
                written("rw/file").unwrap();
                assert_eq!(written("ro/file").unwrap_err().kind(), ErrorKind::PermissionDenied);
                assert_eq!(denied("secret"), ErrorKind::PermissionDenied);
                assert_eq!(File::open("/etc/passwd").unwrap_err().kind(), ErrorKind::PermissionDenied);
                let error = std::net::TcpListener::bind("127.0.0.1:0").map(|_| ());
                println!("listening: {error:?}");
                let capabilities = rustix::thread::capabilities(None).unwrap();
                let kept = CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER;
                assert!((capabilities.permitted - kept).is_empty());
            });
            confined.join().unwrap();
        });
        // Only that thread: this one still reads what it likes.
        File::open(dir.path().join("secret")).unwrap();
    }
}
