//! Each check finds what is wrong, with what mends it, and says so where nothing is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use tropa_agent::{places::Places, runtime_dir::Present};
use tropa_proto::{
    evidence::Hypervisor,
    id::{AgentId, JobId},
    mesh::{DialFailure, PROGRAM},
    message::{EngineState, Loaded, Model},
    secret::MeshSecret,
};

use super::{
    finding::{Level, quoted},
    *,
};
use crate::{
    journal::{self, Draft, Kind},
    live::LiveTests,
    machines::{
        Report as Machines,
        tests::{Made, agent, made, roster},
    },
};

/// What is found of one code, and nothing else.
#[track_caller]
fn only<'a>(findings: &'a [Finding], level: Level, code: &str) -> &'a Finding {
    let [one] = findings else { panic!("{findings:?}") };
    assert_eq!((one.level, one.code), (level, code), "{one:?}");
    one
}

/// Some finding of this level and code.
#[track_caller]
fn some<'a>(findings: &'a [Finding], level: Level, code: &str) -> &'a Finding {
    let found = findings.iter().find(|finding| (finding.level, finding.code) == (level, code));
    found.unwrap_or_else(|| panic!("no {level:?} {code} in {findings:?}"))
}

/// A machine whose files are below a directory.
fn here(directory: &Path, global: &Global) -> Here {
    let (config, state) = (directory.join("config"), directory.join("state"));
    let places = Places { config, state, system: None };
    let chosen = Chosen::among(global, &JobDefaults::default(), places, Vec::new(), None);
    let settings = Settings::open(&chosen, global);
    Here { chosen, wrong: Vec::new(), settings, now_ms: 1_790_000_000_000 }
}

fn at(directory: &Path) -> Here {
    here(directory, &Global { runtime_dir: Some(directory.join("run")), ..Global::default() })
}

/// A mesh of these agents.
fn mesh(agents: &[Made]) -> Seen {
    let mut roster = roster(agents);
    let view = roster.view().clone();
    Seen {
        machines: Machines::with(&view, &LiveTests::default(), None),
        view,
        own: false,
        has_secret: true,
        multicast: false,
        named: BTreeMap::new(),
        failures: BTreeMap::new(),
        linked: BTreeSet::new(),
        present: Vec::new(),
        programs: BTreeMap::new(),
        clocks: BTreeMap::new(),
        beside: None,
        exposed: BTreeMap::new(),
        job: JobDefaults::default(),
        damaged_speeds: None,
    }
}

fn model(name: &str, print: u8) -> Model {
    Model {
        name: tropa_proto::bounded::Text::cut(name),
        digest: [print; 32],
        fingerprint: [print; 32],
        size: 1 << 30,
        context: 8192,
        completion: true,
        embedding: false,
        thinking: false,
        tools: false,
        remote: false,
        loaded: None,
    }
}

fn with(label: &str, kernel: u32, models: Vec<Model>) -> Made {
    Made { models, ..made(label, kernel) }
}

#[cfg(unix)]
fn mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[cfg(unix)]
#[test]
fn a_state_directory_that_others_may_open_fails_with_the_command_that_shuts_it() {
    let directory = tempfile::tempdir().unwrap();
    let here = at(directory.path());
    let what = &only(&places::state(&here), Level::Ok, "state.place").what.clone();
    assert!(what.contains("made by the first job"), "{what}");
    let state = &here.chosen.places.state;
    let job = state.join("jobs/a1");
    fs::create_dir_all(&job).unwrap();
    for path in [state, &state.join("jobs"), &job] {
        mode(path, 0o700);
    }
    only(&places::state(&here), Level::Ok, "state.place");
    fs::write(job.join("journal.db"), "").unwrap();
    mode(&job.join("journal.db"), 0o640);
    let found = places::state(&here);
    let open = only(&found, Level::Fail, "state.open");
    assert!(open.why.contains("journal.db"), "{open:?}");
    assert_eq!(open.fix, format!("chmod -R go= {}", state.display()));
    mode(&job.join("journal.db"), 0o600);
    mode(&state.join("jobs"), 0o755);
    some(&places::state(&here), Level::Fail, "state.open");
}

#[test]
fn a_file_in_the_place_of_the_state_directory_fails() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("state"), "").unwrap();
    only(&places::state(&at(directory.path())), Level::Fail, "state.place");
}

