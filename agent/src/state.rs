//! What outlives an agent: a memfd that init keeps and gives to the next one.
//!
//! It has two halves, written in turn, so that whoever kills the agent in the middle of a write leaves the older one whole.
//! A half is a header of [`HEADER_LEN`] bytes and a postcard value:
//!
//! | bytes | field, little-endian |
//! |---|---|
//! | 0–5 | [`MAGIC`] |
//! | 6–7 | [`VERSION`] of the value's form, in decimal digits |
//! | 8–15 | generation: the higher is the newer |
//! | 16–19 | length of the value |
//! | 20–27 | FNV-1a of generation, length and value |

use crate::verified::VerifiedImage;
use nacre_protocols::agent_init::STATE_BYTES;
use nacre_protocols::frame;
use nacre_protocols::init_launcher::Seccomp;
use nacre_protocols::names::Sha256;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

/// Longest state, in bytes.
pub const VALUE_MAX: usize = STATE_BYTES as usize / 2 - HEADER_LEN;
/// Most images that are remembered.
pub const IMAGES_MAX: usize = 32;
const HEADER_LEN: usize = 32;
const MAGIC: [u8; 6] = *b"nacreA";
/// Goes up with every change of [`Kept`]. An agent that an upgrade puts in another's place may find an older one: it reads every
/// version that an image was ever shipped with, which is this one alone so far.
const VERSION: [u8; 2] = *b"02";

/// Everything that the next agent must know and that init does not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub sandbox: Option<Sandbox>,
    /// By mount point.
    pub mounts: BTreeMap<String, Mounted>,
    /// By id, from before init is asked to make it until it is removed.
    pub containers: BTreeMap<String, KeptContainer>,
    /// Seccomp programs by the hash of their content: the containers of a sandbox have mostly the same.
    pub programs: BTreeMap<u64, Seccomp>,
    /// The policy that every pull is held to; empty: there is none.
    pub policy: String,
    /// Latest last; by the reference as it was asked for.
    pub images: Vec<(String, VerifiedImage)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Hash of the request, to know it again.
    pub request: u64,
    pub id: String,
    /// The containers share the pid namespace of the first.
    pub shares_pids: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// Containers that use it.
    pub users: u32,
    /// Stays when nobody uses it.
    pub stays: bool,
    /// The directory that it shows, which is looked at again and again.
    pub watched: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptContainer {
    /// Hash of the request, to know it again.
    pub request: u64,
    /// For the errors of its start.
    pub command: String,
    /// Key in [`Kept::programs`], for the processes that are executed in it later.
    pub program: Option<u64>,
    /// Mount points that it uses.
    pub mounts: Vec<String>,
    /// Its first process was waited for.
    pub waited: bool,
    /// In the guest: where it says why it ended.
    pub termination_log: Option<String>,
    /// Manifest of the image that it was made of, and its layers: they stay in the store.
    pub image: Option<Sha256>,
    pub layers: Vec<Sha256>,
}

impl Kept {
    /// The latest image that was pulled for `reference`.
    pub fn image(&self, reference: &str) -> Option<&VerifiedImage> {
        self.images.iter().rev().find(|(of, _)| of == reference).map(|(_, image)| image)
    }

    pub fn remember_image(&mut self, reference: &str, image: VerifiedImage) {
        self.images.retain(|(of, _)| of != reference);
        if self.images.len() >= IMAGES_MAX {
            self.images.remove(0);
        }
        self.images.push((reference.to_owned(), image));
    }

    pub fn program_of(&self, container: &str) -> Option<Seccomp> {
        let key = self.containers.get(container)?.program?;
        self.programs.get(&key).cloned()
    }

    /// Keeps a program and gives its key.
    pub fn keep_program(&mut self, program: &Seccomp) -> u64 {
        let mut hash = Fnv::default();
        hash.add(&program.flags.to_le_bytes());
        for (code, jt, jf, k) in &program.program {
            hash.add(&code.to_le_bytes());
            hash.add(&[*jt, *jf]);
            hash.add(&k.to_le_bytes());
        }
        let mut key = hash.0;
        // Not a hash that resists an attacker: on a collision the next free key is taken.
        while self.programs.get(&key).is_some_and(|other| other != program) {
            key = key.wrapping_add(1);
        }
        self.programs.insert(key, program.clone());
        key
    }

