//! Files below a root where the kernel does not resolve links inside it: macOS and Windows.
//!
//! A path in a declared root is walked step by step; a link begins again at the root or goes on beside it, and `..` of
//! the root is the root. Between the walk and the opening the operator's tree could change: it is taken to stand still.

use std::{
    ffi::OsString,
    fs::{File, Metadata},
    io,
    path::{Component, Path, PathBuf},
};

use tropa_proto::system;

use super::{MAX_ENTRIES, Root};

/// Links on one path, as in Linux (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// Looks at what is there, of whatever kind, without opening it.
pub(super) fn look(root: &Root, path: &str) -> io::Result<Metadata> {
    std::fs::metadata(place(root, path)?)
}

pub(super) fn open(root: &Root, path: &str) -> io::Result<File> {
    let place = place(root, path)?;
    // What may be opened only as a link has been resolved, or is the machine's own.
    let place = if root.declared { place } else { std::fs::canonicalize(place)? };
    system::files(0).read(true).open(place)
}

/// The names in a directory, at most [`MAX_ENTRIES`], in no order.
pub(super) fn names(root: &Root, path: &str) -> io::Result<Vec<String>> {
    let entries = std::fs::read_dir(place(root, path)?)?.take(MAX_ENTRIES);
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

pub(super) fn link(root: &Root, path: &str) -> io::Result<PathBuf> {
    let path = Path::new(path);
    let (Some(parent), Some(name)) = (path.parent().and_then(Path::to_str), path.file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    std::fs::read_link(place(root, parent)?.join(name))
}

/// Of macOS and Windows no signal asks for it.
pub(super) fn device(_: &Root, _: &str) -> Option<u64> {
    None
}

pub(super) fn on_procfs(_: &Root, _: &str) -> bool {
    false
}

/// Neither has files of processes or devices that end.
pub(super) fn has_ended(_: &io::Error) -> bool {
    false
}

/// Where a path below the root leads.
fn place(root: &Root, path: &str) -> io::Result<PathBuf> {
    let path = Path::new(path.trim_start_matches('/'));
    if !root.declared {
        return Ok(root.path.join(path));
    }
    // Components that are still to go, the next one last.
    let mut rest: Vec<OsString> = steps(path)?;
    let mut below = PathBuf::new();
    let mut links = 0;
    while let Some(step) = rest.pop() {
        if step == ".." {
            below.pop();
            continue;
        }
        let here = root.path.join(&below).join(&step);
        match std::fs::read_link(&here) {
            Ok(target) if links < MAX_LINKS => {
                links += 1;
                if target.has_root() {
                    below = PathBuf::new();
                }
                rest.extend(steps(&target)?);
            }
            Ok(_) => return Err(io::Error::other("too many links")),
            // No link, or not there: opening it tells which.
            Err(_) => below.push(step),
        }
    }
    Ok(root.path.join(below))
}

/// The steps of a path, the first one last. A drive in it leads out of every tree.
fn steps(path: &Path) -> io::Result<Vec<OsString>> {
    let mut steps = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(step) => steps.push(step.to_owned()),
            Component::ParentDir => steps.push("..".into()),
            Component::RootDir | Component::CurDir => {}
            Component::Prefix(_) => return Err(io::Error::other("leads to another drive")),
        }
    }
    steps.reverse();
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::unix::fs::symlink};

    use super::{super::tests::tree, *};

    fn text(root: &Root, path: &str) -> Option<String> {
        let mut text = String::new();
        open(root, path).ok()?.read_to_string(&mut text).ok()?;
        Some(text)
    }

    #[test]
    fn every_link_of_a_declared_tree_is_resolved_inside_it() {
        let (directory, root) = tree(&[("etc/machine-id", "theirs"), ("a/b/file", "deep")]);
        let at = |name: &str| directory.path().join(name);
        symlink("/etc/machine-id", at("absolute")).unwrap();
        symlink("../../../../../../etc/machine-id", at("a/up")).unwrap();
        symlink("a/b", at("inner")).unwrap();
        symlink("loop", at("loop")).unwrap();
        for path in
            ["etc/machine-id", "absolute", "a/up", "../../etc/machine-id", "/absolute", "a/../absolute"]
        {
            assert_eq!(text(&root, path).as_deref(), Some("theirs"), "{path}");
        }
        assert_eq!(text(&root, "inner/file").as_deref(), Some("deep"));
        assert_eq!(link(&root, "inner").unwrap(), Path::new("a/b"));
        assert!(open(&root, "loop").is_err() && look(&root, "missing/x").is_err());
        assert_eq!(names(&root, "inner").unwrap(), ["file"]);
        assert!(look(&root, "inner").unwrap().is_dir());
    }

    #[test]
    fn a_pipe_is_looked_at_and_opening_it_does_not_wait() {
        let (directory, root) = tree(&[]);
        rustix::fs::mkfifoat(rustix::fs::CWD, directory.path().join("fifo"), rustix::fs::Mode::RUSR).unwrap();
        assert!(!look(&root, "fifo").unwrap().is_file());
        assert!(!open(&root, "fifo").unwrap().metadata().unwrap().is_file());
    }
}