#[cfg(unix)]
#[test]
fn a_runtime_directory_that_anybody_may_write_to_is_told_of() {
    let directory = tempfile::tempdir().unwrap();
    let here = at(directory.path());
    only(&places::runtime(&here), Level::Ok, "runtime.place");
    let run = directory.path().join("run");
    fs::create_dir(&run).unwrap();
    mode(&run, 0o777);
    let found = places::runtime(&here);
    assert!(only(&found, Level::Warn, "runtime.place").fix.contains("chmod o-w"), "{found:?}");
}

#[test]
fn there_is_room_on_a_disk_of_this_machine() {
    let directory = tempfile::tempdir().unwrap();
    // A disk that is all but full is none of this test's, and would be told of.
    if journal::require_space(directory.path(), 0).is_ok() {
        only(&places::room(&at(directory.path())), Level::Ok, "disk.low");
    }
}

#[cfg(unix)]
#[test]
fn a_secret_is_there_or_not_and_never_open_to_others() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mesh secret");
    let without = at(directory.path());
    only(&secret::check(&without), Level::Ok, "mesh.secret");
    let far = Global { peer: vec!["192.0.2.7:11634".to_owned()], ..Global::default() };
    let found = secret::check(&here(directory.path(), &far));
    assert!(only(&found, Level::Fail, "mesh.secret").fix.contains("tropa mesh join"), "{found:?}");

    let global = Global { mesh_secret_file: Some(path.clone()), ..far };
    let check = || secret::check(&here(directory.path(), &global));
    only(&check(), Level::Fail, "mesh.secret");
    MeshSecret::generate().unwrap().write_new(&path).unwrap();
    only(&check(), Level::Ok, "mesh.secret");
    mode(&path, 0o644);
    assert_eq!(only(&check(), Level::Fail, "mesh.secret").fix, format!("chmod 600 {}", quoted(&path)));
    fs::remove_file(&path).unwrap();
    fs::write(&path, "correct horse").unwrap();
    mode(&path, 0o600);
    assert!(only(&check(), Level::Fail, "mesh.secret").what.contains("passphrases"));
}

#[test]
fn a_salt_that_is_being_replaced_is_in_order_for_a_week() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mesh.secret");
    MeshSecret::generate().unwrap().resalted().unwrap().write_new(&path).unwrap();
    let global = Global { mesh_secret_file: Some(path.clone()), ..Global::default() };
    let mut here = here(directory.path(), &global);
    let made = fs::metadata(&path).unwrap().modified().unwrap();
    let made_ms = made.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let day = 24 * 3_600 * 1_000;
    here.now_ms = u64::try_from(made_ms).unwrap() + day;
    assert!(only(&secret::check(&here), Level::Ok, "mesh.secret").what.contains("being replaced"));
    here.now_ms += 9 * day;
    let found = secret::check(&here);
    let late = only(&found, Level::Warn, "mesh.secret");
    assert!(late.what.contains("10 days") && late.fix.contains("sed -i"), "{late:?}");
    let text = fs::read_to_string(&path).unwrap();
    let hidden = |word: &str| word.len() < 64 || !format!("{late:?}").contains(word);
    assert!(text.split_whitespace().all(hidden), "no secret is told");
}

#[test]
fn a_configuration_that_cannot_be_used_names_the_file_and_the_line() {
    let directory = tempfile::tempdir().unwrap();
    let mut here = at(directory.path());
    only(&configuration::files(&here), Level::Ok, "config.file");
    only(&configuration::values(&here), Level::Ok, "config.value");
    here.wrong.push(FileError::Invalid {
        path: PathBuf::from("/x/config.toml"),
        line: Some(2),
        what: "unknown field `modl`".to_owned(),
        whole: String::new(),
    });
    let found = configuration::files(&here);
    let wrong = only(&found, Level::Fail, "config.file");
    assert_eq!(wrong.what, "/x/config.toml line 2: unknown field `modl`");
    assert_eq!(wrong.fix, "${EDITOR:-vi} +2 /x/config.toml");
    let wait = self::here(directory.path(), &Global { wait: Some(-1.0), ..Global::default() });
    let found = configuration::values(&wait);
    assert!(only(&found, Level::Fail, "config.value").what.contains("--wait -1"), "{found:?}");
}

const JOB: JobId = JobId([0xa1; 16]);

