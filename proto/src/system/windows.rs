//! Windows: access lists that are not read, locks of ranges that also keep readers out, no directory that can be
//! flushed. All of it through safe interfaces: the standard library, `winapi-util` and `sysinfo`.

use std::{
    ffi::OsString,
    fs::{DirBuilder, File, Metadata, OpenOptions},
    io,
    os::windows::fs::OpenOptionsExt as _,
    path::{Component, Path, PathBuf, Prefix},
};

use super::{Access, FileSystem, Lock};

/// `FILE_FLAG_OPEN_REPARSE_POINT`: a link is opened itself and not what it names.
const NO_FOLLOW: u32 = 0x0020_0000;

/// `FILE_FLAG_BACKUP_SEMANTICS`: directories too.
const ALSO_DIRECTORIES: u32 = 0x0200_0000;

pub(super) fn run_directory() -> PathBuf {
    std::env::var_os("ProgramData").map_or_else(|| PathBuf::from(r"C:\ProgramData"), PathBuf::from)
}

pub(super) fn access(path: &Path, _: &Metadata) -> Access {
    let whole = |path: &Path| std::fs::canonicalize(path).ok();
    let profile = std::env::var_os("USERPROFILE").and_then(|profile| whole(Path::new(&profile)));
    match (whole(path), profile) {
        (Some(path), Some(profile)) if path.starts_with(&profile) => Access::Profile,
        _ => Access::Unknown,
    }
}

pub(super) fn user() -> Option<u32> {
    None
}

pub(super) fn directories(_: u32) -> DirBuilder {
    DirBuilder::new()
}

pub(super) fn files(_: u32) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(NO_FOLLOW);
    options
}

pub(super) fn set_mode(_: &File, _: u32) -> io::Result<()> {
    Ok(())
}

pub(super) fn set_directory_mode(_: &Path, _: u32) -> io::Result<()> {
    Ok(())
}

/// No question but the deed itself is answered by an access list: a file that goes when it is closed.
pub(super) fn may_make_files(directory: &Path) -> io::Result<()> {
    const DELETE_ON_CLOSE: u32 = 0x0400_0000;
    const READ_WRITE_DELETE: u32 = 0xc001_0000;
    let path = directory.join(format!(".may-write.{}", std::process::id()));
    let mut options = OpenOptions::new();
    options
        .create(true)
        .write(true)
        .truncate(true)
        .access_mode(READ_WRITE_DELETE)
        .custom_flags(DELETE_ON_CLOSE);
    options.open(path).map(|_| ())
}

pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    std::fs::metadata(directory).map(|_| ())
}

pub(super) fn identity(file: &File) -> io::Result<(u64, u64)> {
    winapi_util::file::information(file).map(|found| (found.volume_serial_number(), found.file_index()))
}

pub(super) fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    // No access is needed to ask for the number, so no lock and no access list stands against it.
    identity(&OpenOptions::new().access_mode(0).custom_flags(NO_FOLLOW | ALSO_DIRECTORIES).open(path)?)
}

/// A file with a lock that others can read all the same. A locked range cannot be read here, so the lock lies on a
/// file of its own, beside the other and with `.guard` behind its name.
#[derive(Debug)]
pub struct Lockable {
    file: File,
    guard: File,
}

impl Lockable {
    /// Takes an open file and opens the one with its lock, which is made where it is missing; nothing is locked yet.
    ///
    /// # Errors
    /// When there can be no file beside it.
    pub fn new(file: File, path: &Path) -> io::Result<Self> {
        let mut options = files(0);
        let guard = options.read(true).write(true).create(true).truncate(false).open(guard(path))?;
        Ok(Self { file, guard })
    }

    /// The file itself.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// As [`super::try_lock`].
    ///
    /// # Errors
    /// As there.
    pub fn try_lock(&self, lock: Lock) -> io::Result<bool> {
        super::try_lock(&self.guard, lock)
    }

    /// As [`super::lock`].
    ///
    /// # Errors
    /// As there.
    pub fn lock(&self, lock: Lock) -> io::Result<()> {
        super::lock(&self.guard, lock)
    }

    /// Removes such a file.
    ///
    /// # Errors
    /// Those of the system.
    pub fn remove(path: &Path) -> io::Result<()> {
        std::fs::remove_file(path).and(gone(&guard(path)))
    }

    /// Gives such a file, whose lock may be held, another name, in whose place nothing is kept.
    ///
    /// # Errors
    /// Those of the system.
    pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
        // The lock first: whoever finds the file finds it locked.
        std::fs::rename(guard(from), guard(to)).and(std::fs::rename(from, to))
    }
}

fn guard(path: &Path) -> PathBuf {
    let mut name = OsString::from(path.file_name().unwrap_or_default());
    name.push(".guard");
    path.with_file_name(name)
}

fn gone(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(super) fn free_space(path: &Path) -> io::Result<Option<u64>> {
    let path = std::fs::canonicalize(path)?;
    let drive = drive_of(&path);
    let disks = sysinfo::Disks::new_with_refreshed_list().map_err(io::Error::other)?;
    let disk = disks.iter().find(|disk| drive.is_some() && drive_of(disk.mount_point()) == drive);
    Ok(disk.map(|disk| disk.available_space()))
}

pub(super) fn file_system(path: &Path) -> io::Result<FileSystem> {
    // The whole name of what lies on a drive that stands for a share begins with its server.
    let path = std::fs::canonicalize(path)?;
    Ok(if drive_of(&path).is_some() {
        FileSystem::Local
    } else {
        FileSystem::Network("not a drive of its own")
    })
}

/// The letter of the drive that a whole path begins with.
fn drive_of(path: &Path) -> Option<u8> {
    let Some(Component::Prefix(prefix)) = path.components().next() else { return None };
    match prefix.kind() {
        Prefix::Disk(letter) | Prefix::VerbatimDisk(letter) => Some(letter.to_ascii_uppercase()),
        Prefix::Verbatim(_) | Prefix::VerbatimUNC(..) | Prefix::DeviceNS(_) | Prefix::UNC(..) => None,
    }
}

pub(super) fn resident() -> Option<u64> {
    super::asked_of_sysinfo()
}

pub(super) fn network_namespace() -> u64 {
    0
}

pub(super) fn no_core() {
    // Windows writes no core; what its error reporting keeps of a crash is the operator's setting.
}
