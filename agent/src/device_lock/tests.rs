use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::*;

const DIRECTORY: &str = "TROPA_TEST_LOCK_DIRECTORY";

/// Longer than any step here takes on a busy machine: reaching it is a failure, not a wait.
const LIMIT: Duration = Duration::from_secs(20);

fn gpu(id: &str) -> DeviceName {
    DeviceName::Gpu(id.to_owned())
}

fn slice(id: &str) -> DeviceName {
    DeviceName::Mig { uuid: id.to_owned(), parent: "a".to_owned() }
}

fn set(devices: &[DeviceName]) -> BTreeSet<DeviceName> {
    devices.iter().cloned().collect()
}

fn locks(directory: &Path, devices: &[DeviceName], label: &str) -> DeviceLocks {
    DeviceLocks::open(directory, set(devices), label).unwrap()
}

async fn take(locks: &DeviceLocks) -> Held {
    tokio::time::timeout(LIMIT, locks.acquire(locks.devices(), |_| ())).await.unwrap().unwrap()
}

/// Starts a wait that must block, waits until it does, and gives its answer and the holder's name.
async fn blocked(locks: Arc<DeviceLocks>) -> (tokio::task::JoinHandle<Result<Held, LockError>>, String) {
    let (tell, told) = tokio::sync::oneshot::channel();
    let mut tell = Some(tell);
    let wait = tokio::spawn(async move {
        locks
            .acquire(locks.devices(), |holder| {
                if let Some(tell) = tell.take() {
                    let _ = tell.send(holder);
                }
            })
            .await
    });
    let holder = tokio::time::timeout(LIMIT, told).await.unwrap().unwrap();
    (wait, holder)
}

fn record(attempt: &str) -> SettleRecord {
    SettleRecord {
        endpoint: "http://127.0.0.1:11434".into(),
        netns: 4_026_531_840,
        model: "tiny".into(),
        options_hash: "00".into(),
        attempt: attempt.into(),
        remaining_ms: 60_000,
    }
}

/// Not a test by itself: other tests run it in a process of its own, which holds `gpu-a` until it is killed.
#[tokio::test]
#[ignore = "run by other tests in a process of its own"]
async fn process_that_holds_a_gpu() {
    let directory = std::env::var_os(DIRECTORY).unwrap();
    let locks = locks(Path::new(&directory), &[gpu("a")], "the other process");
    let held = take(&locks).await;
    held.record(record("job-1-1")).unwrap();
    println!("holding");
    // Its parent kills it; should the parent die, this ends.
    let _ = io::stdin().read(&mut [0]);
}

struct OtherProcess(Child);

impl OtherProcess {
    fn start(directory: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "device_lock::tests::process_that_holds_a_gpu"])
            .env(DIRECTORY, directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("holding")), "the other process never held the lock");
        Self(child)
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn two_agents_never_hold_one_device_at_the_same_time() {
    let directory = tempfile::tempdir().unwrap();
    let first = locks(directory.path(), &[gpu("a"), DeviceName::Dram], "first");
    let second = Arc::new(locks(directory.path(), &[gpu("a")], "second"));
    let held = take(&first).await;
    assert!(!held.someone_waits());
    let (wait, holder) = blocked(Arc::clone(&second)).await;
    assert_eq!(holder, "first");
    assert!(held.someone_waits());
    assert!(!wait.is_finished());
    drop(held);
    let held = tokio::time::timeout(LIMIT, wait).await.unwrap().unwrap().unwrap();
    assert!(!held.someone_waits(), "a wait that ended leaves no mark");
    assert_eq!(held.foreign_records(), LeftBehind::default());
}

#[tokio::test]
async fn different_devices_do_not_wait_for_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let first = locks(directory.path(), &[gpu("a")], "first");
    let second = locks(directory.path(), &[gpu("b")], "second");
    let _both = (take(&first).await, take(&second).await);
}

#[tokio::test]
async fn a_killed_holder_frees_its_device_and_leaves_its_request_to_be_settled() {
    let directory = tempfile::tempdir().unwrap();
    let mut other = OtherProcess::start(directory.path());
    let ours = Arc::new(locks(directory.path(), &[gpu("a")], "ours"));
    let (wait, holder) = blocked(Arc::clone(&ours)).await;
    assert_eq!(holder, "the other process");
    other.0.kill().unwrap();
    let held = tokio::time::timeout(LIMIT, wait).await.unwrap().unwrap().unwrap();
    assert_eq!(held.foreign_records(), LeftBehind { records: vec![record("job-1-1")], unreadable: false });
    held.record(record("job-2-1")).unwrap();
    drop(held);
    // Neither was cleared: both stay for whoever comes next.
    let held = take(&ours).await;
    assert_eq!(held.foreign_records().records, [record("job-1-1"), record("job-2-1")]);
    held.settled().unwrap();
    held.record(record("job-3-1")).unwrap();
    held.clear("job-3-1").unwrap();
    drop(held);
    assert_eq!(take(&ours).await.foreign_records(), LeftBehind::default());
}

