//! Which agent stands beside the install of an address.
//!
//! An agent says at which port it reaches its install, and under which addresses it can be dialled itself. An install
//! on another host is that of the one agent with this port and one of the entry's addresses; one on this machine is
//! that of the one agent with this port whose presence is announced on this machine. Whatever is less certain, such
//! as a port that a container maps to another, leads to no agent: unknown is not usable.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use tropa_proto::id::AgentId;

use super::file::Entry;

/// A name server that does not answer by then is as good as none.
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);

/// An agent as entries are led to it.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) agent: AgentId,
    /// It is announced on this machine.
    pub(super) here: bool,
    /// Where it can be dialled.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// The port of its install on its own host; 0 where that is elsewhere.
    pub(super) port: u16,
}

/// Where an entry leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    One(AgentId),
    None { why: String, remedy: String },
}

/// Finds the addresses of every entry, by its line; names are looked up.
pub(super) async fn resolve(entries: &[Entry]) -> BTreeMap<usize, Result<BTreeSet<IpAddr>, String>> {
    let mut addresses = BTreeMap::new();
    for entry in entries {
        let lookup = tokio::net::lookup_host((entry.host.as_str(), entry.port));
        let found = match tokio::time::timeout(RESOLVE_WITHIN, lookup).await {
            Ok(Ok(found)) => Ok(found.map(|address| address.ip().to_canonical()).collect()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        };
        addresses.insert(entry.line, found);
    }
    addresses
}

/// Leads an entry to its agent.
pub(super) fn find(entry: &Entry, addresses: &Result<BTreeSet<IpAddr>, String>, known: &[Known]) -> Found {
    let addresses = match addresses {
        Ok(addresses) => addresses,
        Err(error) => {
            return Found::None {
                why: format!("{} is not a known name: {error}", entry.host),
                remedy: "write its address instead of its name".to_owned(),
            };
        }
    };
    let local = addresses.iter().any(|address| is_own(*address));
    let fits = |known: &&Known| {
        let there =
            known.addresses.iter().any(|address| !address.is_loopback() && addresses.contains(address));
        known.port == entry.port && (there || (local && known.here))
    };
    let found: Vec<&Known> = known.iter().filter(fits).collect();
    match found.as_slice() {
        [one] => Found::One(one.agent),
        [] => Found::None {
            why: "no agent is known beside it".to_owned(),
            remedy: if local {
                format!("start one on this machine: tropa-agent --ollama http://127.0.0.1:{}", entry.port)
            } else {
                format!(
                    "start one there: tropa-agent --ollama http://127.0.0.1:{}; where one runs, reach it with --peer \
                     {}:11634, and mind that both need the same mesh secret",
                    entry.port, entry.host
                )
            },
        },
        several => Found::None {
            why: format!(
                "{} agents fit: {}",
                several.len(),
                several.iter().map(|known| known.agent.short()).collect::<Vec<_>>().join(", ")
            ),
            remedy: "name the install by an address that only its own machine has".to_owned(),
        },
    }
}

/// Whether an address belongs to this machine: only then can a socket be bound to it. Nothing is sent.
fn is_own(address: IpAddr) -> bool {
    address.is_loopback() || UdpSocket::bind((address, 0)).is_ok()
}
