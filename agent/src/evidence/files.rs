//! Bounded reading below a root directory: the only way in which the readers touch a file.
//!
//! A file that answers is not yet a file to be believed. A fixture tree, a bind mount in a container or a broken
//! driver can put a directory, a FIFO, a gigabyte or binary rubbish where a line of text belongs. Every such case
//! becomes a [`Reading`] that says what was found; nothing here panics, blocks, or reads more than a bound.
//!
//! The root is `/`, or a directory that the operator declared to be another host. Below a declared root every
//! symbolic link is resolved inside it (by the kernel on Linux, step by step elsewhere), so that a tree cannot borrow
//! the identity of the machine it lies on.
//!
//! # The tree of a declared root
//!
//! The usual files in the usual places (`proc/sys/kernel/random/boot_id`, `etc/machine-id`, `sys/class/dmi/id/…`,
//! `proc/cpuinfo`, `proc/meminfo`, `proc/self/status`, …), all of them optional, and these for what is no file:
//!
//! | file | content |
//! | --- | --- |
//! | `tropa/os` | `linux` (also where the file is missing), `macos` or `windows` |
//! | `tropa/epoch_ns` | boot epoch in nanoseconds, a decimal number |
//! | `tropa/time_namespace` | `1` or `true`: a time namespace shifts the epoch; without it the rules for `/proc` hold |
//! | `tropa/boot_id_virtual` | `1` or `true`: the boot id is a container's own (live: another `st_dev`) |
//! | `tropa/gpus.json` | array of `{vendor, name, uuid, kind: full\|mig\|vgpu, parent, pci, memory, uma}` |
//! | `tropa/macos/sysctl` | lines as `sysctl` prints them: `kern.bootsessionuuid: …` |
//! | `tropa/macos/ioreg` | what `ioreg -rd1 -c IOPlatformExpertDevice` prints |
//! | `tropa/windows/cryptography`, `bios`, `product`, `processor` | what `reg.exe query` prints |

#[cfg(target_os = "linux")]
#[path = "files/linux.rs"]
mod below;
#[cfg(not(target_os = "linux"))]
#[path = "files/walk.rs"]
mod below;
// Its tests run where the others do.
#[cfg(all(test, target_os = "linux"))]
#[expect(dead_code, reason = "Linux needs none of it")]
mod walk;

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::PathBuf,
};

use tropa_proto::{bounded::Text, evidence::Reading};

/// Bytes of one file: an identifier has some dozens, the largest text (a process's status) some thousands.
pub const MAX_FILE: usize = 64 << 10;

/// Bytes of `/proc/cpuinfo`, whose length grows with the processors (about 1.6 KiB each): some 2,500 of them.
pub const MAX_CPUINFO: usize = 4 << 20;

/// Entries of one directory: `/proc` of a busy host has some ten thousand.
pub const MAX_ENTRIES: usize = 65_536;

/// The end of a text file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Whole lines; what is not UTF-8 is read with replacement characters.
    pub text: String,
    /// Nothing of the file lies before them.
    pub whole: bool,
}

/// The root of a file system: the machine's own, or a directory that stands for another host.
#[derive(Clone, Debug)]
pub struct Root {
    path: PathBuf,
    declared: bool,
}

impl Root {
    /// Takes the machine's own root.
    #[must_use]
    pub fn live() -> Self {
        let drive = std::env::var("SystemDrive").ok().filter(|_| cfg!(windows));
        Self { path: PathBuf::from(format!("{}/", drive.unwrap_or_default())), declared: false }
    }

