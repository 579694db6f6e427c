//! Which devices are found on every rung of the ladder, in trees of files and on cards of our own making.

use std::{os::unix::fs::symlink, path::Path};

use super::{
    super::{
        Options, Root, VramWatch,
        files::tests::tree,
        nvidia::{Library, Slice},
        read_with,
    },
    *,
};

struct Fake(Vec<Card>);

impl Library for Fake {
    fn cards(&self) -> Result<Vec<Card>, String> {
        Ok(self.0.clone())
    }
}

fn nvidia(number: u8, processes: Vec<Process>) -> Card {
    Card {
        uuid: format!("GPU-4a1c0000-0000-4000-8000-00000000000{number}"),
        name: "NVIDIA RTX 4090".into(),
        pci: format!("00000000:0{number}:00.0"),
        memory: Some(24 << 30),
        processes,
        ..Card::default()
    }
}

/// A server on port 11434 with the process id 50 and a runner 51.
fn served(environment: &str) -> (tempfile::TempDir, Root) {
    let (directory, root) = tree(&[
        (
            "proc/net/tcp",
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: 0100007F:2CAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7001 1\n   1: \
             0100007F:2CAA 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 7002 1\n",
        ),
        (
            "proc/50/status",
            "Name:\tollama\nPPid:\t1\nNSpid:\t50\nCpus_allowed_list:\t0-3\nMems_allowed_list:\t0\n",
        ),
        ("proc/50/environ", environment),
        ("proc/51/status", "Name:\trunner\nPPid:\t50\nNSpid:\t51\t7\n"),
        ("proc/60/status", "Name:\tother\nPPid:\t1\nNSpid:\t60\n"),
    ]);
    for process in ["50", "60"] {
        std::fs::create_dir_all(directory.path().join(format!("proc/{process}/fd"))).unwrap();
    }
    symlink("socket:[7001]", directory.path().join("proc/50/fd/3")).unwrap();
    symlink("socket:[7002]", directory.path().join("proc/60/fd/3")).unwrap();
    (directory, root)
}

fn first_namespace(directory: &Path) {
    std::fs::create_dir_all(directory.join("proc/self/ns")).unwrap();
    symlink("pid:[4026531836]", directory.join("proc/self/ns/pid")).unwrap();
}

fn claim(root: &Root, cards: Vec<Card>, loaded: Option<(u64, u64)>) -> (Vec<u16>, bool, Attribution) {
    let loaded = loaded.map(|(size, size_vram)| Loaded { size, size_vram, context: 0 });
    let options = Options { port: Some(11434), loaded, ..Options::default() };
    let lane = read_with(root, &options, &mut VramWatch::default(), &Fake(cards)).lane;
    (lane.gpus.to_vec(), lane.dram, lane.method)
}

const GIB: u64 = 1 << 30;

#[test]
fn the_runner_is_found_on_its_gpu() {
    let (directory, root) = served("");
    first_namespace(directory.path());
    let runner = |pid| vec![Process { pid, memory: Some(5 * GIB) }];
    let cards = || vec![nvidia(1, runner(60)), nvidia(2, runner(51))];
    assert_eq!(claim(&root, cards(), None), (vec![1], true, Attribution::Process));
    let whole = Some((5 * GIB, 5 * GIB));
    assert_eq!(claim(&root, cards(), whole), (vec![1], false, Attribution::Process), "all of it on the GPU");
    assert_eq!(claim(&root, cards(), Some((9 * GIB, 5 * GIB))), (vec![1], true, Attribution::Process));
    let both = vec![nvidia(1, runner(51)), nvidia(2, runner(51))];
    assert_eq!(claim(&root, both, None).0, [0, 1], "one model on two GPUs");
}

