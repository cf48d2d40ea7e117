//! Who the command runs as: ids of the plan, or names looked up in the container's own files.

use crate::accounts::{Account, GROUPS_MAX, home_of, resolve};
use crate::check::{Origin, is_reserved};
use crate::error::{Context, LaunchError, Result};
use crate::tree::{Tree, is_missing};
use nacre_protocols::init_launcher::{LaunchStage, Process, User};
use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};

const STAGE: LaunchStage = LaunchStage::User;
/// Longest `/etc/passwd` and `/etc/group`, in bytes.
const FILE_MAX: u64 = 1024 * 1024;

/// The agent's plans reach no user of the guest's own processes.
pub fn find(process: &Process, root: &Tree, origin: Origin) -> Result<Account> {
    let account = match &process.user {
        User::Ids { uid, gid, additional } => {
            // Only for a home: an image whose file is masked, or is none, has numbers all the same.
            let has_home = process.env.iter().any(|entry| entry.starts_with("HOME="));
            let passwd = if has_home { Vec::new() } else { read(root, "/etc/passwd").unwrap_or_default() };
            Account { uid: *uid, gid: *gid, groups: additional.clone(), home: home_of(*uid, &passwd) }
        }
        User::Named { name, additional } => {
            let passwd = read(root, "/etc/passwd")?;
            let group = read(root, "/etc/group")?;
            let mut account = resolve(name, &passwd, &group)
                .map_err(|error| LaunchError::refused(STAGE, error.to_string()))?;
            account.groups.extend(additional);
            account
        }
    };
    let ids = [account.uid, account.gid].into_iter().chain(account.groups.iter().copied());
    if let Some(id) = ids.filter(|id| is_reserved(*id)).find(|_| origin == Origin::Agent) {
        return Err(LaunchError::refused(STAGE, format!("id {id} is reserved to the guest's own processes")));
    }
    if account.groups.len() > 2 * GROUPS_MAX {
        return Err(LaunchError::refused(STAGE, format!("more than {} groups", 2 * GROUPS_MAX)));
    }
    Ok(account)
}

/// A file of the image; one that is not there is empty. Neither a fifo nor a device can make this wait.
fn read(root: &Tree, path: &str) -> Result<Vec<u8>> {
    let attempt = || -> io::Result<Vec<u8>> {
        let file = match root.open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Err(error) if is_missing(&error) => return Ok(Vec::new()),
            file => file?,
        };
        if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL.into());
        }
        let mut content = Vec::new();
        File::from(file).take(FILE_MAX + 1).read_to_end(&mut content)?;
        if content.len() as u64 > FILE_MAX { Err(Errno::FBIG.into()) } else { Ok(content) }
    };
    attempt().at(STAGE, || format!("reading the container's {path} (at most {FILE_MAX} bytes)"))
}