    /// Takes a directory that the operator declares to be a host; the evidence will say so.
    #[must_use]
    pub fn declared(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), declared: true }
    }

    /// Says whether the operator declared this root.
    #[must_use]
    pub fn is_declared(&self) -> bool {
        self.declared
    }

    /// Reads a text file of at most [`MAX_FILE`] bytes, as it is. An empty file is a value: what it means depends
    /// on the signal.
    #[must_use]
    pub fn text(&self, path: &str) -> Reading<String> {
        self.text_up_to(path, MAX_FILE)
    }

    /// Reads a text file of at most `max` bytes.
    #[must_use]
    pub fn text_up_to(&self, path: &str, max: usize) -> Reading<String> {
        match self.bytes(path, max, Whole::Required) {
            Reading::Value(bytes) => as_text(bytes),
            Reading::Virtual(bytes) => as_text(bytes),
            Reading::Absent => Reading::Absent,
            Reading::Denied => Reading::Denied,
            Reading::Rejected(why) => Reading::Rejected(why),
        }
    }

    /// Reads a file of NUL-separated texts (`cmdline`, devicetree strings), at most its first [`MAX_FILE`] bytes; text
    /// that is not UTF-8 is read with replacement characters.
    #[must_use]
    pub fn strings(&self, path: &str) -> Reading<Vec<String>> {
        self.texts(path, MAX_FILE, Whole::Beginning)
    }

    /// As [`Root::strings`], where a part of the texts would mean something else than all of them (`environ`): at most
    /// `max` bytes.
    #[must_use]
    pub fn all_strings(&self, path: &str, max: usize) -> Reading<Vec<String>> {
        self.texts(path, max, Whole::Required)
    }

    fn texts(&self, path: &str, max: usize, whole: Whole) -> Reading<Vec<String>> {
        match self.bytes(path, max, whole) {
            Reading::Value(bytes) | Reading::Virtual(bytes) => Reading::Value(
                bytes
                    .split(|byte| *byte == 0)
                    .filter(|piece| !piece.is_empty())
                    .map(|piece| String::from_utf8_lossy(piece).into_owned())
                    .collect(),
            ),
            Reading::Absent => Reading::Absent,
            Reading::Denied => Reading::Denied,
            Reading::Rejected(why) => Reading::Rejected(why),
        }
    }

    /// Reads one trimmed line; `None` for whatever is not there, not readable, or not text. For values that are
    /// no evidence by themselves (a flag, a driver's class).
    #[must_use]
    pub fn line(&self, path: &str) -> Option<String> {
        match self.text(path) {
            Reading::Value(text) | Reading::Virtual(text) => Some(text.trim().to_owned()),
            Reading::Absent | Reading::Denied | Reading::Rejected(_) => None,
        }
    }

    /// Opens a regular file. What else is there is refused before it is opened: a pipe that got a reader for a moment
    /// would be another pipe to whoever writes into it.
    #[must_use]
    pub fn regular(&self, path: &str) -> Reading<File> {
        asked(path);
        match below::look(self, path) {
            Ok(found) if !found.is_file() => return rejected("not a regular file"),
            Ok(_) => {}
            Err(error) => return failed(&error),
        }
        match below::open(self, path) {
            Ok(file) => Reading::Value(file),
            Err(error) => failed(&error),
        }
    }

    /// Reads the end of a regular file that may grow while it is read: the whole lines among its last `max` bytes.
    #[must_use]
    pub fn tail(&self, path: &str, max: u64) -> Reading<Tail> {
        self.regular(path).and_then(|mut file| match end_of(&mut file, max) {
            Ok(tail) => Reading::Value(tail),
            Err(error) => failed(&error),
        })
    }

    /// Lists the names in a directory, sorted, at most [`MAX_ENTRIES`]; nothing where there is no such directory.
    #[must_use]
    pub fn names(&self, path: &str) -> Vec<String> {
        asked(path);
        let mut names = below::names(self, path).unwrap_or_default();
        names.sort();
        names
    }

    /// Says whether something is there, of whatever kind.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        asked(path);
        below::look(self, path).is_ok()
    }

    /// Reads where a symbolic link points, without following it.
    #[must_use]
    pub fn link(&self, path: &str) -> Option<String> {
        asked(path);
        below::link(self, path).ok()?.into_os_string().into_string().ok()
    }

    /// Gives the number of the file system that a file lies on, where the system has such numbers.
    #[must_use]
    pub fn device(&self, path: &str) -> Option<u64> {
        asked(path);
        below::device(self, path)
    }

    /// Says whether a file lies on a procfs, and not on something that was mounted over it.
    #[must_use]
    pub fn on_procfs(&self, path: &str) -> bool {
        asked(path);
        below::on_procfs(self, path)
    }

    fn bytes(&self, path: &str, max: usize, whole: Whole) -> Reading<Vec<u8>> {
        asked(path);
        let opened = below::open(self, path).and_then(|file| Ok((file.metadata()?, file)));
        let file = match opened {
            Ok((found, file)) if found.is_file() => file,
            Ok(_) => return rejected("not a regular file"),
            Err(error) => return failed(&error),
        };
        let mut bytes = Vec::new();
        // One byte more than the bound tells a file that ends there from one that goes on.
        match file.take(max as u64 + 1).read_to_end(&mut bytes) {
            Ok(_) if bytes.len() <= max => Reading::Value(bytes),
            Ok(_) if whole == Whole::Beginning => {
                bytes.truncate(max);
                Reading::Value(bytes)
            }
            Ok(_) => rejected(&format!("longer than {max} bytes")),
            Err(error) => failed(&error),
        }
    }
}

