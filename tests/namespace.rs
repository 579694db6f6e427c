//! Network namespaces of tests, named so that a later run can tell whose they are.
//!
//! A test that is killed removes nothing. So a name says which process made it, by its id and the time of its start,
//! and the first namespace that a run makes is made after those are gone whose maker is: they, and what still runs in
//! them. Runs beside each other are safe from each other, for their makers live; a later process of the same id has
//! started at another time.

use std::{fs, path::PathBuf, process::Command, sync::Once, sync::atomic::AtomicU32, sync::atomic::Ordering};

use rustix::process::{Pid, Signal, kill_process};

/// What all names begin with.
const PREFIX: &str = "tropa-test";

/// Where `ip` keeps the names.
const NAMES: &str = "/run/netns";

/// A network namespace with a loopback interface that is up; removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

/// Who made a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Maker {
    pid: i32,
    /// In clock ticks after the boot, as in `/proc/PID/stat`.
    started: u64,
}

impl Namespace {
    /// Makes one, after removing what killed tests have left behind.
    ///
    /// # Errors
    /// Says what cannot be done here, and why.
    pub fn new() -> Result<Self, String> {
        static SWEPT: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        SWEPT.call_once(sweep);
        let maker = Maker::this().ok_or("this process is not in /proc")?;
        let name = maker.name(NEXT.fetch_add(1, Ordering::Relaxed));
        ran(&["ip", "netns", "add", &name])?;
        let made = Self { name };
        ran(&["ip", "-n", &made.name, "link", "set", "lo", "up"])?;
        Ok(made)
    }

    /// Its name, as `ip` takes it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(NAMES).join(&self.name)
    }

    /// The option with which `nsenter` enters it.
    #[must_use]
    pub fn entrance(&self) -> String {
        format!("--net={}", self.path().display())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ran(&["ip", "netns", "del", &self.name]);
    }
}

impl Maker {
    fn this() -> Option<Self> {
        let pid = i32::try_from(std::process::id()).ok()?;
        Some(Self { pid, started: started(pid)? })
    }

    fn name(self, number: u32) -> String {
        format!("{PREFIX}-{}-{}-{number}", self.pid, self.started)
    }

    /// Who made the namespace of this name; `None` where no test did.
    fn of(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(PREFIX)?.strip_prefix('-')?.splitn(3, '-');
        let maker = Self { pid: parts.next()?.parse().ok()?, started: parts.next()?.parse().ok()? };
        parts.next()?.parse::<u32>().ok().map(|_| maker)
    }

    fn lives(self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

/// When a process started; `None` where there is none of this id.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program is in parentheses and may hold anything; the start is the 22nd field, the 20th after it.
    let after = &stat[stat.rfind(')')? + 1..];
    after.split_whitespace().nth(19)?.parse().ok()
}

/// Removes the namespaces whose makers are gone, with the programs that they left there.
fn sweep() {
    let Ok(names) = fs::read_dir(NAMES) else { return };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        if Maker::of(&name).is_some_and(|maker| !maker.lives()) {
            let left = ran(&["ip", "netns", "pids", &name]).unwrap_or_default();
            for pid in left.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
                let _ = kill_process(pid, Signal::KILL);
            }
            // Another run may have removed it meanwhile.
            let _ = ran(&["ip", "netns", "del", &name]);
        }
    }
}

/// Runs a command, and gives what it printed.
///
/// # Errors
/// Says which command failed, with what it said.
pub fn ran(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(arguments[0])
        .args(&arguments[1..])
        .output()
        .map_err(|error| format!("no {}: {error}", arguments[0]))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        process::Stdio,
    };

    use super::*;

    #[test]
    fn a_name_says_who_made_it() {
        let maker = Maker::this().expect("it runs");
        assert_eq!(Maker::of(&maker.name(7)), Some(maker));
        assert!(maker.lives());
        for other in
            ["tropa-test", "tropa-test-1", "tropa-test-1-2", "tropa-test-1-2-x", "tropa-br-1-2-3", "den"]
        {
            assert_eq!(Maker::of(other), None, "{other}");
        }
    }

    #[test]
    fn what_a_killed_test_left_is_removed_and_what_a_living_one_uses_is_not() {
        if !rustix::process::geteuid().is_root() {
            return crate::skipped("no network namespaces: not root");
        }
        let own = match Namespace::new() {
            Ok(own) => own,
            Err(why) => return crate::skipped(&format!("no network namespaces: {why}")),
        };
        // A process of our id that started earlier is no more.
        let this = Maker::this().expect("it runs");
        let left = Maker { started: this.started - 1, ..this }.name(0);
        ran(&["ip", "netns", "add", &left]).expect("it can be made, as the first");
        let enter = format!("--net={NAMES}/{left}");
        let mut command = Command::new("nsenter");
        command.args([&enter, "sh", "-c", "echo in; exec sleep 600"]).stdout(Stdio::piped());
        let mut program = command.spawn().expect("nsenter is there where namespaces are");
        let mut says = String::new();
        BufReader::new(program.stdout.take().expect("it is piped"))
            .read_line(&mut says)
            .expect("it can be read");
        assert_eq!(says.trim(), "in", "it runs in the namespace before that is swept");
        sweep();
        let status = program.wait().expect("it was started");
        assert!(!status.success(), "what ran there was killed");
        assert!(!PathBuf::from(NAMES).join(&left).exists(), "what a killed test left is removed");
        assert!(own.path().exists(), "what a living one uses is not");
    }
}
