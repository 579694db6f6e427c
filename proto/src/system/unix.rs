//! Linux and macOS: owners and permission bits, `flock`, `statfs`.

use std::{
    fs::{DirBuilder, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{Access as Wanted, AtFlags, CWD, Mode, OFlags};

use super::{Access, FileSystem, Lock};

pub(super) fn run_directory() -> PathBuf {
    PathBuf::from(if cfg!(target_os = "macos") { "/var/run" } else { "/run" })
}

pub(super) fn access(_: &Path, found: &Metadata) -> Access {
    Access::Bits { owner: found.uid(), mode: found.mode() & 0o7777 }
}

pub(super) fn user() -> Option<u32> {
    Some(rustix::process::geteuid().as_raw())
}

pub(super) fn directories(mode: u32) -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(mode);
    builder
}

pub(super) fn files(mode: u32) -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    options.mode(mode).custom_flags(flags.bits().cast_signed());
    options
}

pub(super) fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    // The type of the field differs between platforms; permission bits fit in all of them.
    Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(mode as _))?)
}

pub(super) fn set_directory_mode(directory: &Path, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode))
}

pub(super) fn may_make_files(directory: &Path) -> io::Result<()> {
    Ok(rustix::fs::accessat(CWD, directory, Wanted::WRITE_OK | Wanted::EXEC_OK, AtFlags::EACCESS)?)
}

pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

pub(super) fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|found| (found.dev(), found.ino()))
}

pub(super) fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// A file with a lock that others can read all the same: `flock` says nothing of reading.
#[derive(Debug)]
pub struct Lockable(File);

impl Lockable {
    /// Takes an open file; nothing is locked yet.
    ///
    /// # Errors
    /// None here; elsewhere those of a second file.
    pub fn new(file: File, _: &Path) -> io::Result<Self> {
        Ok(Self(file))
    }

    /// The file itself.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0
    }

    /// As [`super::try_lock`].
    ///
    /// # Errors
    /// As there.
    pub fn try_lock(&self, lock: Lock) -> io::Result<bool> {
        super::try_lock(&self.0, lock)
    }

    /// As [`super::lock`].
    ///
    /// # Errors
    /// As there.
    pub fn lock(&self, lock: Lock) -> io::Result<()> {
        super::lock(&self.0, lock)
    }

    /// Removes such a file.
    ///
    /// # Errors
    /// Those of the system.
    pub fn remove(path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    /// Gives such a file, whose lock may be held, another name, in whose place nothing is kept.
    ///
    /// # Errors
    /// Those of the system.
    pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }
}

pub(super) fn free_space(path: &Path) -> io::Result<Option<u64>> {
    let found = rustix::fs::statvfs(path)?;
    Ok(Some(found.f_bavail.saturating_mul(found.f_frsize)))
}

#[cfg(target_os = "linux")]
pub(super) fn file_system(path: &Path) -> io::Result<FileSystem> {
    let found = rustix::fs::statfs(path)?;
    // The magic has 32 bits, in a field that is wider and signed on most platforms.
    Ok(by_magic((i128::from(found.f_type) & 0xffff_ffff) as u32))
}

/// Tells a file system by the magic of `statfs`. Numbers from `linux/magic.h` and from the file systems' own headers.
#[cfg(target_os = "linux")]
fn by_magic(magic: u32) -> FileSystem {
    const OTHERS: [(u32, FileSystem); 20] = [
        (0x794c_7630, FileSystem::Passing),
        (0x0102_1994, FileSystem::Passing),
        (0x8584_58f6, FileSystem::Passing),
        (0x6573_5546, FileSystem::Fuse),
        (0x6969, FileSystem::Network("NFS")),
        (0x517b, FileSystem::Network("SMB")),
        (0xfe53_4d42, FileSystem::Network("SMB2")),
        (0xff53_4d42, FileSystem::Network("CIFS")),
        (0x0102_1997, FileSystem::Network("9p")),
        (0x5346_414f, FileSystem::Network("AFS")),
        (0x6b41_4653, FileSystem::Network("AFS")),
        (0x7375_7245, FileSystem::Network("Coda")),
        (0x00c3_6400, FileSystem::Network("Ceph")),
        (0x564c, FileSystem::Network("NCP")),
        (0x0116_1970, FileSystem::Network("GFS2")),
        (0x7461_636f, FileSystem::Network("OCFS2")),
        (0x0bd0_0bd0, FileSystem::Network("Lustre")),
        (0x4750_4653, FileSystem::Network("GPFS")),
        (0x1983_0326, FileSystem::Network("BeeGFS")),
        (0x786f_4256, FileSystem::Network("a shared folder of VirtualBox")),
    ];
    OTHERS.iter().find(|(number, _)| *number == magic).map_or(FileSystem::Local, |(_, kind)| *kind)
}

/// macOS says itself which file systems are local; of those that are, it does not tell which pass.
#[cfg(target_os = "macos")]
pub(super) fn file_system(path: &Path) -> io::Result<FileSystem> {
    /// `MNT_LOCAL` of `sys/mount.h`.
    const LOCAL: u32 = 0x1000;
    let found = rustix::fs::statfs(path)?;
    let is_local = found.f_flags & LOCAL != 0;
    Ok(if is_local { FileSystem::Local } else { FileSystem::Network("not of this Mac") })
}

#[cfg(target_os = "linux")]
pub(super) fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn resident() -> Option<u64> {
    super::asked_of_sysinfo()
}

pub(super) fn network_namespace() -> u64 {
    std::fs::metadata("/proc/self/ns/net").map_or(0, |namespace| namespace.ino())
}

pub(super) fn no_core() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // Where the system refuses the limit, what it writes is up to its own settings.
    let _ = setrlimit(Resource::Core, none);
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_known_by_their_magic() {
        assert_eq!(by_magic(0x6969), FileSystem::Network("NFS"));
        assert_eq!(by_magic(0xff53_4d42), FileSystem::Network("CIFS"));
        assert_eq!(by_magic(0x0102_1994), FileSystem::Passing, "tmpfs");
        assert_eq!(by_magic(0xef53), FileSystem::Local, "ext4");
    }
}