/// Tells the test that wants to know it what the readers touch.
fn asked(path: &str) {
    #[cfg(test)]
    tests::ASKED.with_borrow_mut(|asked| asked.insert(path.trim_start_matches('/').to_owned()));
    #[cfg(not(test))]
    let _ = path;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whole {
    /// A file longer than the bound is no value.
    Required,
    /// The beginning is enough.
    Beginning,
}

/// Makes a rejection with its reason, cut to what the field holds.
pub(crate) fn rejected<T>(why: &str) -> Reading<T> {
    Reading::Rejected(Text::cut(why))
}

/// Says how a file was read that could not be opened or not be read.
pub(crate) fn failed<T>(error: &io::Error) -> Reading<T> {
    let kind = error.kind();
    // Gone, below something that is no directory, or of a process or a device that has ended.
    if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&kind) || below::has_ended(error) {
        Reading::Absent
    } else if kind == io::ErrorKind::PermissionDenied {
        Reading::Denied
    } else {
        rejected(&format!("cannot be read: {error}"))
    }
}

fn end_of(file: &mut File, max: u64) -> io::Result<Tail> {
    let before = file.metadata()?.len().saturating_sub(max);
    // One byte earlier tells a line that begins there from one that is cut.
    file.seek(SeekFrom::Start(before.saturating_sub(1)))?;
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    let is_end = |byte: &u8| *byte == b'\n';
    let from = if before == 0 { 0 } else { bytes.iter().position(is_end).map_or(bytes.len(), |at| at + 1) };
    let to = bytes.iter().rposition(is_end).map_or(from, |at| at + 1);
    let lines = bytes.get(from..to).unwrap_or_default();
    Ok(Tail { text: String::from_utf8_lossy(lines).into_owned(), whole: before == 0 })
}