#[tokio::test]
async fn a_stopped_holder_keeps_its_device() {
    let directory = tempfile::tempdir().unwrap();
    let other = OtherProcess::start(directory.path());
    let pid = rustix::process::Pid::from_child(&other.0);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let ours = Arc::new(locks(directory.path(), &[gpu("a")], "ours"));
    let (wait, _) = blocked(ours).await;
    drop(other);
    tokio::time::timeout(LIMIT, wait).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_wait_that_is_given_up_ends_at_once_and_never_takes_the_device() {
    let directory = tempfile::tempdir().unwrap();
    let first = locks(directory.path(), &[gpu("a")], "first");
    let second = Arc::new(locks(directory.path(), &[gpu("a")], "second"));
    let held = take(&first).await;
    let (wait, _) = blocked(Arc::clone(&second)).await;
    wait.abort();
    assert!(tokio::time::timeout(LIMIT, wait).await.unwrap().unwrap_err().is_cancelled());
    assert!(!held.someone_waits(), "who gave up does not wait");
    // The thread still sits in the kernel: the next request of the same agent takes over its place.
    let again = Arc::clone(&second);
    let wait = tokio::spawn(async move { again.acquire(again.devices(), |_| ()).await });
    drop(held);
    let held = tokio::time::timeout(LIMIT, wait).await.unwrap().unwrap().unwrap();
    drop(held);
    take(&first).await;
}

#[tokio::test]
async fn slices_share_their_gpu_and_exclude_the_whole_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let one = locks(directory.path(), &[slice("1")], "one");
    let two = locks(directory.path(), &[slice("2")], "two");
    let whole = Arc::new(locks(directory.path(), &[gpu("A")], "whole"));
    let held = (take(&one).await, take(&two).await);
    let (wait, _) = blocked(whole).await;
    held.0.record(record("job-1-1")).unwrap();
    drop(held);
    let held = tokio::time::timeout(LIMIT, wait).await.unwrap().unwrap().unwrap();
    assert_eq!(held.foreign_records().records, [record("job-1-1")], "the whole answers for its parts");
    held.settled().unwrap();
    drop(held);
    assert_eq!(take(&one).await.foreign_records(), LeftBehind::default());
}

#[tokio::test]
async fn nodes_share_the_memory_and_exclude_all_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let zero = locks(directory.path(), &[DeviceName::DramNode(0)], "zero");
    let one = locks(directory.path(), &[DeviceName::DramNode(1)], "one");
    let all = Arc::new(locks(directory.path(), &[DeviceName::Dram], "all"));
    let held = (take(&zero).await, take(&one).await);
    let (wait, _) = blocked(all).await;
    drop(held);
    tokio::time::timeout(LIMIT, wait).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_wiped_directory_is_noticed_by_the_holder_and_by_who_waited() {
    let directory = tempfile::tempdir().unwrap();
    let first = locks(directory.path(), &[gpu("a")], "first");
    let second = Arc::new(locks(directory.path(), &[gpu("a")], "second"));
    let before = first.ids().unwrap();
    let held = take(&first).await;
    assert!(held.is_in_place());
    let (wait, _) = blocked(second).await;
    std::fs::remove_file(directory.path().join("gpu-a")).unwrap();
    assert!(!held.is_in_place());
    drop(held);
    let held = tokio::time::timeout(LIMIT, wait).await.unwrap().unwrap().unwrap();
    assert!(held.is_in_place(), "the waiter took the file that is there now");
    assert_ne!(first.ids().unwrap(), before);
}

#[test]
fn lock_ids_are_equal_exactly_where_the_directory_is_shared() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let devices = [gpu("a"), DeviceName::Dram];
    let first = locks(here.path(), &devices, "first").ids().unwrap();
    assert_eq!(first, locks(here.path(), &devices, "second").ids().unwrap());
    let other = locks(there.path(), &devices, "third").ids().unwrap();
    assert!(first.iter().all(|id| !other.contains(id)));
}

#[test]
fn a_link_a_fifo_and_a_file_of_somebody_else_are_refused() {
    use rustix::fs::{CWD, Mode as Permissions};
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("gpu-text"), "hello\n").unwrap();
    std::fs::write(at("gpu-empty"), "").unwrap();
    std::fs::create_dir(at("gpu-directory")).unwrap();
    for name in ["gpu-text", "gpu-empty"] {
        std::fs::set_permissions(at(name), std::os::unix::fs::PermissionsExt::from_mode(0o660)).unwrap();
    }
    std::os::unix::fs::symlink(at("gpu-text"), at("gpu-link")).unwrap();
    rustix::fs::mkfifoat(CWD, at("gpu-fifo"), Permissions::from_raw_mode(0o660)).unwrap();
    for name in ["text", "empty", "directory", "link", "fifo"] {
        let refused = DeviceLocks::open(directory.path(), set(&[gpu(name)]), "x");
        assert!(refused.is_err(), "{name}");
    }
    locks(directory.path(), &[gpu("a")], "x");
    std::fs::set_permissions(at("gpu-a"), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let error = DeviceLocks::open(directory.path(), set(&[gpu("a")]), "x").unwrap_err().to_string();
    assert!(error.contains("chmod 0660"), "{error}");
}

