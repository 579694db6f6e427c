//! Finding each other by multicast DNS, in two network namespaces that this test makes and removes.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{fs::File, net::SocketAddr, os::fd::AsFd as _, process::Command, thread, time::Duration};

use tropa_proto::{
    id::AgentId,
    mesh::{self, MeshConfig, MeshEvent, agent_id},
    message::Role,
    secret::MeshSecret,
};

/// Two namespaces with a cable between them, removed when dropped.
struct Cable {
    names: [String; 2],
}

impl Cable {
    /// `Err` says what this machine does not allow.
    fn lay() -> Result<Self, String> {
        let names = ["a", "b"].map(|end| format!("tropa-mdns-{end}-{}", std::process::id()));
        let cable = Self { names };
        let [a, b] = &cable.names;
        ip(&["netns", "add", a])?;
        ip(&["netns", "add", b])?;
        ip(&["link", "add", "cable", "netns", a, "type", "veth", "peer", "name", "cable", "netns", b])?;
        for (name, address) in cable.names.iter().zip([address(0), address(1)]) {
            ip(&["-n", name, "address", "add", &format!("{}/24", address.ip()), "dev", "cable"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            ip(&["-n", name, "link", "set", "cable", "up"])?;
        }
        Ok(cable)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {}: {}", arguments.join(" "), text.trim())) }
}

fn address(end: u8) -> SocketAddr {
    ([10, 213, 77, end + 1], 0).into()
}

/// Starts a node at one end of the cable, and returns whether it meets the other within half a minute.
fn meets(namespace: &str, end: u8, key: [u8; 32], secret: MeshSecret, other: AgentId) -> bool {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    let link = File::open(format!("/run/netns/{namespace}")).unwrap();
    // Only this thread moves, so everything below runs on it.
    move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut config = MeshConfig::loopback(key, Role::Agent);
        config.listen = vec![address(end)];
        config.secret = Some(secret);
        config.mdns = true;
        let (mesh, mut events) = mesh::start(config).await.unwrap();
        let meeting = async {
            while let Some(event) = events.recv().await {
                if matches!(event, MeshEvent::Connected(who) if who == other) {
                    return true;
                }
            }
            false
        };
        let met = tokio::time::timeout(Duration::from_secs(30), meeting).await.unwrap_or(false);
        // Stay until the other has surely seen it too: it is told by the same handshake.
        tokio::time::timeout(Duration::from_secs(1), async { while events.recv().await.is_some() {} })
            .await
            .ok();
        mesh.shutdown().await;
        met
    })
}

#[test]
fn two_nodes_on_one_network_find_each_other_without_being_told() {
    let cable = match Cable::lay() {
        Ok(cable) => cable,
        Err(why) => {
            println!("skipped: network namespaces need root and iproute2 ({why})");
            return;
        }
    };
    let secret = MeshSecret::generate().unwrap();
    let keys = [[1; 32], [2; 32]];
    let [a, b] = [0, 1].map(|end| {
        let (name, secret) = (cable.names[end].clone(), secret.clone());
        let (key, other) = (keys[end], agent_id(&keys[1 - end]));
        thread::spawn(move || meets(&name, u8::try_from(end).unwrap(), key, secret, other))
    });
    assert_eq!((a.join().unwrap(), b.join().unwrap()), (true, true));
}