fn chunk() -> Result<journal::NewChunk, journal::Error> {
    Ok(journal::NewChunk {
        endpoint: tropa_proto::message::Endpoint::Chat,
        model: "m:1b".to_owned(),
        body: br#"{"model":"m:1b"}"#.to_vec(),
        needs: BTreeSet::new(),
        shown: true,
        origin: "{}".to_owned(),
    })
}

#[test]
fn a_job_is_at_work_unfinished_or_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let here = at(directory.path());
    assert_eq!(only(&jobs::check(&here), Level::Ok, "journal.sound").what, "there are no jobs");
    let dir = here.chosen.places.state.join("jobs").join(JOB.to_string());
    let mut draft = Draft::create(&dir, JOB).unwrap();
    draft.insert([chunk()]).unwrap();
    let held = draft.finish(Kind::Run, b"{}".to_vec(), 7).unwrap();
    let found = jobs::check(&here);
    some(&found, Level::Ok, "journal.sound");
    let pid = format!("pid {}", std::process::id());
    assert!(some(&found, Level::Ok, "job.running").what.contains(&pid), "{found:?}");
    drop(held);
    let found = jobs::check(&here);
    let open = some(&found, Level::Warn, "job.unfinished");
    assert_eq!(open.fix, format!("tropa resume {}", JOB.short()));
    assert!(open.what.contains("0 of 1 items"), "{open:?}");

    // The pages after the header are not what SQLite wrote.
    let file = dir.join("journal.db");
    let mut bytes = fs::read(&file).unwrap();
    let half = bytes.len() / 2;
    bytes[half..].fill(0xa5);
    fs::write(&file, bytes).unwrap();
    let found = jobs::check(&here);
    let damaged = some(&found, Level::Fail, "journal.damaged");
    assert!(damaged.fix.starts_with("mv ") && damaged.fix.ends_with(".damaged"), "{damaged:?}");
}

#[test]
fn a_job_of_another_version_or_without_its_whole_input_is_told_of() {
    let directory = tempfile::tempdir().unwrap();
    let here = at(directory.path());
    let dir = here.chosen.places.state.join("jobs").join(JOB.to_string());
    let mut draft = Draft::create(&dir, JOB).unwrap();
    assert!(jobs::check(&here).iter().all(|finding| finding.code != "journal.incomplete"), "it comes in");
    draft.insert([chunk()]).unwrap();
    drop(draft.finish(Kind::Run, b"{}".to_vec(), 7).unwrap());
    let change =
        |sql| rusqlite::Connection::open(dir.join("journal.db")).unwrap().execute_batch(sql).unwrap();
    // A coordinator that ended before has not written this row.
    change("DELETE FROM job");
    let found = jobs::check(&here);
    assert!(some(&found, Level::Warn, "journal.incomplete").fix.contains("purge"), "{found:?}");
    change("PRAGMA user_version=99");
    some(&jobs::check(&here), Level::Warn, "journal.version");
}

#[test]
fn agents_that_answer_are_counted_and_whoever_does_not_is_named_with_the_reason() {
    let mut seen = mesh(&[made("den", 1), made("attic", 2)]);
    assert!(only(&members::reached(&seen), Level::Ok, "mesh.agents").what.contains("attic, den"));
    let address: SocketAddr = "192.0.2.7:11634".parse().unwrap();
    seen.named.insert(address, "cellar:11634".to_owned());
    let found = members::reached(&seen);
    assert!(some(&found, Level::Warn, "mesh.unreachable").what.contains("no answer in time"), "{found:?}");
    seen.linked.insert(address.ip());
    only(&members::reached(&seen), Level::Ok, "mesh.agents");
    seen.linked.clear();
    seen.failures.insert(address, DialFailure::WrongSecret);
    let found = members::reached(&seen);
    let stranger = some(&found, Level::Fail, "mesh.secret");
    assert!(stranger.fix.contains("tropa mesh join"), "{stranger:?}");
    assert!(found.iter().all(|finding| finding.code != "mesh.unreachable"), "told once: {found:?}");
    seen.named.clear();
    // Whom nobody named may be of the mesh of somebody else.
    some(&members::reached(&seen), Level::Warn, "mesh.secret");
}

