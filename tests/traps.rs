//! Traps of `identity.md` §17 that need another user or another mount: files that this user may not read, and a boot id
//! that a container has put over the kernel's.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::Path,
    process::Command,
};

use rustix::process::geteuid;
use serde_json::Value;
use tropa_tests::skipped;

/// A user that nobody needs to have an entry for.
const NOBODY: u32 = 65_534;

const BOARD: &str = "11223344-5566-7788-99aa-bbccddeeff00\n";

/// What the agent reads, with raw values.
fn evidence(mut command: Command, home: &Path, more: &[&str]) -> Value {
    command.env_clear().env("HOME", home).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
    let output = command.args(["evidence", "--json", "--show-raw"]).args(more).output().unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn agent() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tropa-agent-under-test"))
}

#[test]
fn a_board_id_that_this_user_may_not_read_is_denied_and_nothing_stands_in_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let (home, tree) = (directory.path(), directory.path().join("tree"));
    let board = tree.join("sys/class/dmi/id/product_uuid");
    let serial = tree.join("sys/firmware/devicetree/base/serial-number");
    for (path, text) in [(&board, BOARD), (&serial, "10000000abcdef01\0")] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fs::set_permissions(home, fs::Permissions::from_mode(0o755)).unwrap();
    let root = tree.to_str().unwrap();
    let read = |user: Option<u32>| {
        let mut command = agent();
        user.into_iter().for_each(|user| _ = command.uid(user).gid(user));
        evidence(command, home, &["--evidence-root", root])["signals"]["product_uuid"]["read"].clone()
    };
    assert_eq!(read(None), "ok");
    // As the kernel has it: for root alone. Who is not root takes the right from himself.
    let (mode, user) = if geteuid().is_root() { (0o400, Some(NOBODY)) } else { (0o000, None) };
    fs::set_permissions(&board, fs::Permissions::from_mode(mode)).unwrap();
    assert_eq!(read(user), "denied");
    if geteuid().is_root() {
        assert_eq!(read(None), "ok", "root reads it");
        chown(&board, Some(NOBODY), None).unwrap();
        assert_eq!(read(user), "ok", "it was the right and nothing else");
    }
}

#[test]
fn a_boot_id_that_was_mounted_over_the_kernels_is_the_containers_own() {
    if !geteuid().is_root() {
        return skipped("mounts need root");
    }
    let directory = tempfile::tempdir().unwrap();
    let own = directory.path().join("boot_id");
    fs::write(&own, "6b29fc40-ca47-4067-b31d-00dd010662da\n").unwrap();
    let here = evidence(agent(), directory.path(), &[]);
    let program = env!("CARGO_BIN_EXE_tropa-agent-under-test");
    // The mount ends with the process.
    let script = r#"mount --bind "$1" /proc/sys/kernel/random/boot_id || exit 9; program=$2; shift 2; exec "$program" "$@""#;
    let mut inside = Command::new("unshare");
    inside.args(["-m", "sh", "-c", script, "sh"]).arg(&own).arg(program);
    let there = evidence(inside, directory.path(), &[]);
    let [kernel, container] = [&here, &there].map(|evidence| &evidence["signals"]["boot_id"]);
    if kernel["read"] != "ok" {
        return skipped(&format!("this kernel's own boot id is hidden here: {kernel}"));
    }
    assert_eq!(container["read"], "virtual", "another file system: {container}");
    assert!(container["raw"][0].as_str().is_some_and(|raw| raw.starts_with("6b29fc40")), "{container}");
    let epoch = |evidence: &Value| {
        evidence["signals"]["epoch_ns"]["published"][0].as_str().and_then(|text| text.parse::<i64>().ok())
    };
    let (Some(one), Some(other)) = (epoch(&here), epoch(&there)) else { panic!("no epoch: {here} {there}") };
    assert!(one.abs_diff(other) < 1_000_000_000, "the boot epoch still tells the kernel: {one} {other}");
}
