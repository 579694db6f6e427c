//! Whose traffic arrives through this machine itself (`identity.md` §3, `local_peer`): over loopback, from one of the
//! machine's own addresses, or through an interface that leads to no wire, as those of containers and virtual machines
//! do.
//!
//! The question is asked of addresses that a peer has proved to be at, since there is a connection to it. What a peer
//! says of its addresses would not do: every Docker host names one in the same network. An address is judged by the
//! route that packets to it take, the most specific one, and stays with the agent: others hear only of whom it was true.
//!
//! A bridge that holds a network card leads to a wire, though it is no card itself, and so does a VLAN on one. An
//! interface that sysfs does not show is not judged. A VPN looks like a local network, so this is weak evidence.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tropa_proto::evidence::Reading;

use super::files::Root;

/// Bytes of a table of routes: a line has some 128, and a host that runs containers has some hundred. A router of the
/// internet has more, and then nothing is known.
const MAX_ROUTES: usize = 1 << 20;

/// Interfaces upon interfaces: a VLAN on a bond in a bridge are three.
const MAX_LAYERS: usize = 8;

/// The flag of a route to one of the machine's own addresses (`RTF_LOCAL`).
const OWN: u32 = 0x8000_0000;

const INTERFACES: &str = "sys/class/net";

/// The networks that this machine can send to, and which of them lie within it.
#[derive(Clone, Debug, Default)]
pub struct Networks(Vec<Route>);

#[derive(Clone, Debug)]
struct Route {
    /// An IPv4 network is written as the IPv6 network that it is mapped to.
    network: u128,
    bits: u32,
    metric: u32,
    is_within: bool,
}

impl Networks {
    /// Reads the routes of this network namespace.
    #[must_use]
    pub fn read(root: &Root) -> Self {
        let lines = |path| match root.text_up_to(path, MAX_ROUTES) {
            Reading::Value(text) | Reading::Virtual(text) => text,
            Reading::Absent | Reading::Denied | Reading::Rejected(_) => String::new(),
        };
        let (v4, v6) = (lines("proc/net/route"), lines("proc/net/ipv6_route"));
        let read = |fields: Fields<'_>| {
            let is_direct = !fields.has_gateway;
            let stays = || fields.is_own || fields.interface == "lo" || has_no_wire(root, fields.interface);
            let is_within = is_direct && stays();
            Route { network: fields.network, bits: fields.bits, metric: fields.metric, is_within }
        };
        let all = v4.lines().filter_map(route_v4).chain(v6.lines().filter_map(route_v6));
        Self(all.map(read).collect())
    }

    /// Says whether packets to this address stay within the machine. Link-local addresses mean nothing without their
    /// interface and are not judged.
    #[must_use]
    pub fn is_within(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let is_link_local = match address {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        if address.is_loopback() || is_link_local {
            return address.is_loopback();
        }
        let number = mapped(address);
        let fits = |route: &&Route| (number ^ route.network) & mask(route.bits) == 0;
        let best = self.0.iter().filter(fits).min_by_key(|route| (u32::MAX - route.bits, route.metric));
        best.is_some_and(|route| route.is_within)
    }
}

