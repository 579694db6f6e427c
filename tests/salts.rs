//! A mesh that replaces the salt of its hardware ids while it works (`identity.md` §4): real programs, each with the
//! file that it has at that moment.

use std::fs;

use serde_json::Value;
use tropa_proto::secret::MeshSecret;
use tropa_tests::harness::{Hardware, World};

use crate::jobs::{said, world};

/// What `tropa machines` says.
fn machines(world: &World, secret: &str) -> Value {
    let output = world
        .run(&["machines", "--why", "--json", "--no-mdns", "--wait", "20", "--mesh-secret-file", secret])
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&output)))
}

fn codes(report: &Value) -> Vec<&str> {
    report["warnings"].as_array().unwrap().iter().map(|warning| warning["code"].as_str().unwrap()).collect()
}

#[test]
fn agents_are_compared_under_the_salt_that_all_have_and_who_lost_it_too_early_is_named() {
    let world = world();
    let path = |name: &str| world.path(name).to_str().unwrap().to_owned();
    let [old, both, new] = ["old", "both", "new"].map(|name| path(&format!("{name}.secret")));
    MeshSecret::generate().unwrap().write_new(old.as_ref()).unwrap();
    let output = world.run(&["mesh", "resalt", &old, &both]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let again = world.run(&["mesh", "resalt", &both, &new]).unwrap();
    assert_eq!(again.status.code(), Some(65), "one replacement at a time: {}", said(&again));
    let kept: String = fs::read_to_string(&both).unwrap().lines().take(2).map(|l| format!("{l}\n")).collect();
    MeshSecret::parse(&kept).unwrap().write_new(new.as_ref()).unwrap();

    let doubles = [world.double("cpu", &[]).unwrap(), world.double("cpu", &[]).unwrap()];
    let start = |label: &str, at: usize, secret: &str| {
        let more = ["--listen", "127.0.0.1:0", "--no-mdns", "--mesh-secret-file", secret];
        world.agent(label, doubles[at].address, Hardware::This, &more).unwrap()
    };
    let _one = start("one", 0, &old);
    let two = start("two", 1, &both);
    let report = machines(&world, &old);
    assert_eq!(report["relations"][0]["relation"], "same kernel", "{report}");
    assert!(report["relations"][0]["reasons"].to_string().contains("boot id"), "{report}");
    assert!(!codes(&report).contains(&"OTHER_ID_SALT"), "{report}");

    drop(two);
    let _two = start("two", 1, &new);
    let report = machines(&world, &new);
    assert_eq!(report["at_once"], 1, "{report}");
    let told = report["warnings"].as_array().unwrap().iter().find(|w| w["code"] == "OTHER_ID_SALT");
    assert!(told.is_some_and(|told| told["fix"].to_string().contains("tropa mesh resalt")), "{report}");
    let hidden = report["machines"].to_string().contains("keyed with another id-salt");
    assert!(hidden, "one of the two is compared without ids: {report}");
}
