//! Who can reach the install past its agent, and whether it can reach Ollama's cloud (`security.md` §9). Ollama asks
//! nobody for a password, so whoever can connect to it can read, use and delete what it has.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{net::TcpStream, task::JoinHandle, time::timeout};
use tropa_proto::evidence::Reading;

use crate::{evidence::Root, ollama::Ollama};

/// How long a connection to an address of this machine may take: nothing but a firewall lets it wait.
const CONNECTS_WITHIN: Duration = Duration::from_secs(1);

/// Addresses that are tried. A machine with more is a router or has many containers, and a finding about the first
/// of them leads to the same remedy.
const MAX_ADDRESSES: usize = 32;

/// Bytes of the kernel's tables of addresses: about 50 for each, and a trie of routes between them.
const MAX_TABLE: usize = 1 << 20;

/// Watches whether an install is open to others.
#[derive(Debug)]
pub(crate) struct Exposure {
    root: Root,
    ollama: Arc<Ollama>,
    /// What was tried last.
    tried: BTreeSet<IpAddr>,
    trying: Option<JoinHandle<()>>,
}

impl Exposure {
    /// Nothing is tried before [`Exposure::look`].
    pub(crate) fn new(root: Root, ollama: Arc<Ollama>) -> Self {
        Self { root, ollama, tried: BTreeSet::new(), trying: None }
    }

    /// Tries the install on every address of this machine that is not loopback, where these are others than at the last
    /// look, or the install was down then. What is open is logged as `ollama.exposed`, once for each set of addresses.
    ///
    /// `listening` are addresses that are known to be ours; on Linux the kernel's own tables are read as well. An
    /// install on another host is not on our addresses: nothing is tried.
    pub(crate) fn look(&mut self, is_up: bool, listening: &[SocketAddr]) {
        if !self.ollama.base().is_loopback() {
            return;
        }
        if !is_up {
            self.tried.clear();
            return;
        }
        let mut own: BTreeSet<IpAddr> = listening.iter().map(SocketAddr::ip).collect();
        own.extend(tables(&self.root));
        own.retain(is_reachable);
        if own == self.tried || self.trying.as_ref().is_some_and(|trying| !trying.is_finished()) {
            return;
        }
        self.tried.clone_from(&own);
        let ollama = Arc::clone(&self.ollama);
        self.trying = Some(tokio::spawn(async move {
            let (_, port) = ollama.base().host_and_port();
            let open = open_on(own, port).await;
            if !open.is_empty() {
                tracing::warn!(
                    addresses = ?open,
                    "ollama.exposed: whoever reaches these addresses can use Ollama, its models and its files without \
                     tropa and without a password; start it as: OLLAMA_HOST=127.0.0.1 ollama serve"
                );
            }
            if ollama.cloud_disabled().await == Some(false) {
                tracing::info!(
                    "ollama.cloud_on: Ollama may use its cloud; tropa never asks it to; to switch it off for all, start it \
                     as: OLLAMA_NO_CLOUD=1 ollama serve"
                );
            }
        }));
    }
}

/// The addresses of this machine that others may reach and on which something accepts connections at a port, in their
/// order; on Linux, elsewhere none is known.
pub async fn open_to_others(port: u16) -> Vec<SocketAddr> {
    let own = tables(&Root::live()).into_iter().filter(is_reachable);
    open_on(own.collect(), port).await
}

/// The addresses in the kernel's own tables.
fn tables(root: &Root) -> Vec<IpAddr> {
    let table = |path| match root.text_up_to(path, MAX_TABLE) {
        Reading::Value(text) | Reading::Virtual(text) => text,
        Reading::Absent | Reading::Denied | Reading::Rejected(_) => String::new(),
    };
    let four = local_of_trie(&table("proc/net/fib_trie"));
    four.into_iter().map(IpAddr::V4).chain(of_if_inet6(&table("proc/net/if_inet6"))).collect()
}

