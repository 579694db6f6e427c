use std::os::unix::fs::PermissionsExt as _;

use tropa_proto::{
    bounded::{List, Text},
    evidence::{Gpu, GpuKind, Os, Reading},
};

use super::*;

fn hardware(smbios: Option<&str>, gpu: Option<&str>) -> Facts {
    let gpu = gpu.map(|uuid| Gpu {
        vendor: Text::cut("nvidia"),
        name: Text::cut("x"),
        uuid: Some(uuid.to_owned()),
        kind: GpuKind::Full,
        pci: None,
        memory: 0,
        uma: false,
    });
    Facts {
        product_uuid: smbios.map_or(Reading::Absent, |uuid| Reading::Value(uuid.to_owned())),
        gpus: List::new(gpu.into_iter().collect()).unwrap(),
        ..Facts::empty(Os::Linux)
    }
}

fn open(root: &Path) -> Result<State, StateError> {
    State::open(root, "127.0.0.1", 11434, &hardware(Some("board-a"), None))
}

fn root() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    directory
}

#[test]
fn numbers_go_on_above_those_of_a_copy_and_stay_there_over_a_restart() {
    let root = root();
    let mut state = open(root.path()).unwrap();
    state.next_seq().unwrap();
    state.skip_past(5_000).unwrap();
    let leapt = state.next_seq().unwrap();
    assert_eq!(leapt, 5_000 + SEQ_BLOCK);
    state.skip_past(10).unwrap();
    assert_eq!(state.next_seq().unwrap(), leapt + 1);
    drop(state);
    assert!(open(root.path()).unwrap().next_seq().unwrap() > leapt + 1);
}

#[test]
fn an_agent_finds_its_identity_again_and_its_numbers_only_rise() {
    let root = root();
    let mut first = open(root.path()).unwrap();
    let id = first.id();
    let numbers: Vec<u64> = (0..3).map(|_| first.next_seq().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3]);
    drop(first);
    let mut second = open(root.path()).unwrap();
    assert_eq!(second.id(), id);
    assert_eq!((second.parent(), second.has_moved()), (None, false));
    // A life that ended without a word may have used its whole block.
    assert!(second.next_seq().unwrap() > SEQ_BLOCK);
    let before = fs::read_to_string(second.directory().join("seq")).unwrap();
    for _ in 0..SEQ_BLOCK {
        second.next_seq().unwrap();
    }
    assert_ne!(
        fs::read_to_string(second.directory().join("seq")).unwrap(),
        before,
        "the next block is stored"
    );
}

#[test]
fn two_agents_never_share_a_directory() {
    let root = root();
    let (first, second) = (open(root.path()).unwrap(), open(root.path()).unwrap());
    assert_ne!(first.id(), second.id());
    assert_ne!(first.directory(), second.directory());
    let id = first.id();
    drop(first);
    assert_eq!(open(root.path()).unwrap().id(), id, "the first place is free again");
}

#[test]
fn every_install_has_a_directory_of_its_own() {
    assert_eq!(install_name("127.0.0.1", 11434), "11434");
    assert_eq!(install_name("localhost", 11434), "11434");
    assert_eq!(install_name("[::1]", 11434), "11434");
    assert_eq!(install_name("192.168.1.5", 11434), "192.168.1.5-11434");
    assert_eq!(install_name("../../etc", 1), "_.._etc-1");
}

#[test]
fn a_copied_state_takes_a_new_key_on_other_hardware_and_keeps_the_old_as_its_parent() {
    let root = root();
    let mut state = open(root.path()).unwrap();
    let (old, seq) = (state.id(), state.next_seq().unwrap());
    drop(state);
    let elsewhere = hardware(Some("board-b"), None);
    let mut copy = State::open(root.path(), "127.0.0.1", 11434, &elsewhere).unwrap();
    assert!(copy.has_moved());
    assert_ne!(copy.id(), old);
    assert_eq!(copy.parent(), Some(old));
    assert!(copy.next_seq().unwrap() > seq);
    let id = copy.id();
    drop(copy);
    let again = State::open(root.path(), "127.0.0.1", 11434, &elsewhere).unwrap();
    assert_eq!((again.id(), again.parent(), again.has_moved()), (id, Some(old), false));
}

#[test]
fn a_key_stays_where_some_hardware_stays_or_nothing_contradicts_it() {
    let seed = [7; 32];
    let of = |smbios, gpu| anchors(&seed, &hardware(smbios, gpu));
    let birth = of(Some("board-a"), Some("gpu-a"));
    assert!(fits(&birth, &of(Some("board-a"), Some("gpu-b"))), "a new GPU");
    assert!(fits(&birth, &of(Some("board-b"), Some("gpu-a"))), "a new board");
    assert!(fits(&birth, &of(None, None)), "nothing readable");
    assert!(fits(&birth, &of(None, Some("gpu-a"))));
    assert!(fits(&of(None, None), &birth), "born in a container");
    assert!(!fits(&birth, &of(Some("board-b"), Some("gpu-b"))));
    assert!(!fits(&birth, &of(None, Some("gpu-b"))));
}

#[test]
fn the_disk_holds_no_raw_id() {
    let root = root();
    let state = open(root.path()).unwrap();
    for name in ["birth", "key", "seq"] {
        let content = fs::read(state.directory().join(name)).unwrap();
        assert!(!content.windows(7).any(|part| part == b"board-a"), "{name}");
    }
    assert!(!format!("{state:?}").contains(&hex(&state.key().to_bytes())));
}

#[test]
fn what_others_may_read_is_refused_with_the_command_that_mends_it() {
    let root = root();
    let directory = open(root.path()).unwrap().directory().to_owned();
    let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for (path, loose, tight) in [
        (directory.join("key"), 0o640, 0o600),
        (directory.clone(), 0o750, 0o700),
        (root.path().to_owned(), 0o755, 0o700),
    ] {
        chmod(&path, loose);
        let error = open(root.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("chmod {tight:o} {}", path.display())), "{error}");
        chmod(&path, tight);
    }
    open(root.path()).unwrap();
}

#[test]
fn a_damaged_state_is_refused_and_never_replaced_silently() {
    let root = root();
    let directory = open(root.path()).unwrap().directory().to_owned();
    let put = |name: &str, content: &[u8]| fs::write(directory.join(name), content).unwrap();
    for (name, content) in [("key", &b"short"[..]), ("seq", b"soon"), ("birth", b"{"), ("seq", &[0xff; 9])] {
        let before = fs::read(directory.join(name)).unwrap();
        put(name, content);
        let error = open(root.path()).unwrap_err();
        assert!(matches!(error, StateError::Damaged { .. }), "{name}: {error}");
        assert!(error.to_string().contains("new identity"), "{error}");
        put(name, &before);
    }
    fs::remove_file(directory.join("seq")).unwrap();
    assert!(matches!(open(root.path()), Err(StateError::Damaged { .. })));
    rustix::fs::mkfifoat(rustix::fs::CWD, directory.join("seq"), rustix::fs::Mode::RUSR).unwrap();
    assert!(matches!(open(root.path()), Err(StateError::Damaged { .. })), "a FIFO neither blocks nor counts");
}
