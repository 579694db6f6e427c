//! The directory through which agents and coordinators of one machine find each other: mDNS does not work on
//! loopback.
//!
//! One file per running agent, with its address and its id. The agent keeps its file locked while it lives, so a
//! file that nobody locks belongs to a dead one and is swept away. What a file says is a hint and no more: who
//! answers at the address must prove its id in the handshake.
//!
//! A directory of somebody else, or one that anybody may write to, is neither written nor read.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tropa_proto::{
    id::{AgentId, hex},
    system::{self, Access, Lock, Lockable},
};

/// Bytes of one file: an address and an id are under 200.
const MAX_FILE: u64 = 4096;

/// Files that are looked at: more agents than this on one machine are a mistake.
const MAX_AGENTS: usize = 256;

/// Where agents of this machine may be found, in the order of preference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimePlaces(Vec<PathBuf>);

/// An agent that is here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Present {
    /// Its id, 64 hexadecimal digits.
    #[serde(with = "as_text")]
    pub agent: AgentId,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its process.
    pub pid: u32,
    /// The port of its install; 0 where it is not on this host.
    pub port: u16,
}

/// The file of a running agent; removed when this is dropped.
#[derive(Debug)]
pub struct Presence {
    path: PathBuf,
    present: Present,
    file: Lockable,
}

impl RuntimePlaces {
    /// Takes the usual places: `/run/tropa/agents`, `$XDG_RUNTIME_DIR/tropa/agents`, and where there is no such
    /// variable a private directory of this user below the directory for temporary files. Where nothing tells who may
    /// write to a directory of all users, only this user's.
    #[must_use]
    pub fn usual(runtime: Option<&Path>, temporary: &Path) -> Self {
        let own = match (runtime, system::user()) {
            (Some(runtime), _) => runtime.join("tropa/agents"),
            (None, Some(user)) => temporary.join(format!("tropa-{user}/agents")),
            (None, None) => temporary.join("tropa/agents"),
        };
        let shared = system::user().map(|_| system::run_directory().join("tropa/agents"));
        Self(shared.into_iter().chain([own]).collect())
    }

    /// Takes the given places, for tests and for unusual hosts.
    #[must_use]
    pub fn new(places: Vec<PathBuf>) -> Self {
        Self(places)
    }

    /// The places, in the order of preference.
    #[must_use]
    pub fn places(&self) -> &[PathBuf] {
        &self.0
    }