#[tokio::test]
async fn a_torn_record_counts_as_a_request() {
    let directory = tempfile::tempdir().unwrap();
    let locks = locks(directory.path(), &[gpu("a")], "x");
    let path = directory.path().join("gpu-a");
    let mut content = std::fs::read(&path).unwrap();
    content.extend(b"{\"record\":{\"endpo\0\n");
    std::fs::write(&path, content).unwrap();
    let held = take(&locks).await;
    assert!(held.foreign_records().unreadable);
    drop(held);
    assert!(take(&locks).await.foreign_records().unreadable, "it stays until it is settled");
    let held = take(&locks).await;
    held.settled().unwrap();
    drop(held);
    assert!(!take(&locks).await.foreign_records().unreadable);
}

#[test]
fn a_name_from_a_driver_cannot_leave_the_directory() {
    assert_eq!(gpu("../../etc/passwd").file_name(), "gpu-..___..___etc_passwd".replace("___", "_"));
    assert_eq!(gpu("GPU-4A1C").file_name(), "gpu-4a1c");
    assert_eq!(slice("MIG-4A1C").file_name(), "mig-4a1c");
    assert!(gpu(&"x".repeat(1000)).file_name().len() < 128);
}

#[test]
fn what_a_model_occupies_follows_from_where_it_lies() {
    use tropa_proto::{
        bounded::{List, Text},
        evidence::{Gpu, Os},
    };
    let gpu = |uuid: Option<&str>, kind, uma| Gpu {
        vendor: Text::cut("nvidia"),
        name: Text::cut("x"),
        uuid: uuid.map(str::to_owned),
        kind,
        pci: Some(Text::cut("0000:01:00.0")),
        memory: 0,
        uma,
    };
    let of = |gpus: Vec<Gpu<String>>, dram, nodes: Vec<u16>, what| {
        let mut facts = Facts::empty(Os::Linux);
        facts.lane.gpus = List::new((0..gpus.len()).map(|place| place as u16).collect()).unwrap();
        facts.lane.dram = dram;
        facts.lane.numa_nodes = List::new(nodes).unwrap();
        facts.gpus = List::new(gpus).unwrap();
        occupied(&facts, what).iter().map(DeviceName::file_name).collect::<Vec<_>>().join(" ")
    };
    let full = || vec![gpu(Some("gpu-a"), GpuKind::Full, false)];
    assert_eq!(of(full(), true, vec![], Occupies::Gpus), "gpu-a");
    assert_eq!(of(full(), true, vec![], Occupies::Dram), "dram");
    assert_eq!(of(full(), false, vec![], Occupies::Both), "dram gpu-a");
    assert_eq!(of(full(), true, vec![], Occupies::Claimed), "dram gpu-a");
    assert_eq!(of(full(), false, vec![], Occupies::Claimed), "gpu-a", "the operator gave the GPU only");
    assert_eq!(of(vec![], false, vec![], Occupies::Gpus), "dram", "there is nothing else");
    assert_eq!(of(vec![], true, vec![0, 1], Occupies::Claimed), "dram-node0 dram-node1");
    let shared = vec![gpu(Some("gpu-a"), GpuKind::Full, true)];
    assert_eq!(of(shared, false, vec![1], Occupies::Gpus), "dram gpu-a", "it works in all of the memory");
    assert_eq!(
        of(vec![gpu(None, GpuKind::Full, false)], false, vec![], Occupies::Gpus),
        "gpu-pci-0000:01:00.0"
    );
    let virtual_one = vec![gpu(Some("gpu-v"), GpuKind::Vgpu, false)];
    assert_eq!(of(virtual_one, false, vec![], Occupies::Gpus), "gpu-pci-0000:01:00.0", "its id says nothing");
    let slice = vec![gpu(Some("mig-1"), GpuKind::Mig { parent: "gpu-a".into() }, false)];
    assert_eq!(of(slice, false, vec![], Occupies::Gpus), "mig-1");
}

#[test]
fn where_a_model_lies_follows_from_its_two_sizes() {
    let of = |size, size_vram| Occupies::of(Some(Loaded { size, size_vram, context: 0 }));
    assert_eq!(of(10, 10), Occupies::Gpus);
    assert_eq!(of(10, 0), Occupies::Dram);
    assert_eq!(of(10, 4), Occupies::Both);
    assert_eq!(of(0, 0), Occupies::Claimed);
    assert_eq!(Occupies::of(None), Occupies::Claimed);
}
