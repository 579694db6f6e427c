//! What the log of the install's server says of its devices (`identity.md` §3.5, rung 4).
//!
//! A server that starts says where it listens, looks for devices, and prints one line `msg="inference compute"` for
//! each that it will use, or a single one with `library=cpu` where it will use none (`LogDetails` of Ollama's
//! `discover/types.go`, called once by `Serve`; so in 0.24.0). What a variable or a driver hides from it has no line.
//!
//! Devices are told by `pci_id` and never by `id`, which was the GPU's uuid once and is an index today. Before
//! 0.12.4 there was no `pci_id`, and Apple's GPUs have none: then the log says nothing.
//!
//! A log holds many runs, of several servers where they share a file. The lines that count lie after the last line
//! in which a server listens on the install's port, and before another server begins. `places` finds the log.

mod journal;
mod places;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use tropa_proto::{bounded::Text, evidence::Reading};

use super::{
    files::{Tail, rejected},
    nvidia::pci_address,
};

pub use places::read;

/// Devices of one server: as many as a bundle carries GPUs.
const MAX_DEVICES: usize = 64;

/// How a server begins (`Serve` of Ollama's `server/routes.go`): it has a port already and has not named it.
const BEGINS: &str = "server config";

/// A line that is there and cannot be read.
const UNREADABLE: &str = "\0";

/// The devices that a server's log names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Their PCI addresses, as the kernel writes them; none: the server uses no GPU.
    pub addresses: BTreeSet<Text<16>>,
    /// Where the log is, for the operator.
    pub place: String,
}

/// Finds the devices of the last run in the end of a log; of the last run on this port, where one is given.
fn in_tail(tail: &Tail, port: Option<u16>) -> Reading<BTreeSet<Text<16>>> {
    let lines: Vec<&str> = tail.text.lines().collect();
    match devices(&lines, port) {
        Reading::Absent if tail.whole => rejected("no server on the install's port begins in it"),
        Reading::Absent => rejected("its end does not reach back to the start of the server"),
        found @ (Reading::Value(_) | Reading::Virtual(_) | Reading::Denied | Reading::Rejected(_)) => found,
    }
}

/// Finds the devices of the last run among the lines of a log; `Absent` where no run begins in them.
fn devices(lines: &[&str], port: Option<u16>) -> Reading<BTreeSet<Text<16>>> {
    let is_ours = |line: &&str| listens(line).is_some_and(|on| port.is_none_or(|port| port == on));
    let Some(start) = lines.iter().rposition(is_ours) else { return Reading::Absent };
    let after = lines.get(start + 1..).unwrap_or_default();
    let begins = |line: &&str| says(line, BEGINS);
    // It has the port before it says so: that may be the server which answers now.
    let latest = after.iter().rposition(begins);
    if latest.is_some() && latest > after.iter().rposition(|line| listens(line).is_some()) {
        return rejected("a server has begun and not said yet where it listens");
    }
    let is_other = |line: &&str| begins(line) || listens(line).is_some();
    let end = after.iter().position(is_other).unwrap_or(after.len());
    let named = |line: &&str| says(line, "inference compute");
    let (Some(first), Some(last)) =
        (after[..end].iter().position(named), after[..end].iter().rposition(named))
    else {
        return rejected("the server has not named its devices");
    };
    // They are written one after another; what stands right beside them may be one of them.
    let around = after.get(first.saturating_sub(1)..(last + 2).min(after.len())).unwrap_or_default();
    if last + 1 == after.len() {
        rejected("the server is naming its devices")
    } else if around.contains(&UNREADABLE) {
        rejected("a line beside the list of devices cannot be read")
    } else {
        addresses(after[first..=last].iter().filter(|line| named(line)))
    }
}

/// Reads the addresses off the lines that name a device each.
fn addresses<'a>(lines: impl Iterator<Item = &'a &'a str>) -> Reading<BTreeSet<Text<16>>> {
    let mut addresses = BTreeSet::new();
    for line in lines {
        if field(line, "library").is_some_and(|library| library.eq_ignore_ascii_case("cpu")) {
            continue;
        }
        let Some(address) = field(line, "pci_id").filter(|address| !address.is_empty()) else {
            return rejected("a device is named without its PCI address");
        };
        let Some(address) = pci_address(address) else {
            return rejected(&format!("{address:?} is no PCI address"));
        };
        addresses.insert(address);
        if addresses.len() > MAX_DEVICES {
            return rejected(&format!("more than {MAX_DEVICES} devices"));
        }
    }
    Reading::Value(addresses)
}

/// The port on which a server says that it listens: `msg="Listening on 127.0.0.1:11434 (version 0.24.0)"`.
fn listens(line: &str) -> Option<u16> {
    const LISTENS: &str = "Listening on ";
    // Most lines are requests, and this is cheaper than taking them apart.
    let message = line.contains(LISTENS).then(|| field(line, "msg")).flatten()?;
    let address = message.strip_prefix(LISTENS)?.split(' ').next()?;
    address.rsplit_once(':')?.1.parse().ok()
}

fn says(line: &str, message: &str) -> bool {
    line.contains(message) && field(line, "msg") == Some(message)
}

/// Finds a value in a line of `key=value` pairs with quotes around values that need them, as Go's `slog` writes it;
/// what is escaped in it stays so. Nothing in a line that is not of this form from its beginning: the runner's own
/// output stands in the same log and repeats texts of models.
fn field<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    let mut rest = line.strip_prefix("time=").map(|_| line)?;
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        if key.contains([' ', '"']) {
            return None;
        }
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_at_checked(closing_quote(quoted)?)?,
            None => after.split_at_checked(after.find(' ').unwrap_or(after.len()))?,
        };
        if key == wanted {
            return Some(value);
        }
        rest = after.strip_prefix('"').unwrap_or(after).trim_start_matches(' ');
    }
    None
}

/// Where the quote ends that has begun before this text.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}