/// The addresses on which something accepts connections at `port`, in their order; of the first [`MAX_ADDRESSES`].
async fn open_on(addresses: BTreeSet<IpAddr>, port: u16) -> Vec<SocketAddr> {
    let mut open = Vec::new();
    for address in addresses.into_iter().take(MAX_ADDRESSES) {
        let address = SocketAddr::new(address, port);
        if let Ok(Ok(_)) = timeout(CONNECTS_WITHIN, TcpStream::connect(address)).await {
            open.push(address);
        }
    }
    open
}

/// Says whether others may reach the address, and it can be named without an interface.
fn is_reachable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_unspecified() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unspecified() && !ip.is_unicast_link_local(),
    }
}

/// Our own addresses in the kernel's trie of routes: a line with the address, and below it one that says
/// `/32 host LOCAL`.
fn local_of_trie(text: &str) -> BTreeSet<Ipv4Addr> {
    let mut found = BTreeSet::new();
    let mut last: Option<Ipv4Addr> = None;
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(last);
        }
    }
    found
}

/// The addresses of `/proc/net/if_inet6`, where each line begins with 32 digits.
fn of_if_inet6(text: &str) -> Vec<IpAddr> {
    let words = text.lines().filter_map(|line| line.split_whitespace().next());
    let words = words.filter(|word| word.len() == 32);
    words.filter_map(|word| u128::from_str_radix(word, 16).ok()).map(|n| Ipv6Addr::from(n).into()).collect()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::ollama::OllamaUrl;

    const TRIE: &str = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     \
                        +-- 192.0.2.0/24 2 0 2\n        |-- 192.0.2.0\n           /24 link UNICAST\n        \
                        |-- 192.0.2.7\n           /32 host LOCAL\n        |-- 192.0.2.255\n           \
                        /32 link BROADCAST\n  |-- 127.0.0.1\n     /32 host LOCAL\n";

    #[test]
    fn own_addresses_are_read_from_the_tables_of_the_kernel() {
        let own: Vec<Ipv4Addr> = local_of_trie(TRIE).into_iter().collect();
        assert_eq!(own, [Ipv4Addr::LOCALHOST, Ipv4Addr::new(192, 0, 2, 7)]);
        let six = of_if_inet6("20010db8000000000000000000000001 02 40 00 80     eth0\nnonsense\n");
        assert_eq!(six, ["2001:db8::1".parse::<IpAddr>().unwrap()]);
        let reached: Vec<&str> =
            ["127.0.0.1", "::1", "0.0.0.0", "169.254.1.1", "fe80::1", "192.0.2.7", "2001:db8::1"]
                .into_iter()
                .filter(|text| is_reachable(&text.parse().unwrap()))
                .collect();
        assert_eq!(reached, ["192.0.2.7", "2001:db8::1"]);
    }

    #[tokio::test]
    async fn an_address_on_which_the_port_answers_is_found_and_another_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let both = [[127, 0, 0, 1], [127, 0, 0, 2]].map(IpAddr::from);
        assert_eq!(open_on(both.into(), port).await, [SocketAddr::from(([127, 0, 0, 1], port))]);
    }

    #[tokio::test]
    async fn the_same_addresses_are_tried_once_until_the_install_was_down() {
        let install = |url| Arc::new(Ollama::new(OllamaUrl::parse(url, true).unwrap()).unwrap());
        let new = |url| Exposure::new(Root::declared("/nonexistent"), install(url));
        let mut exposure = new("http://127.0.0.1:1");
        let listening = ["192.0.2.7:5".parse().unwrap(), "127.0.0.1:5".parse().unwrap()];
        exposure.look(false, &listening);
        assert!(exposure.trying.is_none(), "nothing to try while it is down");
        exposure.look(true, &listening);
        assert_eq!(exposure.tried, BTreeSet::from([IpAddr::from([192, 0, 2, 7])]));
        exposure.trying.take().unwrap().abort();
        exposure.look(true, &listening);
        assert!(exposure.trying.is_none());
        exposure.look(false, &listening);
        exposure.look(true, &listening);
        exposure.trying.take().unwrap().abort();

        let mut remote = new("http://192.0.2.9:1");
        remote.look(true, &listening);
        assert!(remote.trying.is_none(), "an install of another host is not on our addresses");
    }
}
