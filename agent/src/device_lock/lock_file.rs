//! One lock file: made so that all see one id, opened so that nothing else is mistaken for it.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tropa_proto::{
    id::{hex, unhex},
    system::{self, Access, Lock, Lockable},
};

use super::{DeviceName, LeftBehind, Line, LockError};

/// Bytes of a lock file: a header and a record of a few hundred bytes for each of at most some dozen attempts.
const MAX_CONTENT: usize = 64 << 10;

/// Files of a lock directory that are looked at: some per device, and a host has fewer than 100 devices.
const MAX_FILES: usize = 1024;

/// What to lock, by file name: the order of locking.
pub(super) type Plan = BTreeMap<String, (DeviceName, Mode)>;

/// In which way a file is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Locked for us alone.
    Exclusive,
    /// Locked together with others who hold other parts of the same device.
    Shared,
    /// Not locked: a part of a device that is locked for us alone, so nobody can hold it.
    Part,
}

impl Mode {
    /// The lock that it takes; none for a part.
    fn lock(self) -> Option<Lock> {
        match self {
            Self::Exclusive => Some(Lock::Exclusive),
            Self::Shared => Some(Lock::Shared),
            Self::Part => None,
        }
    }
}

/// The first line of a lock file.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    /// The version of the format.
    tropa_lock: u8,
    /// 128 random bits, by which agents find out that they see one file.
    id: String,
    /// The file of the device that this one is a part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
}

/// An open lock file; closing it releases its lock.
#[derive(Debug)]
pub(super) struct LockFile {
    file: Lockable,
    path: PathBuf,
    mode: Mode,
    id: [u8; 16],
    parent: Option<String>,
    header_len: u64,
}

impl LockFile {
    /// Opens the file of a device, and makes it where it is missing.
    pub(super) fn open(directory: &Path, device: &DeviceName, mode: Mode) -> Result<Self, LockError> {
        let path = directory.join(device.file_name());
        match Self::open_existing(&path, mode) {
            Err(LockError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let parent = device.parent().map(|parent| parent.file_name());
                create(directory, &path, parent)?;
                Self::open_existing(&path, mode)
            }
            other => other,
        }
    }