#[test]
fn another_model_may_go_wherever_the_server_may_go_and_not_where_the_runner_is() {
    let of = |environment: &str, lane: Option<&str>| {
        let (directory, root) = served(environment);
        first_namespace(directory.path());
        let runner = vec![Process { pid: 51, memory: Some(5 * GIB) }];
        let loaded = Some(Loaded { size: 5 * GIB, size_vram: 5 * GIB, context: 0 });
        let lane = lane.map(|text| text.parse().unwrap());
        let options = Options { port: Some(11434), loaded, lane, ..Options::default() };
        let cards = Fake(vec![nvidia(1, vec![]), nvidia(2, runner)]);
        let facts = read_with(&root, &options, &mut VramWatch::default(), &cards);
        let another = facts.anywhere.clone();
        ((facts.lane.gpus.to_vec(), facts.lane.dram), (another.gpus.to_vec(), another.dram))
    };
    assert_eq!(of("", None), ((vec![1], false), (vec![0, 1], true)));
    let pinned = "CUDA_VISIBLE_DEVICES=GPU-4a1c0000-0000-4000-8000-000000000002\0";
    assert_eq!(of(pinned, None), ((vec![1], false), (vec![1], true)), "it may not fit and spill");
    assert_eq!(of("", Some("gpu:1")), ((vec![1], false), (vec![1], false)), "the operator's word");
}

#[test]
fn inside_a_container_a_process_id_alone_is_no_proof() {
    let (_directory, root) = served("");
    let on = |number, pid, memory| nvidia(number, vec![Process { pid, memory: Some(memory) }]);
    let loaded = Some((5 * GIB, 5 * GIB));
    let right = vec![on(1, 51, 5 * GIB + (300 << 20)), on(2, 99, GIB)];
    assert_eq!(claim(&root, right, loaded), (vec![0], false, Attribution::Process));
    let accident = vec![on(1, 51, GIB), on(2, 99, 5 * GIB)];
    assert_eq!(
        claim(&root, accident.clone(), loaded).2,
        Attribution::Everything,
        "a host's process of that number"
    );
    assert_eq!(claim(&root, accident, None).2, Attribution::Everything);
    let two = vec![on(1, 51, 5 * GIB), on(2, 7, 5 * GIB)];
    assert_eq!(claim(&root, two, loaded).2, Attribution::Everything, "two candidates");
}

#[test]
fn a_slice_is_found_and_its_parent_named() {
    let (directory, root) = served("");
    first_namespace(directory.path());
    let slice = |uuid: &str, pid| Slice {
        uuid: uuid.into(),
        processes: vec![Process { pid, memory: None }],
        ..Slice::default()
    };
    let cards =
        vec![Card { slices: vec![slice("MIG-aaaa", 60), slice("MIG-bbbb", 51)], ..nvidia(1, vec![]) }];
    let options = Options { port: Some(11434), ..Options::default() };
    let facts = read_with(&root, &options, &mut VramWatch::default(), &Fake(cards));
    let [place] = *facts.lane.gpus.to_vec() else { panic!("{:?}", facts.lane) };
    assert_eq!(facts.gpus[usize::from(place)].uuid.as_deref(), Some("mig-bbbb"));
}

#[test]
fn the_environment_pins_only_where_it_can_mean_one_thing() {
    let cards = || vec![nvidia(1, vec![]), nvidia(2, vec![])];
    let of = |environment: &str, cards| {
        let (_directory, root) = served(environment);
        claim(&root, cards, None)
    };
    let pinned = (vec![1], true, Attribution::Environment);
    assert_eq!(of("CUDA_VISIBLE_DEVICES=GPU-4a1c0000-0000-4000-8000-000000000002\0", cards()), pinned);
    assert_eq!(of("CUDA_DEVICE_ORDER=PCI_BUS_ID\0CUDA_VISIBLE_DEVICES=1\0", cards()), pinned);
    assert_eq!(of("CUDA_VISIBLE_DEVICES=0\0", vec![nvidia(1, vec![])]).2, Attribution::Environment);
    for vague in
        ["CUDA_VISIBLE_DEVICES=1\0", "CUDA_VISIBLE_DEVICES=\0", "NVIDIA_VISIBLE_DEVICES=all\0", "X=1\0", ""]
    {
        assert_eq!(of(vague, cards()), (vec![0, 1], true, Attribution::Everything), "{vague}");
    }
}

