//! Logs as Ollama 0.24.0 writes them, and all that may stand there instead.

use std::{collections::BTreeMap, os::unix::fs::symlink};

use rustix::fs::{CWD, Mode};
use tropa_proto::evidence::Os;

use super::{
    super::{
        files::{Root, tests::tree},
        process,
    },
    *,
};

const CONFIG: &str = "time=2026-11-28T18:00:00.001Z level=INFO source=routes.go:1752 msg=\"server config\" env=\"map[CUDA_VISIBLE_DEVICES: OLLAMA_HOST:http://127.0.0.1:11434]\"\n";
const AFTER: &str = "time=2026-11-28T18:00:01.003Z level=INFO source=routes.go:1858 msg=\"vram-based default context\" total_vram=\"24.0 GiB\" default_num_ctx=32768\n";

fn listening(port: u16) -> String {
    format!(
        "time=2026-11-28T18:00:00.010Z level=INFO source=routes.go:1810 msg=\"Listening on 127.0.0.1:{port} (version \
         0.24.0)\"\n"
    )
}

fn device(library: &str, pci: &str) -> String {
    format!(
        "time=2026-11-28T18:00:01.002Z level=INFO source=types.go:42 msg=\"inference compute\" \
         id=GPU-4a1c0000-0000-4000-8000-000000000009 filter_id=\"\" library={library} compute=8.9 name=CUDA0 \
         description=\"NVIDIA \\\"GeForce\\\" RTX 4090 pci_id=0000:99:00.0\" libdirs=ollama,cuda_v13 driver=13.0 \
         pci_id={pci} type=discrete total=\"24.0 GiB\" available=\"23.5 GiB\"\n"
    )
}

fn run(port: u16, devices: &[&str]) -> String {
    let devices: String = devices.iter().map(|pci| device("CUDA", pci)).collect();
    format!("{CONFIG}{}{devices}{AFTER}", listening(port))
}

fn cpu_run() -> String {
    format!("{CONFIG}{}{}{AFTER}", listening(11434), device("cpu", "\"\""))
}

fn said(text: &str) -> Result<Vec<String>, String> {
    let tail = Tail { text: text.to_owned(), whole: true };
    let found = in_tail(&tail, Some(11434));
    let why = || found.why_not().unwrap_or_default();
    found.value().map(|found| found.iter().map(ToString::to_string).collect()).ok_or_else(why)
}

/// Makes a tree with a server on port 11434, process 50, whose second descriptor points where it is said.
fn served(files: &[(&str, &str)], errors_to: &str) -> (tempfile::TempDir, Root) {
    let sockets =
        "sl\n 0: 0100007F:2CAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 7001 1\n";
    let own = [("proc/net/tcp", sockets), ("proc/50/status", "PPid:\t1\n"), ("proc/50/fd/x", "")];
    let (directory, root) = tree(&[&own[..], files].concat());
    symlink("socket:[7001]", directory.path().join("proc/50/fd/3")).unwrap();
    symlink(errors_to, directory.path().join("proc/50/fd/2")).unwrap();
    (directory, root)
}

fn of_server(root: &Root, named: Option<&str>) -> Result<Vec<String>, String> {
    let server = process::server(root, 11434);
    let read = read(root, Os::Linux, named, Some(11434), server.as_ref());
    let why = || read.why_not().unwrap_or_default();
    read.value().map(|read| read.addresses.iter().map(ToString::to_string).collect()).ok_or_else(why)
}

fn ok(addresses: &[&str]) -> Result<Vec<String>, String> {
    Ok(addresses.iter().map(|address| (*address).to_owned()).collect())
}

#[test]
fn a_line_names_its_device_by_the_pci_address_and_by_nothing_else() {
    assert_eq!(said(&run(11434, &["0000:01:00.0"])), ok(&["0000:01:00.0"]));
    assert_eq!(said(&run(11434, &["0000:0A:00.0", "01:00.0"])), ok(&["0000:01:00.0", "0000:0a:00.0"]));
    assert_eq!(said(&cpu_run()), ok(&[]), "no GPU");
}