#[test]
fn nobody_in_the_mesh_is_worth_a_look_or_fails() {
    let mut seen = mesh(&[]);
    some(&members::reached(&seen), Level::Fail, "mesh.alone");
    seen.named.insert("127.0.0.1:1".parse().unwrap(), "127.0.0.1:1".to_owned());
    seen.failures.insert("127.0.0.1:1".parse().unwrap(), DialFailure::Refused);
    assert!(some(&members::reached(&seen), Level::Fail, "mesh.unreachable").what.contains("refused"));
    let own = Seen { own: true, ..mesh(&[made("me", 1)]) };
    assert_eq!(only(&members::reached(&own), Level::Warn, "mesh.alone").fix, "tropa-agent");
}

#[test]
fn an_agent_of_this_machine_is_in_the_mesh_or_told_of() {
    let mut seen = mesh(&[made("den", 1)]);
    assert_eq!(members::here(&seen), []);
    let address: SocketAddr = "127.0.0.1:5".parse().unwrap();
    seen.present.push(Present { agent: agent(1), address, pid: 7, port: 11434 });
    let found = members::here(&seen);
    assert!(only(&found, Level::Ok, "agent.here").what.contains("den beside the Ollama at port 11434"));
    seen.present.push(Present { agent: AgentId([9; 32]), address, pid: 8, port: 11435 });
    assert!(some(&members::here(&seen), Level::Warn, "agent.silent").what.contains("process 8"));
    seen.failures.insert(address, DialFailure::WrongSecret);
    only(&members::here(&seen), Level::Ok, "agent.here");
}

#[test]
fn versions_and_clocks_that_differ_are_named() {
    let mut seen = mesh(&[made("den", 1), made("attic", 2)]);
    assert_eq!((members::programs(&seen), clocks::check(&seen)), (vec![], vec![]));
    seen.programs =
        BTreeMap::from([(agent(1), PROGRAM.to_owned()), (AgentId([9; 32]), "other/1".to_owned())]);
    only(&members::programs(&seen), Level::Ok, "mesh.version");
    seen.programs.insert(agent(2), "tropa/0.0.1".to_owned());
    let found = members::programs(&seen);
    assert!(only(&found, Level::Warn, "mesh.version").what.contains("attic is tropa/0.0.1"), "{found:?}");

    let minute = 60_000_000_000_i128;
    seen.clocks = BTreeMap::from([(agent(1), 10 * minute), (agent(2), -minute)]);
    only(&clocks::check(&seen), Level::Ok, "clock.skew");
    seen.clocks.insert(agent(2), -11 * minute);
    let found = clocks::check(&seen);
    assert!(only(&found, Level::Warn, "clock.skew").what.contains("attic is 11 min behind"), "{found:?}");
}

#[test]
fn an_install_that_does_not_answer_fails_and_so_does_a_mesh_without_one_that_does() {
    let mut seen = mesh(&[made("den", 1)]);
    only(&installs::capacity(&seen), Level::Ok, "mesh.capacity");
    assert!(only(&installs::answer(&seen), Level::Ok, "ollama.answers").what.contains("0.24.0"));
    let down = EngineState::Down(tropa_proto::bounded::Text::cut("connection refused"));
    seen = mesh(&[
        Made { engine: down, ..made("den", 1) },
        Made { engine: EngineState::TooOld, ..made("nas", 2) },
    ]);
    only(&installs::capacity(&seen), Level::Fail, "mesh.capacity");
    let found = installs::answer(&seen);
    let silent = some(&found, Level::Fail, "ollama.unreachable");
    assert!(silent.what.contains("connection refused") && silent.fix.contains("ollama serve"), "{silent:?}");
    some(&found, Level::Fail, "ollama.too_old");
}

#[test]
fn an_ollama_without_an_agent_and_one_that_others_reach_are_told_of() {
    let mut seen = mesh(&[made("den", 1)]);
    assert_eq!((installs::without_agent(&seen), installs::exposed(&seen)), (vec![], vec![]));
    seen.beside = Some(("http://127.0.0.1:5".to_owned(), "0.24.0".to_owned()));
    let found = installs::without_agent(&seen);
    assert_eq!(only(&found, Level::Warn, "agent.missing").fix, "tropa-agent --ollama http://127.0.0.1:5");
    seen.exposed.insert(11434, 0);
    only(&installs::exposed(&seen), Level::Ok, "ollama.exposed");
    seen.exposed.insert(11435, 2);
    let found = installs::exposed(&seen);
    assert!(only(&found, Level::Warn, "ollama.exposed").fix.contains("OLLAMA_HOST=127.0.0.1:11435"));
}