    /// Drops what no container uses any more.
    pub fn forget_container(&mut self, id: &str) {
        self.containers.remove(id);
        let containers = &self.containers;
        self.programs.retain(|key, _| containers.values().any(|container| container.program == Some(*key)));
    }
}

/// A hash that is the same in every agent; nothing rests on its being hard to collide with.
pub fn digest(bytes: &[u8]) -> u64 {
    let mut hash = Fnv::default();
    hash.add(bytes);
    hash.0
}

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the last agent's state has version {0:?}, this agent reads \"01\"")]
    Version(String),
    #[error("the sandbox's state is longer than {VALUE_MAX} bytes")]
    TooLong,
    #[error("writing the state: {0}")]
    Write(rustix::io::Errno),
}

/// The memfd and what was written last.
pub struct StateFile {
    fd: OwnedFd,
    generation: u64,
}

impl StateFile {
    /// Reads the newer half that is whole; an empty state where there is none. A state that another version of the agent wrote
    /// is an error, and stays as it is: init then goes back to that version.
    pub fn open(fd: OwnedFd) -> io::Result<(Self, Kept)> {
        for half in 0..2 {
            let head = read_at(&fd, half_start(half), HEADER_LEN)?;
            if let Some(version) = head.get(6..8)
                && head.starts_with(&MAGIC)
                && version != VERSION
            {
                let version = String::from_utf8_lossy(version).into_owned();
                return Err(io::Error::other(StateError::Version(version)));
            }
        }
        let halves = [read_half(&fd, 0)?, read_half(&fd, 1)?];
        let newest = halves.into_iter().flatten().max_by_key(|(generation, _)| *generation);
        let (generation, kept) = newest.unwrap_or_default();
        Ok((Self { fd, generation }, kept))
    }

    pub fn save(&mut self, kept: &Kept) -> Result<(), StateError> {
        let value = frame::encode(kept, VALUE_MAX).map_err(|_| StateError::TooLong)?;
        let generation = self.generation + 1;
        let start = half_start(generation % 2);
        write_all_at(&self.fd, &value, start + HEADER_LEN as u64)?;
        write_all_at(&self.fd, &header(generation, &value), start)?;
        self.generation = generation;
        Ok(())
    }
}

fn half_start(half: u64) -> u64 {
    half * (STATE_BYTES / 2)
}

fn header(generation: u64, value: &[u8]) -> [u8; HEADER_LEN] {
    let length = value.len() as u32;
    let mut bytes = [0; HEADER_LEN];
    let fields = [
        &MAGIC[..],
        &VERSION,
        &generation.to_le_bytes(),
        &length.to_le_bytes(),
        &checksum(generation, value),
    ];
    for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
        *to = *from;
    }
    bytes
}

fn checksum(generation: u64, value: &[u8]) -> [u8; 8] {
    let mut hash = Fnv::default();
    hash.add(&generation.to_le_bytes());
    hash.add(&(value.len() as u32).to_le_bytes());
    hash.add(value);
    hash.0.to_le_bytes()
}

/// `None` for a half that is empty or not whole.
fn read_half(fd: &OwnedFd, half: u64) -> io::Result<Option<(u64, Kept)>> {
    let start = half_start(half);
    let head = read_at(fd, start, HEADER_LEN)?;
    let (Some(generation), Some(length)) = (head.get(8..16), head.get(16..20)) else { return Ok(None) };
    let (Ok(generation), Ok(length)) = (generation.try_into(), length.try_into()) else { return Ok(None) };
    let generation = u64::from_le_bytes(generation);
    let length = u32::from_le_bytes(length) as usize;
    if length > VALUE_MAX {
        return Ok(None);
    }
    let value = read_at(fd, start + HEADER_LEN as u64, length)?;
    if head != header(generation, &value) {
        return Ok(None);
    }
    Ok(frame::decode(&value, VALUE_MAX).ok().map(|kept| (generation, kept)))
}

fn read_at(fd: &OwnedFd, mut offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut left = bytes.as_mut_slice();
    while !left.is_empty() {
        let count = rustix::io::pread(fd, &mut *left, offset)?;
        if count == 0 {
            break;
        }
        left = left.get_mut(count..).unwrap_or_default();
        offset += count as u64;
    }
    Ok(bytes)
}

