//! A network of the test's own: a bridge in a namespace, and cables from it to other namespaces. Nothing of it is in
//! the namespace of the machine, and all of it goes with the namespaces.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicU8, Ordering},
};

use tropa_tests::namespace::Namespace;

use super::place::{Place, ran};

/// A bridge with an address of its own, at which the coordinator sits.
#[derive(Debug)]
pub(crate) struct Bridge {
    namespace: Namespace,
    cables: AtomicU8,
}

impl Bridge {
    /// Makes one.
    pub(crate) fn new() -> Self {
        let namespace = Namespace::new().unwrap();
        let name = namespace.name();
        ran(&["ip", "-n", name, "link", "add", "br0", "type", "bridge"]);
        ran(&["ip", "-n", name, "link", "set", "br0", "up"]);
        ran(&["ip", "-n", name, "addr", "add", "10.99.0.1/24", "dev", "br0"]);
        Self { namespace, cables: AtomicU8::new(0) }
    }

    /// The coordinator's place.
    pub(crate) fn place(&self, label: &str) -> Place {
        Place::entered(label, Ipv4Addr::new(10, 99, 0, 1), &["nsenter", &self.namespace.entrance()])
    }

    /// Connects a namespace by name, and makes a place of it.
    pub(crate) fn connect(&self, namespace: &Namespace, label: &str) -> Place {
        let address = self.cable(namespace.name(), &namespace.entrance());
        Place::entered(label, address, &["nsenter", &namespace.entrance()])
    }

    /// Connects the namespace of a process, and gives its address.
    pub(crate) fn connect_process(&self, process: u32) -> Ipv4Addr {
        self.cable(&process.to_string(), &format!("--net=/proc/{process}/ns/net"))
    }

    /// `netns` is a name or a process, as `ip` takes both.
    fn cable(&self, netns: &str, entrance: &str) -> Ipv4Addr {
        let number = self.cables.fetch_add(1, Ordering::Relaxed) + 1;
        let (inner, outer) = (format!("e{number}"), format!("r{number}"));
        let bridge = self.namespace.name();
        let enter = ["nsenter", entrance, "ip"];
        let there = |arguments: &[&str]| ran(&[&enter, arguments].concat());
        // Made inside the bridge's namespace, so no half of it is ever in the machine's.
        ran(&[
            "ip", "-n", bridge, "link", "add", &outer, "type", "veth", "peer", "name", &inner, "netns", netns,
        ]);
        ran(&["ip", "-n", bridge, "link", "set", &outer, "master", "br0", "up"]);
        let address = Ipv4Addr::new(10, 99, 0, 10 + number);
        there(&["link", "set", "lo", "up"]);
        there(&["addr", "add", &format!("{address}/24"), "dev", &inner]);
        there(&["link", "set", &inner, "up"]);
        address
    }
}
