//! Giving up rights: bounding set, ids, capabilities, no_new_privs, seccomp, in the order in which the kernel still lets
//! each step happen (capabilities(7), seccomp(2)).

use crate::accounts::Account;
use crate::error::{Context, Result};
use crate::outside::Listener;
use nacre_protocols::init_launcher::{Capabilities, LaunchStage, Process};
use nacre_sys::seccomp;
use nacre_sys::seqpacket::send;
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use std::os::fd::AsFd;

const STAGE: LaunchStage = LaunchStage::Rights;
/// Capabilities that the sets have bits for; the kernel knows fewer and says so.
const CAPABILITIES: u32 = 64;

/// What is left to be done at the last possible moment, when nothing else of ours follows but execve(2).
pub struct LastRights {
    filter: Vec<seccomp::Instruction>,
    filter_flags: u32,
    /// Who is to decide about what the filter leaves open.
    listener: Option<Listener>,
    /// Capabilities still to be given up: a filter without no_new_privs is loaded with CAP_SYS_ADMIN.
    capabilities: Option<Capabilities>,
}

/// Becomes the user. Comes back with what must wait until the gate is open.
pub fn give_up(process: &Process, account: &Account, listener: Option<Listener>) -> Result<LastRights> {
    limit_bounding_set(process.capabilities.bounding)?;
    become_user(account)?;
    let mut last = LastRights { filter: Vec::new(), filter_flags: 0, listener, capabilities: None };
    if let Some(filter) = &process.seccomp {
        last.filter_flags = filter.flags;
        last.filter = filter
            .program
            .iter()
            .map(|&(code, jt, jf, k)| seccomp::Instruction { code, jt, jf, k })
            .collect();
    }
    if process.no_new_privileges {
        set_no_new_privs(true).at(STAGE, || "setting no_new_privs".to_owned())?;
    }
    if process.no_new_privileges || last.filter.is_empty() {
        limit_capabilities(&process.capabilities)?;
    } else {
        last.capabilities = Some(process.capabilities);
    }
    Ok(last)
}

impl LastRights {
    pub fn give_up(&self) -> Result<()> {
        if let Some(capabilities) = &self.capabilities {
            // The change of user took the effective set away, the permitted one is still there.
            let all = CapabilitySet::from_bits_retain(u64::MAX);
            let mut sets =
                rustix::thread::capabilities(None).at(STAGE, || "reading capabilities".to_owned())?;
            sets.effective = sets.permitted & all;
            set_capabilities(None, sets).at(STAGE, || "raising capabilities".to_owned())?;
            self.load_filter()?;
            return limit_capabilities(capabilities);
        }
        self.load_filter()
    }

    fn load_filter(&self) -> Result<()> {
        if self.filter.is_empty() {
            return Ok(());
        }
        let at = || format!("loading a seccomp program of {} instructions", self.filter.len());
        let Some(listener) = &self.listener else {
            return seccomp::load(&self.filter, self.filter_flags).at(STAGE, at);
        };
        let decider = seccomp::load_with_listener(&self.filter, self.filter_flags).at(STAGE, at)?;
        send(&listener.socket, listener.message.as_bytes(), &[decider.as_fd()])
            .at(STAGE, || "handing the listener to the seccomp agent".to_owned())?;
        // Closed on exec: until then closing it could be a call that the agent decides about.
        std::mem::forget(decider);
        Ok(())
    }
}

/// First of all: it needs CAP_SETPCAP.
fn limit_bounding_set(keep: u64) -> Result<()> {
    for number in 0..CAPABILITIES {
        if keep & 1 << number != 0 {
            continue;
        }
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            // The kernel knows no more.
            Err(Errno::INVAL) => break,
            result => result.at(STAGE, || format!("dropping capability {number} from the bounding set"))?,
        }
    }
    Ok(())
}

fn become_user(account: &Account) -> Result<()> {
    let groups: Vec<Gid> = account.groups.iter().copied().map(Gid::from_raw).collect();
    set_thread_groups(&groups).at(STAGE, || format!("setting {} supplementary groups", groups.len()))?;
    let gid = Gid::from_raw(account.gid);
    set_thread_res_gid(gid, gid, gid).at(STAGE, || format!("becoming group {}", account.gid))?;
    set_keep_capabilities(true).at(STAGE, || "keeping capabilities".to_owned())?;
    let uid = Uid::from_raw(account.uid);
    set_thread_res_uid(uid, uid, uid).at(STAGE, || format!("becoming user {}", account.uid))
}

fn limit_capabilities(wanted: &Capabilities) -> Result<()> {
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(wanted.effective),
        permitted: CapabilitySet::from_bits_retain(wanted.permitted),
        inheritable: CapabilitySet::from_bits_retain(wanted.inheritable),
    };
    set_capabilities(None, sets).at(STAGE, || format!("setting capabilities to {wanted:x?}"))?;
    clear_ambient_capability_set().at(STAGE, || "clearing the ambient set".to_owned())?;
    for number in (0..CAPABILITIES).filter(|number| wanted.ambient & 1 << number != 0) {
        configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << number), true)
            .at(STAGE, || format!("raising capability {number} into the ambient set"))?;
    }
    Ok(())
}

/// Keeps no capability but `kept`, in any set, and no way to get one back.
pub fn keep_only(kept: CapabilitySet) -> Result<()> {
    limit_bounding_set(0)?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).at(STAGE, || format!("keeping {kept:?} alone"))?;
    set_no_new_privs(true).at(STAGE, || "setting no_new_privs".to_owned())
}