fn write_all_at(fd: &OwnedFd, mut bytes: &[u8], mut offset: u64) -> Result<(), StateError> {
    while !bytes.is_empty() {
        let count = rustix::io::pwrite(fd, bytes, offset).map_err(StateError::Write)?;
        bytes = bytes.get(count..).unwrap_or_default();
        offset += count as u64;
    }
    Ok(())
}

/// FNV-1a, 64 bits.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memfd() -> OwnedFd {
        nacre_sys::memfd::fixed("state", STATE_BYTES).unwrap()
    }

    fn with_container(id: &str) -> Kept {
        let mut kept = Kept::default();
        kept.containers.insert(id.to_owned(), KeptContainer { request: 7, ..Default::default() });
        kept
    }

    #[test]
    fn the_next_agent_reads_what_the_last_one_wrote() {
        let fd = memfd();
        let (mut file, kept) = StateFile::open(fd.try_clone().unwrap()).unwrap();
        assert_eq!(kept, Kept::default());
        for id in ["a", "b", "c"] {
            file.save(&with_container(id)).unwrap();
            let (_, read) = StateFile::open(fd.try_clone().unwrap()).unwrap();
            assert_eq!(read, with_container(id));
        }
    }

    #[test]
    fn a_write_that_was_cut_off_leaves_the_state_before_it() {
        let fd = memfd();
        let (mut file, _) = StateFile::open(fd.try_clone().unwrap()).unwrap();
        file.save(&with_container("old")).unwrap();
        file.save(&with_container("new")).unwrap();
        // The third write goes to the first one's half; only its value arrives, not its header.
        for cut in [1, 8, 64] {
            rustix::io::pwrite(&fd, &vec![0xaa; cut], half_start(1) + HEADER_LEN as u64).unwrap();
            let (_, read) = StateFile::open(fd.try_clone().unwrap()).unwrap();
            assert_eq!(read, with_container("new"), "{cut} bytes");
        }
        // A torn header, too.
        rustix::io::pwrite(&fd, &9u64.to_le_bytes(), half_start(1) + 8).unwrap();
        let (_, read) = StateFile::open(fd).unwrap();
        assert_eq!(read, with_container("new"));
    }

    #[test]
    fn a_state_of_another_version_is_refused_and_left_alone() {
        let fd = memfd();
        let (mut file, _) = StateFile::open(fd.try_clone().unwrap()).unwrap();
        file.save(&with_container("a")).unwrap();
        rustix::io::pwrite(&fd, b"99", half_start(1) + 6).unwrap();
        let error = StateFile::open(fd.try_clone().unwrap()).err().unwrap();
        assert!(error.to_string().contains("version \"99\""), "{error}");
        rustix::io::pwrite(&fd, &VERSION, half_start(1) + 6).unwrap();
        assert_eq!(StateFile::open(fd).unwrap().1, with_container("a"));
    }

    #[test]
    fn a_state_beyond_the_limit_is_refused_and_the_old_one_stays() {
        let fd = memfd();
        let (mut file, _) = StateFile::open(fd.try_clone().unwrap()).unwrap();
        file.save(&with_container("a")).unwrap();
        assert!(matches!(file.save(&with_container(&"x".repeat(VALUE_MAX))), Err(StateError::TooLong)));
        let (_, read) = StateFile::open(fd).unwrap();
        assert_eq!(read, with_container("a"));
    }

    #[test]
    fn programs_are_kept_once_and_only_while_they_are_used() {
        let mut kept = with_container("a");
        kept.containers.insert("b".into(), KeptContainer::default());
        let program = Seccomp { program: vec![(6, 0, 0, 0)], flags: 0, listener: None };
        let key = kept.keep_program(&program);
        assert_eq!(kept.keep_program(&program), key);
        for container in kept.containers.values_mut() {
            container.program = Some(key);
        }
        assert_eq!(kept.program_of("b"), Some(program));
        kept.forget_container("a");
        assert_eq!(kept.programs.len(), 1);
        kept.forget_container("b");
        assert!(kept.programs.is_empty());
    }
}
