//! Where the log of a server is.
//!
//! On Linux the server's own descriptors say it: a file, or a socket, behind which is the journal. On macOS and
//! Windows Ollama's application writes one file for each user, which may be of a server that has ended: it counts
//! where it names the install's port, and was written to since, for every request to the server leaves a line. What
//! the operator names comes first and alone.

use std::collections::BTreeSet;

use tropa_proto::evidence::{Os, Reading};

use super::{
    super::{
        files::{Root, failed, rejected},
        process::{self, Server},
    },
    Logged, devices, in_tail, journal,
};

/// Bytes of the end of a log: some 80,000 requests; the runs before them are not looked for.
const MAX_TAIL: u64 = 8 << 20;

/// Users of one host whose logs are looked at.
const MAX_USERS: usize = 64;

/// Age of a log of a server that may have ended, in seconds: the agent itself asks the server every 30 s while it is
/// idle, and every 300 s while it works.
const MAX_AGE: u64 = 600;

/// Reads what the log of the server on this port of this host says; of the log that the operator names, where one is
/// named. `server` is the process of the server where it can be seen.
#[must_use]
pub fn read(
    root: &Root,
    os: Os,
    named: Option<&str>,
    port: Option<u16>,
    server: Option<&Server>,
) -> Reading<Logged> {
    match (named, port, os) {
        // A published port of a container is not the one that its log speaks of.
        (Some(path), ..) => file(root, path, path, None),
        (None, None, _) => Reading::Absent,
        (None, Some(port), Os::Linux) => match server {
            Some(server) => of_process(root, server.main, port),
            None => of_unseen(root, port),
        },
        (None, Some(port), Os::Macos) => of_users(root, ".ollama/logs/server.log", port),
        (None, Some(port), Os::Windows) => of_users(root, "AppData/Local/Ollama/server.log", port),
    }
}

/// The log behind the standard descriptors of a process: its messages go to the second, those of requests to the
/// first.
fn of_process(root: &Root, process: u32, port: u16) -> Reading<Logged> {
    let of = |descriptor: &str| {
        let path = format!("proc/{process}/fd/{descriptor}");
        let Some(target) = root.link(&path) else { return Reading::Absent };
        if target.starts_with("socket:") {
            in_journal(root, process, port)
        } else if target.starts_with('/') && !target.starts_with("/dev/") {
            // By its descriptor: the name may be of another file by now, or of another container.
            file(root, &path, &target, Some(port))
        } else {
            rejected(&format!("goes to {target}; name a file that it is copied to"))
        }
    };
    best([of("2"), of("1")])
}

/// The log of a server of another user, whose descriptors cannot be seen: the journal, where it may be read.
fn of_unseen(root: &Root, port: u16) -> Reading<Logged> {
    let readings: Vec<Reading<Logged>> =
        process::by_name(root).into_iter().map(|process| in_journal(root, process, port)).collect();
    if readings.iter().filter(|reading| reading.is_genuine()).count() > 1 {
        return rejected("several servers say that they listen on the install's port");
    }
    best(readings)
}

fn in_journal(root: &Root, process: u32, port: u16) -> Reading<Logged> {
    journal::lines(root, process).and_then(|lines| {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let found = match devices(&lines, Some(port)) {
            Reading::Absent => rejected("no server on the install's port begins in the journal"),
            found @ (Reading::Value(_) | Reading::Virtual(_) | Reading::Denied | Reading::Rejected(_)) => {
                found
            }
        };
        found.map(|addresses| Logged {
            addresses: addresses.clone(),
            place: format!("the journal, process {process}"),
        })
    })
}

/// The file of Ollama's application, of whichever user's server listens on the port.
fn of_users(root: &Root, file_name: &str, port: u16) -> Reading<Logged> {
    let users = root.names("Users").into_iter().take(MAX_USERS);
    let logs: BTreeSet<String> = users.map(|user| format!("Users/{user}/{file_name}")).collect();
    let readings: Vec<Reading<Logged>> = logs
        .iter()
        .map(|path| match age(root, path) {
            Reading::Value(age) if age > MAX_AGE => {
                rejected(&format!("not written to for {age} s: the server that answers does not write it"))
            }
            Reading::Value(_) | Reading::Virtual(_) => file(root, path, path, Some(port)),
            Reading::Absent => Reading::Absent,
            Reading::Denied => Reading::Denied,
            Reading::Rejected(why) => Reading::Rejected(why),
        })
        .collect();
    if readings.iter().filter(|reading| reading.is_genuine()).count() > 1 {
        return rejected("the logs of several users name the install's port");
    }
    best(readings)
}

fn file(root: &Root, path: &str, place: &str, port: Option<u16>) -> Reading<Logged> {
    root.tail(path, MAX_TAIL)
        .and_then(|tail| in_tail(&tail, port))
        .map(|addresses| Logged { addresses: addresses.clone(), place: place.to_owned() })
}

/// Seconds since a file was written to; of a declared host, whose clock is not known, 0.
fn age(root: &Root, path: &str) -> Reading<u64> {
    root.regular(path).and_then(|file| match file.metadata().and_then(|found| found.modified()) {
        Ok(_) if root.is_declared() => Reading::Value(0),
        // One of the future is of now.
        Ok(modified) => Reading::Value(modified.elapsed().unwrap_or_default().as_secs()),
        Err(error) => failed(&error),
    })
}

/// The first value; else the first reason why there is none.
fn best(readings: impl IntoIterator<Item = Reading<Logged>>) -> Reading<Logged> {
    let mut best = Reading::Absent;
    for reading in readings {
        if reading.is_genuine() {
            return reading;
        }
        if best == Reading::Absent {
            best = reading;
        }
    }
    best
}
