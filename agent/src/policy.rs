//! What the operator permits of the install, and to whom.
//!
//! A coordinator makes a new key for every job, so none can be listed by it; what can be listed is where work may come
//! from.

use std::{net::IpAddr, str::FromStr};

use tropa_proto::permit::{Denial, Permit, Rule};

use crate::hours::Hours;

/// What the operator permits. The default is an install with no limits, on which nothing leaves the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Models that run in Ollama's cloud may be used: prompts then leave the machine.
    pub allow_remote_models: bool,
    /// Versions down to 0.6.4 may be used, which may cut prompts.
    pub allow_old: bool,
    /// What may run.
    pub permit: Permit,
    /// When it may.
    pub hours: Hours,
    /// Where work may come from; empty: anywhere.
    pub only_from: Vec<Network>,
}

/// All addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// Says why a network cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not ADDRESS or ADDRESS/BITS, such as 192.168.1.0/24 or ::1")]
pub struct NetworkError(String);

impl Policy {
    /// Gives the rule by which whoever submits from this address may have nothing run; `None` where he may. Where the
    /// address is not known and not all are permitted, he may not.
    #[must_use]
    pub fn denies_sender(&self, at: Option<IpAddr>) -> Option<Denial> {
        let permitted = |at: IpAddr| self.only_from.iter().any(|network| network.contains(at));
        if self.only_from.is_empty() || at.is_some_and(permitted) {
            return None;
        }
        let why = match at {
            Some(at) => format!("work from {at} is not permitted"),
            None => "its address is not known, and not all are permitted".to_owned(),
        };
        Some(Denial { rule: Rule::Coordinator, why })
    }
}

impl Network {
    /// Says whether the address is one of it. An IPv4 address within IPv6 is that IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                (network.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                (network.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let wrong = || NetworkError(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(all);
        if bits > all { Err(wrong()) } else { Ok(Self { address, bits }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_contains_what_begins_with_its_bits() {
        for (of, address, contains) in [
            ("192.168.1.0/24", "192.168.1.255", true),
            ("192.168.1.0/24", "192.168.2.0", false),
            ("192.168.1.7/24", "192.168.1.9", true),
            ("192.168.1.0/24", "::ffff:192.168.1.3", true),
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::1", "::1", true),
            ("fd00::/8", "fdff::1", true),
            ("fd00::/8", "fe80::1", false),
            ("::/0", "2001:db8::1", true),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(network(of).contains(address), contains, "{address} in {of}");
        }
        for text in ["", "10.0.0.0/33", "::1/129", "10.0.0.0/", "10.0.0/8", "den", "10.0.0.0/-1"] {
            let error = text.parse::<Network>().unwrap_err();
            assert!(error.to_string().contains("192.168.1.0/24"), "{error}");
        }
    }

    #[test]
    fn who_comes_from_elsewhere_or_from_nowhere_is_denied_by_name() {
        let policy = Policy { only_from: vec![network("127.0.0.0/8")], ..Policy::default() };
        assert_eq!(policy.denies_sender(Some("127.0.0.1".parse().unwrap())), None);
        for at in [Some("10.0.0.1".parse().unwrap()), None] {
            assert_eq!(policy.denies_sender(at).map(|denial| denial.rule), Some(Rule::Coordinator));
            assert_eq!(Policy::default().denies_sender(at), None, "nothing was said: all are permitted");
        }
    }
}
