//! The identity of an agent on disk: its key, how far its sequence numbers have gone, and where it was born.
//!
//! ```text
//! <state>/agents/<install>/    0700   one directory per install, locked by the agent that runs
//!     lock                     0600   locked: two agents never share one identity
//!     key                      0600   the seed of an Ed25519 key, 32 bytes
//!     seq                      0600   the first sequence number that no announcement can have used
//!     birth                    0600   keyed hashes of the hardware on which the key was made
//!     parent                   0600   the id that this key replaced, where it did
//!     machine                  0600   the machine's name and what it is known by (`machine.rs`)
//!     marks                    0600   how far the numbers of other agents have gone (`mesh/marks.rs`)
//! ```
//!
//! `<install>` is the endpoint's port, with its host in front where that is not loopback, so an agent finds its
//! identity again whatever else runs on the machine. A directory that another agent holds is left alone and the
//! next is taken, `11434.2` and so on: two network namespaces may well have an install on the same port.
//!
//! A state directory is copied with its disk. A copy would make two agents of one name, so the key remembers the
//! hardware of its birth: when none of it is here and something else stands in its place, the agent takes a new
//! key and names the old one as its parent (`identity.md` §12). The hashes are keyed with the seed itself, not
//! with the mesh's salt: they mean the same in every mesh, and nothing without the key beside them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    fs::File,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use ed25519_dalek::SigningKey;
use sha2::{Digest as _, Sha256};
use tropa_proto::{
    evidence::{Facts, Key, Salt},
    id::{AgentId, hex},
    system::{self, Access, FileSystem, Lock},
};

/// Sequence numbers that are written ahead: one write and sync for so many announcements, some hours of them.
pub const SEQ_BLOCK: u64 = 1024;

/// Agents that may share one endpoint's name before something is wrong.
const MAX_AGENTS: u32 = 16;

/// Bytes of a file here: the largest, `birth`, holds at most some hundred hashes of 32 digits.
const MAX_FILE: u64 = 64 << 10;

/// The identity of a running agent; nobody else runs under it while this exists.
pub struct State {
    directory: PathBuf,
    key: SigningKey,
    parent: Option<AgentId>,
    moved: bool,
    next_seq: u64,
    reserved: u64,
    // Closing it lets the next agent in.
    _lock: File,
}

/// Why an identity cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The operating system refused.
    #[error("{what} {path}")]
    Io {
        /// The action that failed.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read or change what is secret.
    #[error("{path} may be open to others; {fix}")]
    Unsafe {
        /// The path.
        path: PathBuf,
        /// What mends it, where there is one the command.
        fix: String,
    },
    /// A file is not what was written.
    #[error("{path} is damaged: {what}; remove {directory} to start with a new identity")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
        /// What to remove.
        directory: PathBuf,
    },
    /// Every directory of this endpoint is held by a running agent.
    #[error("{MAX_AGENTS} agents run for {install} already, with their state in {path}")]
    AllTaken {
        /// The name of the install.
        install: String,
        /// The directory.
        path: PathBuf,
    },
    /// The operating system has no random bytes.
    #[error("make a key")]
    Random(#[source] getrandom::Error),
}

impl State {
    /// Takes the identity of the agent for one install, and makes it where there is none.
    ///
    /// `root` is `$XDG_STATE_HOME/tropa` or `/var/lib/tropa`; `host` and `port` are the install's.
    ///
    /// # Errors
    /// When a directory or a file is open to others or not ours (the message has the `chmod`), damaged, or cannot
    /// be read or written.
    pub fn open(root: &Path, host: &str, port: u16, facts: &Facts) -> Result<Self, StateError> {
        let agents = root.join("agents");
        for directory in [root, &agents] {
            make_private(directory)?;
        }
        let install = install_name(host, port);
        for number in 1..=MAX_AGENTS {
            let name = if number == 1 { install.clone() } else { format!("{install}.{number}") };
            let directory = agents.join(name);
            make_private(&directory)?;
            if let Some(lock) = take(&directory.join("lock"))? {
                return Self::load(directory, lock, facts);
            }
        }
        Err(StateError::AllTaken { install, path: agents })
    }

    /// The agent's id: its public key.
    #[must_use]
    pub fn id(&self) -> AgentId {
        AgentId(self.key.verifying_key().to_bytes())
    }