fn as_text(bytes: Vec<u8>) -> Reading<String> {
    // Devicetree strings and some drivers end with NULs; NULs inside are not text.
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if bytes[..end].contains(&0) {
        return rejected("NUL bytes inside");
    }
    match String::from_utf8(bytes[..end].to_vec()) {
        Ok(text) => Reading::Value(text),
        Err(_) => rejected("not UTF-8"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{cell::RefCell, collections::BTreeSet, os::unix::fs::symlink};

    use rustix::{
        fs::{CWD, Mode},
        io::Errno,
    };

    use super::*;

    thread_local! {
        /// What the readers of this thread have touched, below whatever root.
        pub(crate) static ASKED: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
    }

    /// Writes a fixture tree: pairs of path and content.
    pub(crate) fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let root = Root::declared(directory.path());
        (directory, root)
    }

    #[test]
    fn what_is_no_line_of_text_is_rejected_with_its_reason_and_never_blocks() {
        let (directory, root) = tree(&[("nul", "ab\0cd"), ("end", "ab\0"), ("empty", "")]);
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("huge"), vec![b'a'; MAX_FILE + 1]).unwrap();
        std::fs::write(at("full"), vec![b'a'; MAX_FILE]).unwrap();
        std::fs::write(at("binary"), [0xff, 0xfe]).unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        rustix::fs::mkfifoat(CWD, at("fifo"), Mode::RUSR).unwrap();
        symlink("loop", at("loop")).unwrap();
        for name in ["nul", "huge", "binary", "directory", "fifo", "loop"] {
            assert!(matches!(root.text(name), Reading::Rejected(_)), "{name}: {:?}", root.text(name));
        }
        assert_eq!(root.text("end"), Reading::Value("ab".into()));
        assert_eq!(root.text("empty"), Reading::Value(String::new()));
        assert!(matches!(root.text("full"), Reading::Value(_)));
        assert_eq!(root.text("missing"), Reading::Absent);
        assert_eq!(root.text("end/below"), Reading::Absent);
    }

    #[test]
    fn the_end_of_a_file_is_its_whole_lines_and_a_pipe_is_not_opened() {
        let (directory, root) = tree(&[("log", "one\ntwo\nthree\nfour"), ("line", "one"), ("empty", "")]);
        let text = |name: &str, max| root.tail(name, max).value().map(|tail| (tail.text.clone(), tail.whole));
        assert_eq!(text("log", 100), Some(("one\ntwo\nthree\n".into(), true)), "a line is not written yet");
        assert_eq!(text("log", 10), Some(("three\n".into(), false)), "a line begins there");
        assert_eq!(text("log", 9), Some((String::new(), false)), "a line is cut there");
        assert_eq!(text("log", 0), Some((String::new(), false)));
        assert_eq!(text("line", 100), Some((String::new(), true)));
        assert_eq!(text("empty", 100), Some((String::new(), true)));
        assert_eq!(root.tail("missing", 100), Reading::Absent);
        rustix::fs::mkfifoat(CWD, directory.path().join("fifo"), Mode::RUSR).unwrap();
        assert!(matches!(root.tail("fifo", 100), Reading::Rejected(_)));
        std::fs::write(directory.path().join("binary"), [0xff, 0xfe, b'\n']).unwrap();
        assert_eq!(text("binary", 100), Some(("\u{fffd}\u{fffd}\n".into(), true)));
    }

    #[test]
    fn a_file_that_this_user_may_not_read_is_denied_and_a_gone_process_is_absent() {
        // Tests may run as root, who may read everything: the errors themselves are checked.
        let refusal = |errno: Errno| failed::<()>(&errno.into());
        assert_eq!(refusal(Errno::ACCESS), Reading::Denied);
        assert_eq!(refusal(Errno::PERM), Reading::Denied);
        assert_eq!(refusal(Errno::SRCH), Reading::Absent);
        assert!(matches!(refusal(Errno::IO), Reading::Rejected(_)));
    }

    #[test]
    fn a_declared_tree_cannot_point_out_of_itself() {
        let (directory, root) = tree(&[("etc/inside", "mine")]);
        symlink("/etc/inside", directory.path().join("absolute")).unwrap();
        symlink("../../../../../../../../proc/version", directory.path().join("up")).unwrap();
        assert_eq!(root.text("absolute"), Reading::Value("mine".into()));
        assert_eq!(root.text("up"), Reading::Absent);
        assert_eq!(root.text("../../../../../../proc/version"), Reading::Absent);
    }

    #[test]
    fn a_directory_is_listed_sorted_and_a_missing_one_is_empty() {
        let (_directory, root) = tree(&[("d/b", ""), ("d/a", "")]);
        assert_eq!(root.names("d"), ["a", "b"]);
        assert!(root.names("e").is_empty());
        assert!(root.names("d/a").is_empty());
        assert!(root.exists("d/a") && !root.exists("d/c"));
    }
}
