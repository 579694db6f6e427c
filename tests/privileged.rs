//! What root reads for a service that may not: `tropa-agent evidence --privileged`, and the unit that calls it.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    process::{Command, Output},
};

use tropa_tests::skipped;

/// A group and a user that nobody needs to have an entry for.
const GROUP: u32 = 54_321;
const NOBODY: u32 = 65_534;

fn evidence(runtime: &std::path::Path, user: Option<u32>, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tropa-agent-under-test"));
    command.env_clear().env("HOME", runtime).current_dir("/");
    command.arg("evidence").args(more).arg("--runtime-dir").arg(runtime);
    if let Some(user) = user {
        command.uid(user).gid(GROUP);
    }
    command.output().unwrap()
}

#[test]
fn root_writes_what_a_service_of_the_group_takes_over_and_nobody_else_reads() {
    if !rustix::process::geteuid().is_root() {
        return skipped("only root can write what only root can read");
    }
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path();
    chown(runtime, None, Some(GROUP)).unwrap();
    fs::set_permissions(runtime, fs::Permissions::from_mode(0o2775)).unwrap();

    let written = evidence(runtime, None, &["--privileged"]);
    assert_eq!(written.status.code(), Some(0), "{}", String::from_utf8_lossy(&written.stderr));
    let found = fs::metadata(runtime.join("privileged.json")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o640, 0, GROUP));

    let service = evidence(runtime, Some(NOBODY), &[]);
    assert_eq!(service.status.code(), Some(0));
    assert!(!String::from_utf8_lossy(&service.stderr).contains("is not used"), "the group reads it");
    // A file that is not root's counts for nothing, and says so.
    chown(runtime.join("privileged.json"), Some(NOBODY), None).unwrap();
    let forged = evidence(runtime, Some(NOBODY), &[]);
    assert_eq!(forged.status.code(), Some(0));
    let said = String::from_utf8_lossy(&forged.stderr);
    assert!(said.contains("not a file that only root can write"), "{said}");
}

#[test]
fn who_is_not_root_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let user = rustix::process::geteuid().is_root().then_some(NOBODY);
    let refused = evidence(directory.path(), user, &["--privileged"]);
    assert_eq!(refused.status.code(), Some(77), "{}", String::from_utf8_lossy(&refused.stderr));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn the_unit_keeps_the_rights_that_the_agent_does_without() {
    let unit =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/tropa-agent.service")).unwrap();
    let lines: Vec<&str> = unit.lines().collect();
    for line in [
        "User=tropa",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "PrivateTmp=yes",
        "DevicePolicy=closed",
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
        "MemoryMax=512M",
        "TasksMax=64",
    ] {
        assert!(lines.contains(&line), "{line}");
    }
    let as_root: Vec<&&str> = lines.iter().filter(|line| line.contains("=+")).collect();
    assert!(matches!(as_root[..], [line] if line.contains("evidence --privileged")), "{as_root:?}");
}