#[test]
fn the_servers_log_narrows_the_lane_to_the_devices_that_it_names() {
    let cards = || vec![nvidia(1, vec![]), nvidia(2, vec![])];
    let line = |library: &str, pci: &str| {
        format!("time=x level=INFO msg=\"inference compute\" id=0 library={library} pci_id={pci}\n")
    };
    let of = |devices: &str, environment: &str, cards| {
        let (directory, root) = served(environment);
        let begin = "time=x level=INFO msg=\"Listening on [::]:11434 (version 0.24.0)\"\n";
        std::fs::write(directory.path().join("log"), format!("{begin}{devices}time=x level=INFO msg=x\n"))
            .unwrap();
        symlink("/log", directory.path().join("proc/50/fd/2")).unwrap();
        claim(&root, cards, Some((5, 5)))
    };
    let (one, two) = (line("CUDA", "0000:01:00.0"), line("CUDA", "0000:02:00.0"));
    let pinned = "CUDA_DEVICE_ORDER=PCI_BUS_ID\0CUDA_VISIBLE_DEVICES=0\0";
    assert_eq!(of(&two, "", cards()), (vec![1], false, Attribution::ServerLog));
    assert_eq!(of(&two, pinned, cards()), (vec![1], false, Attribution::ServerLog), "before the environment");
    assert_eq!(of(&format!("{one}{two}"), "", cards()), (vec![0, 1], false, Attribution::ServerLog));
    assert_eq!(of(&line("cpu", "\"\""), "", cards()), (vec![], true, Attribution::ServerLog), "no GPU");
    for nothing in [line("Metal", "\"\""), format!("{two}{}", line("CUDA", "")), line("CUDA", "0000:07:00.0")]
    {
        assert_eq!(of(&nothing, "", cards()).2, Attribution::Everything, "{nothing}");
        assert_eq!(of(&nothing, pinned, cards()).2, Attribution::Environment, "{nothing}");
    }
    let slice = |uuid: &str| Slice { uuid: uuid.into(), ..Slice::default() };
    let sliced = Card { slices: vec![slice("MIG-a"), slice("MIG-b")], ..nvidia(2, vec![]) };
    let found = of(&two, "", vec![nvidia(1, vec![]), sliced]);
    assert_eq!(found.0, [1, 2], "which slice it is, the log does not say");
}