    /// The directories among them, and those above, that are there and not believed; each once.
    #[must_use]
    pub fn untrusted(&self) -> Vec<PathBuf> {
        let all = self.0.iter().flat_map(|place| place.parent().into_iter().chain([place.as_path()]));
        let found = all.filter(|place| place.symlink_metadata().is_ok() && !is_trusted(place));
        found.map(Path::to_owned).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Says that this agent is here, in the first place where it may; the file lives as long as the answer.
    ///
    /// # Errors
    /// When none of the places can be used: the error of the last.
    pub fn announce(&self, present: Present) -> io::Result<Presence> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no runtime directory is named");
        for place in &self.0 {
            match make(place).and_then(|()| Presence::write(place, &present)) {
                Ok(presence) => return Ok(presence),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Where what only root can read may be, one file per place and the system's first: beside the agents.
    pub(crate) fn privileged(&self) -> Vec<PathBuf> {
        self.0.iter().filter_map(|place| Some(place.parent()?.join("privileged.json"))).collect()
    }

    /// Lists the agents that are here, sorted by id, each address of one once. What cannot be read or trusted is not
    /// there.
    ///
    /// Removes files of agents that are gone, where it may.
    #[must_use]
    pub fn list(&self) -> Vec<Present> {
        let mut present: Vec<Present> = self
            .0
            .iter()
            .filter(|place| is_trusted(place) && place.parent().is_none_or(is_trusted))
            .flat_map(|p| here(p))
            .collect();
        present.sort();
        present.dedup_by_key(|present| (present.agent, present.address));
        present
    }
}

impl Presence {
    /// Writes the file again if it is gone, as after a wiped directory; call it from time to time.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn refresh(&mut self) -> io::Result<()> {
        if self.is_in_place() {
            return Ok(());
        }
        let place = self.path.parent().unwrap_or(Path::new("/")).to_owned();
        make(&place)?;
        *self = Self::write(&place, &self.present)?;
        Ok(())
    }

    fn write(place: &Path, present: &Present) -> io::Result<Self> {
        let name = &hex(&present.agent.0)[..16];
        let path = place.join(format!("{name}.json"));
        // Written and locked under a name that nobody reads, then put in place whole.
        let beside = place.join(format!(".{name}.{}", std::process::id()));
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file = system::files(0o644).read(true).write(true).create_new(true).open(&beside)?;
        let file = Lockable::new(file, &beside)?;
        if !file.try_lock(Lock::Exclusive)? {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        file.file().write_all(&serde_json::to_vec(present)?)?;
        // Another agent of this name, with a copy of its state, keeps its file until the two have parted.
        let path =
            if is_held(&path) { place.join(format!("{name}.{}.json", std::process::id())) } else { path };
        Lockable::rename(&beside, &path)?;
        Ok(Self { path, present: present.clone(), file })
    }

    fn is_in_place(&self) -> bool {
        system::is_same(self.file.file(), &self.path)
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        // Never the file of an agent that came after us.
        if self.is_in_place() {
            let _ = Lockable::remove(&self.path);
        }
    }
}

fn here(place: &Path) -> Vec<Present> {
    let Ok(entries) = fs::read_dir(place) else { return Vec::new() };
    let paths = entries.take(MAX_AGENTS).filter_map(|entry| Some(entry.ok()?.path()));
    let named = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    named.filter_map(|path| look(&path)).collect()
}

fn look(path: &Path) -> Option<Present> {
    let file = open(path).ok()?;
    if file.try_lock(Lock::Shared).ok()? {
        // Nobody holds it. The comparison leaves a new file of the same agent alone; should one slip in
        // between, its `refresh` puts it back.
        if system::is_same(file.file(), path) {
            let _ = Lockable::remove(path);
        }
        return None;
    }
    let mut text = Vec::new();
    file.file().take(MAX_FILE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Somebody who lives holds this file.
fn is_held(path: &Path) -> bool {
    open(path).is_ok_and(|file| matches!(file.try_lock(Lock::Shared), Ok(false)))
}

fn open(path: &Path) -> io::Result<Lockable> {
    let file = system::files(0).read(true).open(path)?;
    if file.metadata()?.is_file() {
        Lockable::new(file, path)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// Makes the directory and, at most, the one above it; refuses what is not to be trusted.
fn make(place: &Path) -> io::Result<()> {
    // Root's is for all to read; a user's is private.
    let mode = if system::is_root() { 0o755 } else { 0o700 };
    let above = place.parent();
    for directory in above.into_iter().chain([place]) {
        match system::directories(mode).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    if is_trusted(place) && above.is_none_or(is_trusted) {
        return Ok(());
    }
    let why = match fs::symlink_metadata(place).map(|found| system::access(place, &found)) {
        Ok(Access::Unknown) => "nothing here tells who may write to it: use one below your own profile",
        Ok(Access::Bits { .. } | Access::Profile) | Err(_) => {
            "it belongs to somebody else or anybody may write to it"
        }
    };
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{}: {why}", place.display())))
}

/// A real directory, root's or ours, that not everybody may write to.
fn is_trusted(directory: &Path) -> bool {
    fs::symlink_metadata(directory)
        .is_ok_and(|found| found.is_dir() && may_trust(system::access(directory, &found), system::user()))
}

fn may_trust(access: Access, own: Option<u32>) -> bool {
    match access {
        Access::Bits { owner, mode } => (owner == 0 || Some(owner) == own) && mode & 0o002 == 0,
        Access::Profile => true,
        Access::Unknown => false,
    }
}

/// An id as its hexadecimal text.
mod as_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use tropa_proto::id::AgentId;

    pub(super) fn serialize<S: Serializer>(id: &AgentId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<AgentId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn present(byte: u8) -> Present {
        let address = SocketAddr::from(([127, 0, 0, 1], 1000 + u16::from(byte)));
        Present { agent: AgentId([byte; 32]), address, pid: std::process::id(), port: 11434 }
    }

    fn places(directory: &tempfile::TempDir) -> (RuntimePlaces, PathBuf) {
        let place = directory.path().join("tropa/agents");
        (RuntimePlaces::new(vec![directory.path().join("no/such/place/agents"), place.clone()]), place)
    }

    #[test]
    fn an_agent_is_found_while_it_lives_and_gone_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let (places, place) = places(&directory);
        assert!(places.list().is_empty());
        let two = places.announce(present(2)).unwrap();
        let one = places.announce(present(1)).unwrap();
        assert_eq!(places.list(), [present(1), present(2)]);
        drop(two);
        assert_eq!(places.list(), [present(1)]);
        drop(one);
        assert_eq!(fs::read_dir(place).unwrap().count(), 0);
    }

    #[test]
    fn the_file_of_a_dead_agent_is_swept_away() {
        let directory = tempfile::tempdir().unwrap();
        let (places, place) = places(&directory);
        let alive = places.announce(present(1)).unwrap();
        let stale = place.join("0202020202020202.json");
        fs::write(&stale, serde_json::to_vec(&present(2)).unwrap()).unwrap();
        assert_eq!(places.list(), [present(1)]);
        assert!(!stale.exists());
        drop(alive);
    }

    #[test]
    fn an_agent_that_starts_again_replaces_its_file_and_the_old_one_does_not_remove_it() {
        let directory = tempfile::tempdir().unwrap();
        let (places, _) = places(&directory);
        let old = places.announce(present(1)).unwrap();
        let _new = places.announce(present(1)).unwrap();
        drop(old);
        assert_eq!(places.list(), [present(1)]);
    }

    #[test]
    fn a_wiped_directory_is_filled_again() {
        let directory = tempfile::tempdir().unwrap();
        let (places, place) = places(&directory);
        let mut presence = places.announce(present(1)).unwrap();
        fs::remove_dir_all(place.parent().unwrap()).unwrap();
        assert!(places.list().is_empty());
        presence.refresh().unwrap();
        assert_eq!(places.list(), [present(1)]);
    }

    #[test]
    fn what_is_no_agents_file_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let (places, place) = places(&directory);
        let _alive = places.announce(present(1)).unwrap();
        let at = |name: &str| place.join(name);
        std::os::unix::fs::symlink("/etc/passwd", at("link.json")).unwrap();
        fs::create_dir(at("directory.json")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo.json"), rustix::fs::Mode::RUSR).unwrap();
        let held: Vec<File> = [("huge.json", vec![b' '; 10_000]), ("text.json", b"hello".to_vec())]
            .into_iter()
            .map(|(name, content)| {
                fs::write(at(name), content).unwrap();
                let file = File::open(at(name)).unwrap();
                system::lock(&file, Lock::Exclusive).unwrap();
                file
            })
            .collect();
        assert_eq!(places.list(), [present(1)]);
        drop(held);
    }

    #[test]
    fn a_directory_that_anybody_may_write_to_is_neither_read_nor_written() {
        let directory = tempfile::tempdir().unwrap();
        let (places, place) = places(&directory);
        let _alive = places.announce(present(1)).unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(places.list().is_empty());
        assert_eq!(places.untrusted(), std::slice::from_ref(&place));
        assert_eq!(places.announce(present(2)).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn the_directory_of_a_third_user_and_one_that_nothing_is_known_of_are_not_trusted() {
        let of = |owner, mode| may_trust(Access::Bits { owner, mode }, Some(7));
        assert!(of(7, 0o755) && of(0, 0o775));
        assert!(!of(8, 0o700) && !of(7, 0o777) && !of(0, 0o1777));
        assert!(may_trust(Access::Profile, None) && !may_trust(Access::Unknown, None));
    }
}