#[test]
fn what_machines_warn_of_is_told_here_too_and_what_is_not_known_to_be_apart() {
    let seen = mesh(&[made("den", 1), made("attic", 2)]);
    only(&installs::warnings(&seen), Level::Ok, "identity.sound");
    let seen = mesh(&[Made { version: "0.20.2", ..made("den", 1) }]);
    some(&installs::warnings(&seen), Level::Warn, "ollama.vulnerable");
    let unknown = |label| Made { kind: Hypervisor::Unknown, ..made(label, 3) };
    let found = installs::warnings(&mesh(&[unknown("nas"), unknown("box")]));
    assert!(some(&found, Level::Warn, "identity.weak").fix.contains("TROPA_MACHINE"), "{found:?}");
    let damaged = Seen { damaged_speeds: Some("set aside".to_owned()), ..mesh(&[]) };
    only(&installs::warnings(&damaged), Level::Warn, "speeds.damaged");
}

#[test]
fn a_gpu_that_no_loaded_model_uses_is_told_of() {
    let loaded =
        |size_vram| Model { loaded: Some(Loaded { size: 5, size_vram, context: 4096 }), ..model("a:1b", 1) };
    let on_gpu = |size_vram| mesh(&[Made { gpu: true, ..with("den", 1, vec![loaded(size_vram)]) }]);
    assert_eq!(installs::unused_gpus(&on_gpu(5)), []);
    assert_eq!(installs::unused_gpus(&mesh(&[with("den", 1, vec![loaded(0)])])), []);
    assert!(only(&installs::unused_gpus(&on_gpu(0)), Level::Warn, "gpu.unused").what.contains("RTX 4090"));
}

#[test]
fn a_model_is_ready_missing_too_small_or_not_the_same_everywhere() {
    let mut seen = mesh(&[with("den", 1, vec![model("a:1b", 1)]), with("attic", 2, vec![model("a:1b", 1)])]);
    assert!(only(&models::check(&seen), Level::Ok, "model.ready").what.contains("2 at a time"));
    let asked =
        |model: &str, num_ctx| DoctorArgs { model: Some(model.to_owned()), max_tokens: None, num_ctx };
    seen.job = JobDefaults::asked(&asked("b:1b", None));
    assert!(only(&models::check(&seen), Level::Fail, "model.missing").fix.contains("ollama pull b:1b"));
    seen.job = JobDefaults::asked(&asked("a:1b", Some(16_384)));
    some(&models::check(&seen), Level::Warn, "model.too_small");

    let den = || with("den", 1, vec![model("a:1b", 1)]);
    let other = with("attic", 2, vec![model("a:1b", 2)]);
    let found = models::check(&mesh(&[den(), other, with("shed", 3, vec![model("a:1b", 1)])]));
    let differs = some(&found, Level::Warn, "model.differs");
    assert!(differs.what.contains("010101 on den, shed; 020202 on attic"), "{differs:?}");
    assert_eq!(differs.fix, "on attic: ollama pull a:1b");
    only(&models::check(&mesh(&[made("den", 1)])), Level::Fail, "model.missing");
}

#[test]
fn what_fails_comes_first_and_many_alike_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let findings = vec![
        Finding::ok("a", "in order"),
        Finding::warn("b", "worth a look").because("it is so").fix("look at it"),
        Finding::fail("c", "bad\u{1b}[2J"),
    ];
    let report = Report::new(findings, at(directory.path()).chosen);
    assert_eq!(
        report.text(),
        "fail    c    bad\\u{1b}[2J\nwarn    b    worth a look\n        it is so\n        look at it\n\
         ok      a    in order\n\n1 fail, 1 warn, 1 ok\n"
    );
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["schema"], &json["findings"][0]["level"]), (&"tropa.doctor/1".into(), &"fail".into()));
    assert!(json["settings"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == "wait")));
    let many = (0..9).map(|n| Finding::warn("d", format!("number {n}"))).collect();
    let text = Report::new(many, at(directory.path()).chosen).text();
    assert!(text.contains("number 4") && !text.contains("number 5"), "{text}");
    assert!(text.contains("and 4 more of these kinds"), "{text}");
}

#[test]
fn a_path_is_quoted_where_a_shell_would_take_it_apart() {
    assert_eq!(quoted(Path::new("/home/a/.local/state")), "/home/a/.local/state");
    assert_eq!(quoted(Path::new("/home/a b/it's")), r"'/home/a b/it'\''s'");
}