#[test]
fn a_device_without_an_address_says_nothing_and_hides_no_other() {
    for nothing in ["\"\"", "", "0", "zz:00.0"] {
        let log = run(11434, &["0000:01:00.0", nothing]);
        let why = said(&log).unwrap_err();
        assert!(why.contains("PCI address"), "{nothing:?}: {why}");
    }
    let before_0_12 = run(11434, &["0000:01:00.0"]).replace(" pci_id=0000:01:00.0", "");
    assert!(said(&before_0_12).unwrap_err().contains("without its PCI address"));
}

#[test]
fn the_last_run_counts_and_a_server_that_begins_takes_the_word_from_it() {
    let old = run(11434, &["0000:01:00.0", "0000:02:00.0"]);
    assert_eq!(said(&format!("{old}{}", run(11434, &["0000:02:00.0"]))), ok(&["0000:02:00.0"]));
    assert_eq!(said(&format!("{old}{}", cpu_run())), ok(&[]));
    assert!(said(&format!("{old}{CONFIG}")).unwrap_err().contains("has begun"));
    let begun = format!("{old}{CONFIG}{}", listening(11434));
    assert!(said(&begun).unwrap_err().contains("has not named its devices"));
    let first = format!("{begun}{}", device("CUDA", "0000:01:00.0"));
    assert!(said(&first).unwrap_err().contains("is naming its devices"), "a second may follow");
}

#[test]
fn servers_that_share_a_log_do_not_speak_for_each_other() {
    let one = run(11434, &["0000:01:00.0"]);
    let other = run(11435, &["0000:02:00.0"]);
    assert_eq!(said(&format!("{one}{other}")), ok(&["0000:01:00.0"]));
    assert_eq!(said(&format!("{other}{one}")), ok(&["0000:01:00.0"]));
    assert!(said(&other).unwrap_err().contains("no server on the install's port"));
    // Both began at once: whose devices those are cannot be told, so they count for the later one, which is more.
    let (one, other) = (device("CUDA", "0000:01:00.0"), device("CUDA", "0000:02:00.0"));
    let mixed = format!("{CONFIG}{CONFIG}{}{}{one}{other}{AFTER}", listening(11435), listening(11434));
    assert_eq!(said(&mixed), ok(&["0000:01:00.0", "0000:02:00.0"]));
    let mixed = format!("{CONFIG}{CONFIG}{}{}{one}{other}{AFTER}", listening(11434), listening(11435));
    assert!(said(&mixed).unwrap_err().contains("has not named its devices"));
}

#[test]
fn what_a_model_or_a_request_writes_into_the_log_is_not_the_servers_word() {
    let run = run(11434, &["0000:01:00.0"]);
    let faked = device("cpu", "\"\"");
    for line in [
        format!("llama_model_loader: - kv 0: general.name str = {}", listening(11434)),
        format!("llama_model_loader: - kv 1: {faked}"),
        format!("time=x level=DEBUG msg=\"chat request\" prompt=\"{}\"\n", faked.trim().replace('"', "\\\"")),
        format!("time=x level=DEBUG msg=\"a request\" prompt=\"{}", listening(11434)),
        "[GIN] 2026/11/28 - 18:00:02 | 200 | 1.2ms | 127.0.0.1 | GET \"/api/ps\"\n".to_owned(),
        "time=x =\"\" \" a\"=b\n".to_owned(),
    ] {
        assert_eq!(said(&format!("{run}{line}")), ok(&["0000:01:00.0"]), "{line}");
    }
}

#[test]
fn the_log_is_where_the_servers_descriptor_points() {
    let log = run(11434, &["0000:01:00.0"]);
    let files = [("var/log/ollama.log", log.as_str())];
    let (_directory, root) = served(&files, "/var/log/ollama.log");
    assert_eq!(of_server(&root, None), ok(&["0000:01:00.0"]));
    for (target, says) in
        [("pipe:[99]", "goes to pipe"), ("/dev/null", "goes to /dev/null"), ("/var/log/none", "absent")]
    {
        let (_directory, root) = served(&files, target);
        assert!(of_server(&root, None).unwrap_err().contains(says), "{target}");
    }
    let (directory, root) = served(&files, "/dev/pts/0");
    symlink("/var/log/ollama.log", directory.path().join("proc/50/fd/1")).unwrap();
    assert_eq!(of_server(&root, None), ok(&["0000:01:00.0"]), "the other descriptor");
}