/// One line of a table.
struct Fields<'a> {
    interface: &'a str,
    network: u128,
    bits: u32,
    metric: u32,
    has_gateway: bool,
    is_own: bool,
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask …`; addresses are the bytes of the network as a number of
/// this processor.
fn route_v4(line: &str) -> Option<Fields<'_>> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let hex = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
    let address = |at| Some(Ipv4Addr::from(hex(at)?.to_ne_bytes()));
    let mask = address(7)?.to_bits();
    // Nobody routes by a mask with holes.
    let bits = (mask.leading_ones() == mask.count_ones()).then_some(mask.count_ones())?;
    Some(Fields {
        interface: fields.first()?,
        network: mapped(address(1)?.into()),
        bits: 96 + bits,
        metric: fields.get(6)?.parse().ok()?,
        has_gateway: hex(2)? != 0,
        is_own: false,
    })
}

/// `destination bits source bits next-hop metric references use flags interface`, all hexadecimal.
fn route_v6(line: &str) -> Option<Fields<'_>> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let hex = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
    let address = |at: usize| u128::from_str_radix(fields.get(at)?, 16).ok();
    Some(Fields {
        interface: fields.get(9)?,
        network: address(0)?,
        bits: hex(1).filter(|bits| *bits <= 128)?,
        metric: hex(5)?,
        has_gateway: address(4)? != 0,
        is_own: hex(8)? & OWN != 0,
    })
}

fn mapped(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => Ipv6Addr::to_bits(v6),
    }
}

fn mask(bits: u32) -> u128 {
    u128::MAX.checked_shl(128 - bits.min(128)).unwrap_or(0)
}

/// Whether an interface is no card and has none below it. One that sysfs does not show may be anything.
fn has_no_wire(root: &Root, interface: &str) -> bool {
    if !is_name(interface) || !root.exists(&format!("{INTERFACES}/{interface}")) {
        return false;
    }
    let mut layer = vec![interface.to_owned()];
    for _ in 0..MAX_LAYERS {
        if layer.iter().any(|interface| root.exists(&format!("{INTERFACES}/{interface}/device"))) {
            return false;
        }
        layer = layer.iter().flat_map(|interface| below(root, interface)).collect();
        if layer.is_empty() {
            return true;
        }
    }
    // Deeper than anybody builds.
    false
}

/// The interfaces that this one is made of.
fn below(root: &Root, interface: &str) -> Vec<String> {
    let entries = root.names(&format!("{INTERFACES}/{interface}"));
    let lower = entries.iter().filter_map(|entry| entry.strip_prefix("lower_"));
    lower.filter(|name| is_name(name)).map(str::to_owned).collect()
}

/// What the kernel takes for the name of an interface: no path.
fn is_name(name: &str) -> bool {
    (1..16).contains(&name.len()) && name != "." && name != ".." && !name.contains('/')
}

#[cfg(test)]
mod tests {
    use super::{super::files::tests::tree, *};

    const HEAD: &str =
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

    /// A line of `/proc/net/route` as a processor of this kind writes it.
    fn line(interface: &str, network: &str, gateway: &str, bits: u32, metric: u32) -> String {
        let number = |text: &str| u32::from_ne_bytes(text.parse::<Ipv4Addr>().unwrap().octets());
        let mask = u32::from_ne_bytes(u32::MAX.checked_shl(32 - bits).unwrap_or(0).to_be_bytes());
        let (network, gateway) = (number(network), number(gateway));
        format!("{interface}\t{network:08X}\t{gateway:08X}\t0001\t0\t0\t{metric}\t{mask:08X}\t0\t0\t0\n")
    }

    fn within(networks: &Networks, address: &str) -> bool {
        networks.is_within(address.parse().unwrap())
    }

    /// A host with a card, Docker, a hypervisor's bridge, and a bridge that holds a card.
    fn host() -> (tempfile::TempDir, Root) {
        let none = "0.0.0.0";
        let routes = [
            HEAD.to_owned(),
            line("eth0", none, "192.168.1.1", 0, 100),
            line("eth0", "192.168.1.0", none, 24, 100),
            line("docker0", "172.17.0.0", none, 16, 0),
            line("virbr0", "192.168.122.0", none, 24, 0),
            line("vmbr0", "10.1.0.0", none, 16, 0),
            line("vlan5", "10.5.0.0", none, 16, 0),
            line("gone0", "10.9.0.0", none, 16, 0),
            line("tun0", "10.0.0.0", none, 8, 50),
            line("docker0", "10.200.0.0", "172.17.0.2", 16, 0),
        ];
        tree(&[
            ("proc/net/route", &routes.concat()),
            (
                "proc/net/ipv6_route",
                "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 \
                 00000000000000000000000000000000 00000100 00000001 00000000 00000001  docker0\n\
                 20010db8000000000000000000000000 40 00000000000000000000000000000000 00 \
                 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0\n\
                 20010db8000000000000000000000005 80 00000000000000000000000000000000 00 \
                 00000000000000000000000000000000 00000000 00000001 00000000 80200001     eth0\n\
                 00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n",
            ),
            ("sys/class/net/eth0/device/vendor", "0x8086\n"),
            ("sys/class/net/docker0/lower_veth1/ifindex", "9\n"),
            ("sys/class/net/veth1/ifindex", "9\n"),
            ("sys/class/net/virbr0/ifindex", "4\n"),
            ("sys/class/net/vmbr0/lower_eth1/ifindex", "5\n"),
            ("sys/class/net/eth1/device/vendor", "0x8086\n"),
            ("sys/class/net/vlan5/lower_vmbr0/ifindex", "6\n"),
            ("sys/class/net/tun0/ifindex", "7\n"),
        ])
    }

    #[test]
    fn what_a_container_or_a_guest_sends_stays_within_the_machine_and_the_lan_does_not() {
        let (_directory, root) = host();
        let networks = Networks::read(&root);
        for near in ["127.0.0.1", "::1", "172.17.0.2", "::ffff:172.17.0.9", "192.168.122.40", "fd00::7"] {
            assert!(within(&networks, near), "{near}");
        }
        for far in ["192.168.1.20", "8.8.8.8", "2001:db8::9", "2a00::1"] {
            assert!(!within(&networks, far), "{far}");
        }
        assert!(within(&networks, "2001:db8::5"), "one of its own addresses");
    }

    #[test]
    fn a_bridge_with_a_card_leads_to_a_wire_and_so_does_what_lies_upon_it() {
        let (_directory, root) = host();
        let networks = Networks::read(&root);
        assert!(!within(&networks, "10.1.0.7"), "a bridge");
        assert!(!within(&networks, "10.5.0.7"), "a VLAN on that bridge");
        assert!(within(&networks, "10.77.0.1"), "a VPN looks local, and the most specific route decides");
    }

    #[test]
    fn what_is_behind_a_gateway_or_not_shown_or_without_an_interface_is_not_within() {
        let (_directory, root) = host();
        let networks = Networks::read(&root);
        assert!(!within(&networks, "10.200.0.3"), "a container that is a router leads anywhere");
        for unjudged in ["169.254.3.4", "fe80::1"] {
            assert!(!within(&networks, unjudged), "{unjudged}");
        }
        assert!(!within(&networks, "10.9.0.1"), "sysfs does not show the interface");
    }

    #[test]
    fn hostile_tables_say_nothing() {
        let junk = [
            "docker0 zz 0 1 0 0 0 00FFFFFF",
            "docker0\t0000000A",
            "../../etc 0000000A 00000000 0001 0 0 0 000000FF",
            "docker0 0000000A 00000000 0001 0 0 0 00FF00FF",
            "docker0 0000000A 00000000 0001 0 0 -1 000000FF",
            "\u{0}",
        ];
        let (_directory, root) = tree(&[
            ("proc/net/route", &junk.join("\n")),
            ("proc/net/ipv6_route", "x\nfd00 ff 0 0 0 0 0 0 0 docker0\n"),
            ("sys/class/net/docker0/ifindex", "3\n"),
            ("etc/hosts", ""),
        ]);
        let networks = Networks::read(&root);
        assert!(!within(&networks, "10.0.0.1") && !within(&networks, "fd00::1"), "{networks:?}");
        assert!(within(&Networks::default(), "127.0.0.1"), "loopback needs no table");
    }

    #[test]
    fn a_loop_of_interfaces_ends() {
        let (_directory, root) = tree(&[
            ("proc/net/route", &line("a0", "10.0.0.0", "0.0.0.0", 8, 0)),
            ("sys/class/net/a0/lower_b0/ifindex", "1\n"),
            ("sys/class/net/b0/lower_a0/ifindex", "2\n"),
        ]);
        assert!(!within(&Networks::read(&root), "10.0.0.1"));
    }
}