    /// Opens the files of the parts of those devices that are locked exclusively, unless they are locked too.
    pub(super) fn parts(directory: &Path, locked: &[Self]) -> Result<Vec<Self>, LockError> {
        let whole: Vec<String> =
            locked.iter().filter(|file| file.mode == Mode::Exclusive).map(Self::name).collect();
        if !whole.iter().any(|name| name == "dram" || name.starts_with("gpu-")) {
            return Ok(Vec::new());
        }
        let entries = std::fs::read_dir(directory).map_err(at("list", directory))?;
        let mut parts = Vec::new();
        for entry in entries.take(MAX_FILES) {
            let path = entry.map_err(at("list", directory))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_part = name.starts_with("mig-") || name.starts_with("dram-node");
            if !is_part || name.ends_with(".wait") || locked.iter().any(|file| file.name() == name) {
                continue;
            }
            // What is no lock file of ours guards nothing of ours.
            let Ok(file) = Self::open_existing(&path, Mode::Part) else { continue };
            if file.parent.as_ref().is_some_and(|parent| whole.contains(parent)) {
                parts.push(file);
            }
        }
        Ok(parts)
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// Takes the lock if it is free.
    pub(super) fn try_lock(&self) -> Result<bool, LockError> {
        match self.mode.lock() {
            Some(lock) => self.file.try_lock(lock).map_err(at("lock", &self.path)),
            None => Ok(true),
        }
    }

    /// Waits for the lock, for as long as it takes.
    pub(super) fn lock(&self) -> Result<(), LockError> {
        match self.mode.lock() {
            Some(lock) => self.file.lock(lock).map_err(at("lock", &self.path)),
            None => Ok(()),
        }
    }

    /// Says whether the path still names the file that is open.
    pub(super) fn is_in_place(&self) -> bool {
        system::is_same(self.file.file(), &self.path)
    }

    /// Tells who shares the lock directory: a keyed hash, so that neither the random id nor the inode is shown.
    pub(super) fn lock_id(&self) -> Result<[u8; 8], LockError> {
        let (volume, number) = system::identity(self.file.file()).map_err(at("look at", &self.path))?;
        // The key comes first and all parts have fixed lengths, which is all that a truncated hash needs here.
        let hash = Sha256::new()
            .chain_update(self.id)
            .chain_update(b"tropa-lock-id-v1")
            .chain_update(volume.to_le_bytes())
            .chain_update(number.to_le_bytes())
            .finalize();
        let mut id = [0; 8];
        id.copy_from_slice(&hash[..8]);
        Ok(id)
    }

    /// Names whoever holds the file; read without a lock, so it may be a moment old.
    pub(super) fn holder(&self) -> String {
        let lines = self.lines().unwrap_or_default();
        lines
            .into_iter()
            .find_map(|line| if let Line::Holder(name) = line { Some(name) } else { None })
            .unwrap_or_else(|| format!("somebody who holds {}", self.name()))
    }

    /// Adds what earlier holders wrote and did not clear.
    pub(super) fn left_behind(&self, left: &mut LeftBehind) -> Result<(), LockError> {
        for line in self.lines()? {
            match line {
                Line::Holder(_) => {}
                Line::Record(record) => left.records.push(record),
                Line::Unreadable => left.unreadable = true,
            }
        }
        Ok(())
    }

    /// Replaces everything below the header.
    pub(super) fn write_lines(&self, lines: &[Line]) -> Result<(), LockError> {
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, line).map_err(|error| at("write", &self.path)(error.into()))?;
            text.push(b'\n');
        }
        if text.len() + 512 > MAX_CONTENT {
            let what = format!("full: {} bytes of settle records", text.len());
            return Err(LockError::Unfit { path: self.path.clone(), what });
        }
        // A death between the two leaves the end of an old line, which the next holder takes for a request.
        let mut file = self.file.file();
        file.seek(SeekFrom::Start(self.header_len))
            .and_then(|_| file.write_all(&text))
            .map_err(at("write", &self.path))?;
        file.set_len(self.header_len + text.len() as u64).map_err(at("shorten", &self.path))
    }

    /// Leaves a mark that somebody waits; it lasts until the returned file is closed.
    pub(super) fn mark_waiting(&self) -> Result<File, LockError> {
        let path = self.wait_path();
        let mark = options().create(true).truncate(false).open(&path).map_err(at("open", &path))?;
        system::lock(&mark, Lock::Shared).map_err(at("lock", &path))?;
        Ok(mark)
    }

    /// Says whether somebody waits for this file; a failure to find out counts as yes.
    pub(super) fn someone_waits(&self) -> bool {
        match options().open(self.wait_path()) {
            Ok(mark) => !matches!(system::try_lock(&mark, Lock::Exclusive), Ok(true)),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    fn open_existing(path: &Path, mode: Mode) -> Result<Self, LockError> {
        let file = options().open(path).map_err(at("open", path))?;
        let found = file.metadata().map_err(at("look at", path))?;
        let unfit = |what: String| Err(LockError::Unfit { path: path.into(), what });
        if !found.is_file() {
            return unfit("not a regular file".to_owned());
        }
        if matches!(system::access(path, &found), Access::Bits { mode, .. } if mode & 0o007 != 0) {
            return unfit(format!("open to everybody: chmod 0660 {}", path.display()));
        }
        let content = read(&file).map_err(at("read", path))?;
        let header_len = content.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let header: Option<Header> = serde_json::from_slice(&content[..header_len]).ok();
        let Some((id, parent)) = header.and_then(|header| Some((unhex(&header.id)?, header.parent))) else {
            return unfit("not a lock file of tropa; stop the agents of this host and remove it".to_owned());
        };
        let file = Lockable::new(file, path).map_err(at("open", path))?;
        Ok(Self { file, path: path.into(), mode, id, parent, header_len: header_len as u64 })
    }

    fn lines(&self) -> Result<Vec<Line>, LockError> {
        let content = read(self.file.file()).map_err(at("read", &self.path))?;
        let body = content.get(self.header_len as usize..).unwrap_or_default();
        let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        Ok(lines.map(|line| serde_json::from_slice(line).unwrap_or(Line::Unreadable)).collect())
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn wait_path(&self) -> PathBuf {
        self.path.with_file_name(format!("{}.wait", self.name()))
    }
}

/// Makes the file under another name and links it to its own: it is never seen without its id.
fn create(directory: &Path, path: &Path, parent: Option<String>) -> Result<(), LockError> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| at("find a name beside", path)(io::Error::other(error)))?;
    let temporary = directory.join(format!(".new-{}", hex(&random[..16])));
    let header = Header { tropa_lock: 1, id: hex(&random[16..]), parent };
    let mut text = serde_json::to_vec(&header).map_err(|error| at("write", path)(error.into()))?;
    text.push(b'\n');
    let mut file = options().create_new(true).open(&temporary).map_err(at("make", path))?;
    let made = file.write_all(&text).and_then(|()| system::set_mode(&file, 0o660)).and_then(|()| {
        match std::fs::hard_link(&temporary, path) {
            // Another agent was faster; its file is as good.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    });
    let removed = std::fs::remove_file(&temporary);
    made.and(removed).map_err(at("make", path))
}

fn options() -> OpenOptions {
    let mut options = system::files(0o660);
    options.read(true).write(true);
    options
}

fn read(mut file: &File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.rewind()?;
    file.take(MAX_CONTENT as u64).read_to_end(&mut content)?;
    Ok(content)
}

fn at(what: &'static str, path: &Path) -> impl Fn(io::Error) -> LockError {
    let path = path.to_owned();
    move |source| LockError::Io { what, path: path.clone(), source }
}