#[test]
fn the_named_log_comes_alone_whatever_port_it_speaks_of() {
    let (own, named) = (run(11434, &["0000:01:00.0"]), run(9999, &["0000:02:00.0"]));
    let files = [("var/log/ollama.log", own.as_str()), ("srv/container.log", named.as_str())];
    let (_directory, root) = served(&files, "/var/log/ollama.log");
    assert_eq!(of_server(&root, Some("/srv/container.log")), ok(&["0000:02:00.0"]));
    assert!(of_server(&root, Some("/srv/missing.log")).is_err());
}

#[test]
fn what_is_no_log_is_a_reading_with_its_reason() {
    let long = format!("{}{}", run(11434, &["0000:01:00.0"]), "x\n".repeat(5 << 20));
    let many: String = (0..80).map(|n| device("CUDA", &format!("0000:{n:02x}:00.0"))).collect();
    let many = format!("{}{many}{AFTER}", listening(11434));
    for (content, says) in [
        ("", "no server"),
        ("\0\u{fffd}\0\n", "no server"),
        (long.as_str(), "does not reach back"),
        (many.as_str(), "more than 64"),
    ] {
        let (_directory, root) = served(&[("log", content)], "/log");
        let why = of_server(&root, None).unwrap_err();
        assert!(why.contains(says), "{why}");
    }
    let (directory, root) = served(&[], "/log");
    rustix::fs::mkfifoat(CWD, directory.path().join("log"), Mode::RUSR).unwrap();
    assert!(of_server(&root, None).unwrap_err().contains("not a regular file"));
}

#[test]
fn the_application_of_macos_and_windows_writes_one_log_for_each_user() {
    let (one, other) = (run(11434, &["0000:01:00.0"]), run(11435, &["0000:02:00.0"]));
    for (os, file) in
        [(Os::Macos, ".ollama/logs/server.log"), (Os::Windows, "AppData/Local/Ollama/server.log")]
    {
        let (ada, bob) = (format!("Users/ada/{file}"), format!("Users/bob/{file}"));
        let read = |files: &[(&str, &str)], port| {
            let (_directory, root) = tree(files);
            read(&root, os, None, port, None)
        };
        let both = [(ada.as_str(), one.as_str()), (bob.as_str(), other.as_str())];
        let found = read(&both, Some(11434));
        assert_eq!(found.value().map(|found| found.place.as_str()), Some(ada.as_str()));
        assert_eq!(read(&both, None), Reading::Absent, "an install on another host");
        assert_eq!(read(&[], Some(11434)), Reading::Absent);
        let twice = [(ada.as_str(), one.as_str()), (bob.as_str(), one.as_str())];
        assert!(read(&twice, Some(11434)).why_not().unwrap().contains("several users"));
    }
}

