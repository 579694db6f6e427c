//! Files below a root on Linux, where the kernel resolves links inside a declared root (`openat2`).

use std::{
    fs::{File, Metadata},
    io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Dir, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{MAX_ENTRIES, Root};

/// Looks at what is there, of whatever kind, without opening it for reading.
pub(super) fn look(root: &Root, path: &str) -> io::Result<Metadata> {
    File::from(at(root, path, OFlags::PATH)?).metadata()
}

pub(super) fn open(root: &Root, path: &str) -> io::Result<File> {
    Ok(at(root, path, OFlags::empty())?.into())
}

/// The names in a directory, at most [`MAX_ENTRIES`], in no order.
pub(super) fn names(root: &Root, path: &str) -> io::Result<Vec<String>> {
    let entries = Dir::new(at(root, path, OFlags::DIRECTORY)?)?;
    let names = entries
        .take(MAX_ENTRIES)
        .filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned));
    Ok(names.filter(|name| name != "." && name != "..").collect())
}

pub(super) fn link(root: &Root, path: &str) -> io::Result<PathBuf> {
    let path = Path::new(path);
    let (Some(parent), Some(name)) = (path.parent().and_then(Path::to_str), path.file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let directory = at(root, parent, OFlags::DIRECTORY | OFlags::PATH)?;
    let target = rustix::fs::readlinkat(&directory, name, Vec::new())?;
    Ok(std::ffi::OsString::from_vec(target.into_bytes()).into())
}

pub(super) fn device(root: &Root, path: &str) -> Option<u64> {
    look(root, path).ok().map(|found| found.dev())
}

pub(super) fn on_procfs(root: &Root, path: &str) -> bool {
    let found = at(root, path, OFlags::PATH).and_then(|file| rustix::fs::fstatfs(&file));
    found.is_ok_and(|found| found.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// Says whether an error tells of a process or a device that has ended.
pub(super) fn has_ended(error: &io::Error) -> bool {
    let ended = [Errno::NODEV, Errno::NXIO, Errno::SRCH];
    Errno::from_io_error(error).is_some_and(|errno| ended.contains(&errno))
}

fn at(root: &Root, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    // A FIFO must not stop us, and no file that we read may become our terminal.
    let mut flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let path = path.trim_start_matches('/');
    if !root.declared {
        return rustix::fs::open(root.path.join(path), flags, Mode::empty());
    }
    let directory = rustix::fs::open(&root.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    // `openat2` refuses what says nothing, and an empty path.
    if flags.contains(OFlags::PATH) {
        flags.remove(OFlags::NONBLOCK | OFlags::NOCTTY);
    }
    let path = if path.is_empty() { "." } else { path };
    rustix::fs::openat2(&directory, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
}