#[test]
fn a_drm_client_that_holds_memory_names_its_gpu() {
    let (directory, root) = served("");
    let put = |path: &str, text: &str| {
        let path = directory.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    for (card, slot) in [("card0", "0000:03:00.0"), ("card1", "0000:04:00.0")] {
        put(&format!("sys/class/drm/{card}/device/vendor"), "0x1002\n");
        put(&format!("sys/class/drm/{card}/device/uevent"), &format!("PCI_SLOT_NAME={slot}\n"));
    }
    put("proc/51/fdinfo/4", "drm-pdev:\t0000:03:00.0\ndrm-client-id:\t1\ndrm-memory-vram:\t2048 KiB\n");
    assert_eq!(claim(&root, vec![], None).2, Attribution::Everything, "opened, not used");
    put("proc/51/fdinfo/5", "drm-pdev:\t0000:04:00.0\ndrm-client-id:\t2\ndrm-memory-vram:\t2048000 KiB\n");
    assert_eq!(claim(&root, vec![], None), (vec![1], true, Attribution::DrmFd));
}

#[test]
fn the_step_in_memory_is_the_last_sign_and_counts_cards_slices_and_amds_alike() {
    let (directory, root) = served("");
    let put = |path: &str, text: &str| {
        let path = directory.path().join("sys/class/drm/card0/device").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    put("vendor", "0x1002\n");
    put("uevent", "PCI_SLOT_NAME=0000:09:00.0\n");
    put("mem_info_vram_used", "0\n");
    let mut watch = VramWatch::default();
    let mut lane = |loaded: u64, card: u64, slice: u64| {
        let loaded = (loaded > 0).then_some(loaded * GIB);
        let options = Options {
            port: Some(11434),
            loaded: loaded.map(|bytes| Loaded { size: bytes, size_vram: bytes, context: 0 }),
            on_gpu: loaded.map(|bytes| ("a".to_owned(), bytes)).into_iter().collect(),
            ..Options::default()
        };
        let sliced = Slice { uuid: "MIG-a".into(), used: Some(slice * GIB), ..Slice::default() };
        let cards = vec![
            Card { used: Some(card * GIB), ..nvidia(1, vec![]) },
            Card { slices: vec![sliced], ..nvidia(2, vec![]) },
        ];
        let lane = read_with(&root, &options, &mut watch, &Fake(cards)).lane;
        (lane.gpus.to_vec(), lane.dram, lane.method)
    };
    assert_eq!(lane(0, 1, 1), (vec![0, 1, 2], true, Attribution::Everything));
    assert_eq!(lane(5, 6, 1), (vec![0], false, Attribution::VramStep));
    assert_eq!(lane(0, 1, 1).2, Attribution::Everything, "where the next one goes is not known");
    assert_eq!(lane(5, 1, 6), (vec![1], false, Attribution::VramStep), "a slice");
    lane(0, 1, 1);
    put("mem_info_vram_used", &format!("{}\n", 5 * GIB));
    assert_eq!(lane(5, 1, 1), (vec![2], false, Attribution::VramStep), "AMD's");
    std::fs::remove_file(directory.path().join("sys/class/drm/card0/device/mem_info_vram_used")).unwrap();
    assert_eq!(lane(5, 1, 1).2, Attribution::Everything, "one that does not tell may be the one");
}

#[test]
fn the_operators_word_comes_first_and_an_unknown_gpu_reserves_everything() {
    let (_directory, root) = served("");
    let lane = |text: &str| {
        let options = Options { lane: Some(text.parse().unwrap()), ..Options::default() };
        read_with(
            &root,
            &options,
            &mut VramWatch::default(),
            &Fake(vec![nvidia(1, vec![]), nvidia(2, vec![])]),
        )
        .lane
    };
    for name in ["gpu:1", "GPU:GPU-4a1c0000-0000-4000-8000-000000000002", "gpu:0000:02:00.0", "gpu:02:00.0"] {
        let lane = lane(name);
        assert_eq!((&*lane.gpus, lane.dram, lane.method), (&[1][..], false, Attribution::Operator), "{name}");
    }
    let node = lane("dram-node1, gpu:0");
    assert_eq!((&*node.gpus, node.dram, &*node.numa_nodes), (&[0][..], true, &[1][..]));
    assert!(lane("dram,dram-node1").numa_nodes.is_empty());
    assert_eq!(lane("gpu:7").method, Attribution::Everything);
    for wrong in ["", "cpu", "gpu:", "gpu", "dram-node", "dram-nodex", "dram,,gpu:0"] {
        assert!(wrong.parse::<LaneSpec>().is_err(), "{wrong}");
    }
    let text = "dram,gpu:0";
    assert_eq!(text.parse::<LaneSpec>().unwrap().to_string(), text);
}

/// Adds AMD's card to a tree, at an address.
fn amd(directory: &Path, slot: &str) {
    let device = directory.join("sys/class/drm/card0/device");
    std::fs::create_dir_all(&device).unwrap();
    std::fs::write(device.join("vendor"), "0x1002\n").unwrap();
    std::fs::write(device.join("uevent"), format!("PCI_SLOT_NAME={slot}\n")).unwrap();
}

#[test]
fn a_variable_hides_the_gpus_of_its_vendor_and_leaves_those_of_another() {
    let pinned = "CUDA_DEVICE_ORDER=PCI_BUS_ID\0CUDA_VISIBLE_DEVICES=1\0";
    for (environment, gpus, method) in [
        (pinned, vec![1, 2], Attribution::Environment),
        ("ROCR_VISIBLE_DEVICES=0\0", vec![0, 1, 2], Attribution::Environment),
        ("CUDA_VISIBLE_DEVICES=0000:09:00.0\0", vec![0, 1, 2], Attribution::Everything),
    ] {
        let (directory, root) = served(environment);
        amd(directory.path(), "0000:09:00.0");
        let found = claim(&root, vec![nvidia(1, vec![]), nvidia(2, vec![])], None);
        assert_eq!((found.0, found.2), (gpus, method), "{environment}");
    }
}

#[test]
fn runners_on_the_cards_of_two_vendors_are_both_found() {
    let (directory, root) = served("");
    first_namespace(directory.path());
    amd(directory.path(), "0000:09:00.0");
    let info = directory.path().join("proc/51/fdinfo/4");
    std::fs::create_dir_all(info.parent().unwrap()).unwrap();
    std::fs::write(info, "drm-pdev:\t0000:09:00.0\ndrm-client-id:\t1\ndrm-memory-vram:\t2048000 KiB\n")
        .unwrap();
    let cards = vec![nvidia(1, vec![Process { pid: 51, memory: None }]), nvidia(2, vec![])];
    assert_eq!(claim(&root, cards, None), (vec![0, 2], true, Attribution::Process));
}