    /// The seed of the key, as the mesh takes it.
    #[must_use]
    pub fn seed(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// The key, for signing.
    #[must_use]
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// The id that this one replaced when the state was found on other hardware.
    #[must_use]
    pub fn parent(&self) -> Option<AgentId> {
        self.parent
    }

    /// Says whether that happened now, at this start: worth telling the operator (`CLONED_AGENT_KEY`).
    #[must_use]
    pub fn has_moved(&self) -> bool {
        self.moved
    }

    /// Where the identity lies.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Gives the next sequence number, larger than any that was given before, in this life or an earlier one.
    ///
    /// # Errors
    /// When a new block cannot be written; then no number is given.
    pub fn next_seq(&mut self) -> Result<u64, StateError> {
        if self.next_seq >= self.reserved {
            let reserved = self.next_seq.saturating_add(SEQ_BLOCK);
            write_new(&self.directory, "seq", reserved.to_string().as_bytes())?;
            self.reserved = reserved;
        }
        let seq = self.next_seq;
        self.next_seq = seq.saturating_add(1);
        Ok(seq)
    }

    /// Goes on above a number that another agent with the same key has used, so that others hear this one again.
    /// The leap is as long as a block: the other does not pass it within hours.
    ///
    /// # Errors
    /// When the new block cannot be written; then the numbers go on where they were.
    pub fn skip_past(&mut self, used: u64) -> Result<(), StateError> {
        let next = used.saturating_add(SEQ_BLOCK);
        if next > self.next_seq {
            let reserved = next.saturating_add(SEQ_BLOCK);
            write_new(&self.directory, "seq", reserved.to_string().as_bytes())?;
            (self.next_seq, self.reserved) = (next, reserved);
        }
        Ok(())
    }

    /// Replaces the key by a new one, as the younger of two agents with one key does; the sequence goes on.
    ///
    /// # Errors
    /// When the new identity cannot be written; then the old one stays.
    pub fn mint(&mut self, facts: &Facts) -> Result<(), StateError> {
        let old = self.id();
        self.key = make_key(&self.directory, facts, Some(old))?;
        self.parent = Some(old);
        Ok(())
    }

    fn load(directory: PathBuf, lock: File, facts: &Facts) -> Result<Self, StateError> {
        let (key, parent, moved) = match read(&directory, "key")? {
            None => (make_key(&directory, facts, None)?, None, false),
            Some(seed) => {
                let Ok(seed) = <[u8; 32]>::try_from(seed) else {
                    return Err(damaged(&directory, "key", "not 32 bytes"));
                };
                let key = SigningKey::from_bytes(&seed);
                let old = AgentId(key.verifying_key().to_bytes());
                if fits(&read_birth(&directory)?, &anchors(&seed, facts)) {
                    (key, read_parent(&directory)?, false)
                } else {
                    (make_key(&directory, facts, Some(old))?, Some(old), true)
                }
            }
        };
        // The numbers up to the stored one may have been used by a life that ended without a word.
        let next_seq = match read(&directory, "seq")? {
            None => return Err(damaged(&directory, "seq", "missing beside a key")),
            Some(text) => String::from_utf8(text)
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .ok_or_else(|| damaged(&directory, "seq", "not a number"))?,
        };
        Ok(Self { directory, key, parent, moved, next_seq, reserved: next_seq, _lock: lock })
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("id", &self.id())
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

/// Hashes of hardware by type; only what identifies a machine by itself is in it.
type Anchors = BTreeMap<String, BTreeSet<String>>;

/// Tags what identifies the hardware, under the agent's own key.
fn anchors(seed: &[u8; 32], facts: &Facts) -> Anchors {
    let key =
        Key::new(&Salt(Sha256::new().chain_update(b"tropa-birth-v1").chain_update(seed).finalize().into()));
    let mut anchors = Anchors::new();
    let mut add = |kind: &str, value: &str| {
        anchors.entry(kind.to_owned()).or_default().insert(hex(&key.tag(kind, value).0));
    };
    for (kind, reading) in [("smbios", &facts.product_uuid), ("platform", &facts.platform_uuid)] {
        if let Some(value) = reading.value() {
            add(kind, value);
        }
    }
    for value in facts.ppin.value().iter().flat_map(|list| list.iter()) {
        add("ppin", value);
    }
    for value in facts.macs.value().iter().flat_map(|list| list.iter()) {
        add("mac", value);
    }
    for gpu in facts.gpus.iter().filter_map(tropa_proto::evidence::Gpu::physical) {
        add("gpu", &gpu);
    }
    anchors
}

/// Says whether a key may be used here: some hardware of its birth is here, or nothing contradicts it. What only
/// one side knows says nothing: a container may see less today than yesterday.
fn fits(birth: &Anchors, now: &Anchors) -> bool {
    let both = || birth.iter().filter_map(|(kind, old)| Some((old, now.get(kind)?)));
    let shared = both().any(|(old, new)| !old.is_disjoint(new));
    let mismatch = both().any(|(old, new)| old.is_disjoint(new));
    shared || !mismatch
}

/// Makes a key: everything that belongs to it first and the key last, so that a key is never without them.
fn make_key(directory: &Path, facts: &Facts, parent: Option<AgentId>) -> Result<SigningKey, StateError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(StateError::Random)?;
    if let Some(parent) = parent {
        write_new(directory, "parent", parent.to_string().as_bytes())?;
    }
    if parent.is_none() {
        write_new(directory, "seq", b"1")?;
    }
    // Between these two the old key would not fit its new birth; the next start then mints once more.
    let birth =
        serde_json::to_vec(&anchors(&seed, facts)).map_err(|error| at("write", directory)(error.into()))?;
    write_new(directory, "birth", &birth)?;
    write_new(directory, "key", &seed)?;
    Ok(SigningKey::from_bytes(&seed))
}

fn read_birth(directory: &Path) -> Result<Anchors, StateError> {
    let text =
        read(directory, "birth")?.ok_or_else(|| damaged(directory, "birth", "missing beside a key"))?;
    serde_json::from_slice(&text).map_err(|_| damaged(directory, "birth", "not what was written"))
}

fn read_parent(directory: &Path) -> Result<Option<AgentId>, StateError> {
    let Some(text) = read(directory, "parent")? else { return Ok(None) };
    let parent = String::from_utf8(text).ok().and_then(|text| text.trim().parse().ok());
    parent.map(Some).ok_or_else(|| damaged(directory, "parent", "not an id"))
}

/// A directory name for an endpoint: letters, digits, dots and hyphens only.
fn install_name(host: &str, port: u16) -> String {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let loopback =
        bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    if loopback {
        return port.to_string();
    }
    let keep = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '_' };
    let host: String = bare.chars().take(64).map(keep).collect();
    format!("{}-{port}", host.to_ascii_lowercase().trim_start_matches('.'))
}

/// Locks a file for the life of this process; `None` if another agent has it.
fn take(path: &Path) -> Result<Option<File>, StateError> {
    let mut options = system::files(0o600);
    let options = options.read(true).write(true).create(true).truncate(false);
    let file = options.open(path).map_err(at("open", path))?;
    let free = system::try_lock(&file, Lock::Exclusive).map_err(at("lock", path))?;
    Ok(free.then_some(file))
}

/// Says whether what is written here outlives a restart: the layer of a container that is not on a volume does not,
/// nor does memory. What cannot be told counts as lasting.
#[must_use]
pub fn lasts(directory: &Path) -> bool {
    system::file_system(directory).map_or(true, |found| found != FileSystem::Passing)
}

/// Makes a directory for us alone, or refuses one that is not.
fn make_private(directory: &Path) -> Result<(), StateError> {
    match system::directories(0o700).recursive(true).create(directory) {
        Ok(()) => {}
        Err(error) => return Err(at("make", directory)(error)),
    }
    let found = fs::symlink_metadata(directory).map_err(at("look at", directory))?;
    if found.is_symlink() {
        // A link to a private directory is the operator's choice; the directory itself is what counts.
        return check(directory, &fs::metadata(directory).map_err(at("look at", directory))?, 0o700);
    }
    check(directory, &found, 0o700)
}

/// Refuses what others can read or change.
fn check(path: &Path, found: &fs::Metadata, wanted: u32) -> Result<(), StateError> {
    let own = system::user();
    let fix = match system::access(path, found) {
        Access::Bits { owner, .. } if Some(owner) != own => {
            format!("run: chown {} {}", own.unwrap_or_default(), path.display())
        }
        Access::Bits { mode, .. } if mode & 0o077 != 0 => format!("run: chmod {wanted:o} {}", path.display()),
        Access::Bits { .. } | Access::Profile => return Ok(()),
        Access::Unknown => "nothing here tells; pass a --state-dir below your own profile".to_owned(),
    };
    Err(StateError::Unsafe { path: path.into(), fix })
}

/// Reads a file of the state; `None` where there is none.
pub(crate) fn read(directory: &Path, name: &str) -> Result<Option<Vec<u8>>, StateError> {
    let path = directory.join(name);
    let file = match system::files(0).read(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at("open", &path)(error)),
    };
    let found = file.metadata().map_err(at("look at", &path))?;
    if !found.is_file() || found.len() > MAX_FILE {
        return Err(damaged(directory, name, "not a small regular file"));
    }
    check(&path, &found, 0o600)?;
    let mut content = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut content).map_err(at("read", &path))?;
    Ok(Some(content))
}

/// Puts a file in place whole: written beside, synced, renamed, and the directory synced.
pub(crate) fn write_new(directory: &Path, name: &str, content: &[u8]) -> Result<(), StateError> {
    let path = directory.join(name);
    let beside = directory.join(format!("{name}.new"));
    // Only a life that ended half-way leaves one, and the directory is locked.
    match fs::remove_file(&beside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at("remove", &beside)(error)),
    }
    let made = system::files(0o600).write(true).create_new(true).open(&beside);
    let written = made.and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written
        .and_then(|()| fs::rename(&beside, &path))
        .and_then(|()| system::sync_directory(directory))
        .map_err(at("write", &path))
}

fn damaged(directory: &Path, name: &str, what: &'static str) -> StateError {
    StateError::Damaged { path: directory.join(name), what, directory: directory.into() }
}

pub(crate) fn at(what: &'static str, path: &Path) -> impl Fn(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { what, path: path.clone(), source }
}

#[cfg(test)]
mod tests;