/// A journal file with the lines of processes, in the form that systemd writes: one bucket of hashes, and each value
/// once. A line of more than 512 bytes is marked as compressed.
fn journal(compact: bool, boot: u128, lines: &[(u32, &str)]) -> Vec<u8> {
    let id = [7; 16];
    let mut file = vec![0_u8; 272 + 16];
    file[..8].copy_from_slice(b"LPKSHHRH");
    file[12] = if compact { 4 + 8 + 16 } else { 4 + 8 };
    file[24..40].copy_from_slice(&id);
    file[104..112].copy_from_slice(&272_u64.to_le_bytes());
    file[112..120].copy_from_slice(&16_u64.to_le_bytes());
    let put = |file: &mut Vec<u8>, at: usize, number: u64| {
        file[at..at + 8].copy_from_slice(&number.to_le_bytes());
    };
    let object = |file: &mut Vec<u8>, kind: u8, size: usize| {
        file.resize(file.len().next_multiple_of(8), 0);
        let at = file.len();
        file.resize(at + size, 0);
        file[at] = kind;
        put(file, at + 8, size as u64);
        at
    };
    let start = if compact { 72 } else { 64 };
    let mut values: BTreeMap<Vec<u8>, (usize, Vec<usize>)> = BTreeMap::new();
    for (number, (process, line)) in lines.iter().enumerate() {
        let fields = [format!("_PID={process}"), "PRIORITY=6".to_owned(), format!("MESSAGE={line}")];
        let mut items = Vec::new();
        for field in fields.map(String::into_bytes) {
            let at = match values.get(&field) {
                Some((at, _)) => *at,
                None => {
                    let at = object(&mut file, 1, start + field.len());
                    file[at + 1] = if field.len() > 512 { 4 } else { 0 };
                    put(&mut file, at + 16, journal::siphash24(&id, &field));
                    file[at + start..at + start + field.len()].copy_from_slice(&field);
                    let chain = u64::from_le_bytes(file[272..280].try_into().unwrap());
                    put(&mut file, at + 24, chain);
                    put(&mut file, 272, at as u64);
                    values.insert(field.clone(), (at, Vec::new()));
                    at
                }
            };
            items.push((at, field));
        }
        let width = if compact { 4 } else { 16 };
        let at = object(&mut file, 3, 64 + items.len() * width);
        put(&mut file, at + 16, number as u64);
        put(&mut file, at + 24, number as u64);
        file[at + 40..at + 56].copy_from_slice(&boot.to_be_bytes());
        for (item, (value, field)) in items.into_iter().enumerate() {
            let place = at + 64 + item * width;
            file[place..place + 4].copy_from_slice(&(value as u32).to_le_bytes());
            values.get_mut(&field).unwrap().1.push(at);
        }
    }
    for (value, entries) in values.into_values() {
        let width = if compact { 4 } else { 8 };
        // Arrays of two, chained, the last with room to spare.
        let arrays: Vec<usize> = entries[1..]
            .chunks(2)
            .map(|entries| {
                let at = object(&mut file, 6, 24 + 2 * width);
                for (item, entry) in entries.iter().enumerate() {
                    let place = at + 24 + item * width;
                    file[place..place + 4].copy_from_slice(&(*entry as u32).to_le_bytes());
                }
                at
            })
            .collect();
        put(&mut file, value + 40, entries[0] as u64);
        put(&mut file, value + 48, arrays.first().map_or(0, |at| *at as u64));
        put(&mut file, value + 56, entries.len() as u64);
        for pair in arrays.windows(2) {
            put(&mut file, pair[0] + 16, pair[1] as u64);
        }
    }
    file.resize(file.len() + 64, 0);
    file
}

const BOOT: u128 = 0x6b29_fc40_ca47_4067_b31d_00dd_0106_62da;
const BOOT_ID: (&str, &str) = ("proc/sys/kernel/random/boot_id", "6b29fc40-ca47-4067-b31d-00dd010662da\n");
const JOURNAL: &str = "var/log/journal/0123456789abcdef0123456789abcdef/system.journal";

/// A host whose server writes to the journal; the server is seen, or another user's.
fn journalled(file: &[u8], seen: bool) -> (tempfile::TempDir, Root) {
    let other = [
        BOOT_ID,
        ("proc/50/cmdline", "/usr/bin/ollama\0serve\0"),
        ("proc/51/cmdline", "/usr/bin/ollama\0runner\0--port\0"),
    ];
    let (directory, root) = if seen { served(&[BOOT_ID], "socket:[8001]") } else { tree(&other) };
    let path = directory.path().join(JOURNAL);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, file).unwrap();
    (directory, root)
}

fn journal_of(text: &str, compact: bool) -> Vec<u8> {
    let lines = text.lines().flat_map(|line| [(50, line), (60, "another's line"), (50, "[GIN]")]);
    journal(compact, BOOT, &lines.collect::<Vec<_>>())
}

#[test]
fn a_server_under_systemd_is_read_from_the_journal_seen_or_not() {
    let long = CONFIG.replace("map[", &format!("map[{} ", "x".repeat(600)));
    let log = run(11434, &["0000:01:00.0"]).replace(CONFIG, &long);
    for (compact, seen) in [(false, false), (false, true), (true, false), (true, true)] {
        let (_directory, root) = journalled(&journal_of(&log, compact), seen);
        assert_eq!(of_server(&root, None), ok(&["0000:01:00.0"]), "compact {compact}, seen {seen}");
    }
}

#[test]
fn a_journal_counts_for_this_boot_this_process_and_this_port_only() {
    let lines =
        |process| run(11434, &["0000:01:00.0"]).lines().map(|line| (process, line.to_owned())).collect();
    let of = |boot, lines: Vec<(u32, String)>| {
        let lines: Vec<(u32, &str)> = lines.iter().map(|(process, line)| (*process, line.as_str())).collect();
        let (_directory, root) = journalled(&journal(true, boot, &lines), true);
        of_server(&root, None)
    };
    assert_eq!(of(BOOT, lines(50)), ok(&["0000:01:00.0"]));
    assert_eq!(of(BOOT + 1, lines(50)), Err("absent".into()));
    assert_eq!(of(BOOT, lines(49)), Err("absent".into()));
    let (_directory, root) = journalled(&journal_of(&run(11435, &["0000:01:00.0"]), true), true);
    assert!(of_server(&root, None).unwrap_err().contains("no server on the install's port"));
}

