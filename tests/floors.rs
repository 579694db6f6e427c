//! The lowest versions that we accept of some crates, read from `Cargo.lock`.
//!
//! Tools that compare the lockfile with an advisory database are blind to most advisories of libp2p: a
//! lockfile with four vulnerable libp2p crates gave no hit. So the floors are written down here.

use std::fs;
use std::path::{Path, PathBuf};

type Version = (u64, u64, u64);

/// Crate, lowest accepted version, and what was repaired in it. A crate that is absent is fine.
const FLOORS: [(&str, Version, &str); 13] = [
    (
        "libp2p-gossipsub",
        (0, 50, 1),
        "CVE-2026-33040, CVE-2026-34219, GHSA-g3g5-x568-qvqx, GHSA-vrx6-jcp8-vm7m",
    ),
    ("yamux", (0, 13, 10), "CVE-2026-31814, CVE-2026-32314"),
    ("libp2p-quic", (0, 13, 1), "CVE-2026-61544"),
    ("libp2p-rendezvous", (0, 17, 1), "CVE-2026-35405, GHSA-v5hw-cv9c-rpg7"),
    ("quinn-proto", (0, 11, 15), "RUSTSEC-2026-0037, RUSTSEC-2026-0185"),
    ("hickory-proto", (0, 26, 1), "RUSTSEC-2026-0118, RUSTSEC-2026-0119"),
    ("snow", (0, 9, 5), "RUSTSEC-2024-0011"),
    ("bytes", (1, 11, 1), "RUSTSEC-2026-0007"),
    ("h2", (0, 4, 16), "RUSTSEC-2026-0258"),
    ("time", (0, 3, 47), "RUSTSEC-2026-0009"),
    ("tracing-subscriber", (0, 3, 20), "RUSTSEC-2025-0055"),
    ("rustls-webpki", (0, 103, 13), "RUSTSEC-2026-0104"),
    ("anyhow", (1, 0, 103), "RUSTSEC-2026-0190"),
];

#[test]
fn no_crate_in_the_lockfile_is_below_its_floor() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let found = packages(&lock);
    assert!(found.len() > 100, "Cargo.lock was read wrongly: {} packages", found.len());
    let mut below = Vec::new();
    for (name, floor, why) in FLOORS {
        let low = found.iter().filter(|(found, version)| found == name && *version < floor);
        below.extend(low.map(|package| (package, floor, why)));
    }
    assert!(below.is_empty(), "crates below their floor: {below:?}");
}

#[test]
fn the_crates_that_carry_our_floors_are_really_there() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let found = packages(&lock);
    for name in ["libp2p-gossipsub", "yamux", "snow", "bytes", "tracing-subscriber"] {
        assert!(found.iter().any(|(found, _)| found == name), "{name} is not in Cargo.lock");
    }
}

#[test]
fn no_manifest_asks_for_every_feature_of_libp2p_or_tokio() {
    for manifest in manifests() {
        let text = fs::read_to_string(&manifest).unwrap();
        for (name, entry) in dependencies(&text) {
            let everything = (name == "libp2p" || name == "tokio") && entry.contains("\"full\"");
            assert!(!everything, "{}: {name} with `full`", manifest.display());
        }
    }
}

#[test]
fn a_version_below_its_floor_is_found() {
    let lock = "[[package]]\nname = \"bytes\"\nversion = \"1.11.0\"\n\n[[package]]\nname = \"h2\"\nversion = \"0.4.16+x\"\n";
    assert_eq!(packages(lock), [("bytes".to_owned(), (1, 11, 0)), ("h2".to_owned(), (0, 4, 16))]);
    assert!(packages(lock)[0].1 < FLOORS.iter().find(|floor| floor.0 == "bytes").unwrap().1);
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn manifests() -> Vec<PathBuf> {
    let root = root();
    let members = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path().join("Cargo.toml"));
    let mut all: Vec<_> = members.filter(|path| path.is_file()).chain([root.join("Cargo.toml")]).collect();
    all.sort();
    assert!(all.len() >= 5, "{all:?}");
    all
}

/// Name and version of every package; what follows the third number is dropped.
fn packages(lock: &str) -> Vec<(String, Version)> {
    let value = |line: &str, key: &str| {
        line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"').map(str::to_owned)
    };
    let mut all = Vec::new();
    let mut name = String::new();
    for line in lock.lines() {
        if let Some(found) = value(line, "name") {
            name = found;
        } else if let Some(version) = value(line, "version") {
            all.push((name.clone(), numbers(&version)));
        }
    }
    all
}

fn numbers(version: &str) -> Version {
    let mut parts = version.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap())
}

/// Dependencies of a manifest with everything that follows their name, up to the next one or the next section.
fn dependencies(manifest: &str) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for line in manifest.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let name: String =
            line.chars().take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
        let section = line.trim_end_matches(']').rsplit(['.', '[']).next().unwrap_or_default();
        match all.last_mut() {
            _ if line.starts_with('[') => all.push((section.to_owned(), String::new())),
            _ if !name.is_empty() => all.push((name, line.to_owned())),
            Some((_, entry)) => entry.push_str(line),
            None => {}
        }
    }
    all
}