#[test]
fn a_compressed_line_may_be_a_device() {
    let long = device("CUDA", "0000:02:00.0").replace("CUDA0", &"x".repeat(600));
    for text in [
        format!("{}{}{long}{AFTER}", listening(11434), device("CUDA", "0000:01:00.0")),
        format!("{}{long}{}{AFTER}", listening(11434), device("CUDA", "0000:01:00.0")),
    ] {
        let lines: Vec<(u32, &str)> = text.lines().map(|line| (50, line)).collect();
        let (_directory, root) = journalled(&journal(false, BOOT, &lines), true);
        assert!(of_server(&root, None).unwrap_err().contains("cannot be read"));
    }
}

#[test]
fn a_damaged_journal_is_a_reading_and_never_a_panic_nor_an_endless_walk() {
    let log = run(11434, &["0000:01:00.0"]);
    let lines: Vec<(u32, &str)> = log.lines().map(|line| (50, line)).collect();
    let whole = journal(false, BOOT, &lines);
    let (directory, root) = journalled(&whole, true);
    let read = |file: &[u8]| {
        std::fs::write(directory.path().join(JOURNAL), file).unwrap();
        of_server(&root, None)
    };
    let right = ok(&["0000:01:00.0"]);
    assert_eq!(read(&whole), right);
    assert!(read(&[b'x'; 300]).unwrap_err().contains("no such file"));
    for length in (0..whole.len()).step_by(61) {
        let found = read(&whole[..length]);
        assert!(found.is_err() || found == right, "cut at {length}: {found:?}");
    }
    // One number after another is set to what is absurd: nothing, the greatest, its own place, the table, the end.
    for at in (8..whole.len() - 8).step_by(8) {
        for number in [0, u64::MAX, at as u64, 272, whole.len() as u64] {
            let mut file = whole.clone();
            file[at..at + 8].copy_from_slice(&number.to_le_bytes());
            let found = read(&file);
            assert!(found.is_err() || found == right, "{number} at {at}: {found:?}");
        }
    }
}

/// As Ollama 0.24.0 wrote it beside a real NVIDIA H200.
const RECORDED: &str = r#"[GIN-debug] POST   /v1/messages              --> github.com/ollama/ollama/server.(*Server).ChatHandler-fm (7 handlers)
time=2026-11-28T19:28:03.234Z level=INFO source=routes.go:1864 msg="Listening on 127.0.0.1:11434 (version 0.24.0)"
time=2026-11-28T19:28:03.235Z level=INFO source=runner.go:67 msg="discovering available GPUs..."
time=2026-11-28T19:28:03.775Z level=INFO source=server.go:433 msg="starting runner" cmd="/usr/bin/ollama runner --ollama-engine --port 44975"
time=2026-11-28T19:28:04.085Z level=INFO source=types.go:42 msg="inference compute" id=GPU-50f212bb-76a3-8c38-be3c-2a7a6e482111 filter_id="" library=CUDA compute=9.0 name=CUDA0 description="NVIDIA H200" libdirs=ollama,cuda_v13 driver=13.0 pci_id=0000:00:06.0 type=discrete total="140.4 GiB" available="139.8 GiB"
time=2026-11-28T19:28:04.085Z level=INFO source=routes.go:1914 msg="vram-based default context" total_vram="140.4 GiB" default_num_ctx=262144
[GIN] 2026/11/28 - 19:28:04 | 200 |      68.864us |       127.0.0.1 | GET      "/api/version"
"#;

#[test]
fn a_log_from_a_real_card_is_read() {
    assert_eq!(said(RECORDED), Ok(vec!["0000:00:06.0".to_owned()]));
}

#[test]
fn the_hash_is_siphash_2_4() {
    let key: [u8; 16] = std::array::from_fn(|n| n as u8);
    let text: Vec<u8> = (0..15).collect();
    // The vector of appendix A of the paper.
    assert_eq!(journal::siphash24(&key, &text), 0xa129_ca61_49be_45e5);
}
