//! Rows whose fault is at an agent or on the way to it.

use rustix::process::Signal;
use tropa_tests::skipped;

use super::*;

const ROW_1: Duration = Duration::from_millis(500);
const ROW_1_AGAIN: Duration = Duration::from_secs(2);
const SUSPECT: Duration = Duration::from_secs(4);
const DEAD: Duration = Duration::from_secs(8);
const ELSEWHERE: Duration = Duration::from_secs(10);

/// Agents, their doubles, and a job over them, at work.
struct Working {
    agents: Vec<rig::Program>,
    _doubles: Vec<rig::Program>,
    /// Their short ids, as `tropa` names them.
    ids: Vec<String>,
    job: rig::Job,
    chunks: u32,
    rig: Rig,
}

impl Working {
    /// `answers`: how long they are, as the double takes it.
    fn new(hosts: usize, chunks: u32, answers: &[&str]) -> Option<Self> {
        let rig = Rig::new(hosts)?;
        let doubles = (1..=hosts).map(|host| rig.double(host, answers)).collect();
        let agents = (1..=hosts).map(|host| rig.agent(host)).collect();
        let mut ids = Vec::new();
        until(rig::PATIENCE, "every agent is in the roster", || {
            ids = (1..=hosts).filter_map(|host| agent_at(&rig, host, 11_434)).collect();
            ids.len() == hosts
        });
        let mut job = rig.run(&rig.prompts(chunks as usize), &[]);
        until(rig::PATIENCE, "two work, or the job is over", || open_at(&rig).len() >= 2 || job.is_over());
        assert!(!job.is_over(), "the job ended before two worked: {}", job.log());
        Some(Self { agents, _doubles: doubles, ids, job, chunks, rig })
    }

    /// The attempt that has begun last, and the place of its agent among them.
    fn hit(&self) -> ((u32, u32), usize) {
        let mut found = None;
        until(rig::PATIENCE, "an agent works", || {
            found = open_at(&self.rig).last().copied();
            found.is_some()
        });
        let hit = found.expect("found");
        let id = sent_to(&self.rig, hit);
        let at = self.ids.iter().position(|known| *known == id);
        (hit, at.unwrap_or_else(|| panic!("{id} is none of {:?}", self.ids)))
    }

    /// Waits for the end of the job, and gives its figures.
    fn ends(&mut self) -> Figures {
        let (code, rows) = self.job.ends();
        assert_eq!(code, Some(0), "{}", self.job.log());
        let indices: Vec<u64> = rows.iter().filter_map(|row| row["tropa"]["index"].as_u64()).collect();
        assert_eq!(indices, (0..u64::from(self.chunks)).collect::<Vec<_>>(), "in input order");
        self.rig.book().figures(self.chunks, &self.rig.witness(), &DEVICES)
    }
}

/// What is at an engine.
pub(super) fn open_at(rig: &Rig) -> Vec<(u32, u32)> {
    let book = rig.book();
    let ended: Vec<(u32, u32)> = book.of("exec_end").map(|line| (line.chunk, line.no)).collect();
    let started = book.of("exec_start").map(|line| (line.chunk, line.no));
    started.filter(|id| !ended.contains(id)).collect()
}

/// Whom an attempt was sent to.
pub(super) fn sent_to(rig: &Rig, attempt: (u32, u32)) -> String {
    let book = rig.book();
    let sent = book.of("send").find(|line| (line.chunk, line.no) == attempt);
    sent.map(|line| line.more.trim().to_owned()).unwrap_or_default()
}

/// The short id of the agent at a host and port, where the roster has it.
pub(super) fn agent_at(rig: &Rig, host: usize, port: u16) -> Option<String> {
    let found = rig.tropa(&["machines", "--json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap_or_default();
    let label = format!("host-{host}-{port}");
    let mut found = None;
    walk(&report, &mut |object| {
        if object.get("label").and_then(|value| value.as_str()) == Some(&label) {
            found = object.get("id").and_then(|value| value.as_str()).map(str::to_owned);
        }
    });
    found
}

fn walk(value: &serde_json::Value, see: &mut impl FnMut(&serde_json::Map<String, serde_json::Value>)) {
    match value {
        serde_json::Value::Object(object) => {
            see(object);
            object.values().for_each(|value| walk(value, see));
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| walk(value, see)),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => {}
    }
}

/// When the chunk ran elsewhere: another attempt of it at an engine.
fn elsewhere(book: &book::Book, since: Duration, (chunk, no): (u32, u32)) -> Option<Duration> {
    book.after(since, "exec_start", |line| line.chunk == chunk && line.no > no)
}

#[test]
fn fault_f01_a_killed_agents_chunk_runs_elsewhere_at_once() {
    let Some(mut mesh) = Working::new(4, 40, HALF) else { return };
    let (hit, at_host) = mesh.hit();
    let at = now();
    mesh.agents[at_host].kill();
    let mut figures = mesh.ends();
    let book = mesh.rig.book();
    figures.noticed = book.after(at, "ended", |line| (line.chunk, line.no) == hit && line.more == "lost");
    figures.recovered = elsewhere(&book, at, hit);
    figures.judge("F1 agent killed");
    within("the notice", figures.noticed, ROW_1);
    within("the run elsewhere", figures.recovered, ROW_1_AGAIN);
    assert!(figures.again <= 1, "only what ran there runs again");
}

#[test]
fn fault_f03_a_host_that_is_off_is_dead_after_eight_seconds_of_silence() {
    let Some(mut mesh) = Working::new(4, 90, HALF) else { return };
    let (hit, at_host) = mesh.hit();
    let at = now();
    if let Err(why) = mesh.rig.cut(at_host + 1, true) {
        return skipped(&format!("no iptables: {why}"));
    }
    let mut figures = mesh.ends();
    let book = mesh.rig.book();
    figures.noticed = book.after(at, "ended", |line| (line.chunk, line.no) == hit && line.more == "lost");
    figures.recovered = elsewhere(&book, at, hit);
    figures.judge("F3 host off");
    within("the notice", figures.noticed, DEAD);
    within("the run elsewhere", figures.recovered, ELSEWHERE);
}

#[test]
fn fault_f04_a_frozen_agent_is_suspect_after_three_seconds_and_comes_back_in_time() {
    let Some(mut mesh) = Working::new(4, 100, HALF) else { return };
    let (hit, at_host) = mesh.hit();
    let at = now();
    mesh.agents[at_host].signal(Signal::STOP);
    until(rig::PATIENCE, "the chunk runs elsewhere", || elsewhere(&mesh.rig.book(), at, hit).is_some());
    mesh.agents[at_host].signal(Signal::CONT);
    let mut figures = mesh.ends();
    let book = mesh.rig.book();
    figures.noticed = book.after(at, "suspect", |line| (line.chunk, line.no) == hit);
    figures.recovered = elsewhere(&book, at, hit);
    figures.judge("F4 agent frozen");
    within("the notice", figures.noticed, SUSPECT);
    within("the run elsewhere", figures.recovered, ELSEWHERE);
}

#[test]
fn fault_f04_the_device_of_a_frozen_agent_goes_to_nobody_and_its_late_result_is_taken() {
    let Some(rig) = Rig::new(1) else { return };
    let _doubles = [rig.double_on(1, 1, 11_434, SECOND), rig.double_on(1, 1, 11_435, SECOND)];
    let agents = [rig.agent_on(1, 1, 11_434), rig.agent_on(1, 1, 11_435)];
    let first = agent_at(&rig, 1, 11_434).expect("it is in the roster");
    let mut job = rig.run(&rig.prompts(6), &[]);
    until(rig::PATIENCE, "one works", || !open_at(&rig).is_empty());
    let hit = open_at(&rig)[0];
    let frozen = &agents[usize::from(sent_to(&rig, hit) != first)];
    let at = now();
    frozen.signal(Signal::STOP);
    rig::pass(at + Duration::from_secs(30));
    let meanwhile = rig.book().of("exec_start").filter(|line| line.at > at).count();
    let thawed = now();
    frozen.signal(Signal::CONT);
    let (code, rows) = job.ends();
    assert_eq!((code, rows.len()), (Some(0), 6), "{}", job.log());
    let book = rig.book();
    let mut figures = book.figures(6, &rig.witness(), &DEVICES[..1]);
    figures.noticed = book.after(at, "suspect", |line| (line.chunk, line.no) == hit);
    figures.recovered = book.after(thawed, "commit", |line| line.chunk == hit.0);
    figures.judge("F4 agent frozen beside another on its hardware (R: from its thaw)");
    assert_eq!(meanwhile, 0, "the lock of a frozen agent is held");
    within("the notice", figures.noticed, SUSPECT);
    assert!(figures.again <= 1, "only what the frozen one held may run again");
}

/// When hosts 1 and 2 of four were out of the coordinator's reach.
struct Parted {
    cut: Duration,
    healed: Duration,
}

/// What came of it.
struct Outcome {
    times: Parted,
    book: book::Book,
    /// What was at the engines of the parted half when the cut was made.
    held: Vec<(u32, u32)>,
}

/// Parts half of a mesh from its coordinator, and holds the row against its targets.
fn parted(shape: &str, chunks: u32, part: impl Fn(&Rig) -> Result<Parted, String>) -> Option<Outcome> {
    let mut mesh = Working::new(4, chunks, SECOND)?;
    let in_flight = open_at(&mesh.rig).len();
    let times = match part(&mesh.rig) {
        Ok(times) => times,
        Err(why) => {
            skipped(&format!("no iptables: {why}"));
            return None;
        }
    };
    assert!(!mesh.job.is_over(), "there is work left for those who come back: {}", mesh.job.log());
    let isolated = [mesh.ids[0].clone(), mesh.ids[1].clone()];
    let mut figures = mesh.ends();
    let book = mesh.rig.book();
    figures.noticed = book.after(times.cut, "suspect", |line| isolated.contains(&line.more));
    figures.recovered = book.after(times.healed, "send", |line| isolated.contains(&line.more));
    figures.judge(&format!("F6 partition, {shape}"));
    within("the first order after the heal", figures.recovered, Duration::from_secs(5));
    assert!(figures.again <= in_flight, "only what was in flight at the cut runs again");
    let held = book.open_at(times.cut).into_iter().map(|(attempt, _)| attempt);
    let held = held.filter(|attempt| isolated.contains(&sent_to(&mesh.rig, *attempt))).collect();
    Some(Outcome { times, book, held })
}

/// Nothing passes for so long, in both directions or not towards the coordinator.
fn cut_for(rig: &Rig, both: bool, lasts: Duration) -> Result<Parted, String> {
    [1, 2].iter().try_for_each(|host| rig.cut(*host, both))?;
    let cut = now();
    rig::pass(cut + lasts);
    [1, 2].iter().for_each(|host| rig.heal(*host));
    Ok(Parted { cut, healed: now() })
}

/// What the parted ones had at work they finished, and kept until it was acknowledged after the heal.
fn kept(Outcome { times: Parted { cut, healed }, book, held }: &Outcome) {
    assert!(!held.is_empty(), "they worked when the cut was made");
    for hit in held {
        let of = |line: &book::Line| (line.chunk, line.no) == *hit;
        let ended = book.after(*cut, "exec_end", of).unwrap_or_else(|| panic!("{hit:?} was not finished"));
        assert!(*cut + ended < *healed, "{hit:?} was finished without the coordinator");
        assert!(book.after(*healed, "forget", of).is_some(), "{hit:?} was kept until the heal");
    }
}

#[test]
fn fault_f06_half_a_mesh_that_is_cut_off_for_a_minute_finishes_keeps_and_comes_back() {
    let minute = Duration::from_secs(60);
    let Some(found) = parted("both ways", 170, |rig| cut_for(rig, true, minute)) else { return };
    kept(&found);
    let Parted { cut, healed } = &found.times;
    let on = found.book.of("commit").filter(|line| (*cut + DEAD..*healed).contains(&line.at)).count();
    assert!(on > 50, "the rest works on: {on} commits");
}

#[test]
fn fault_f06_half_a_mesh_that_cannot_answer_is_cut_off_as_well() {
    let lasts = Duration::from_secs(12);
    let Some(found) = parted("one way", 64, |rig| cut_for(rig, false, lasts)) else { return };
    kept(&found);
}

#[test]
fn fault_f06_links_that_come_and_go_cost_no_more_than_what_was_in_flight() {
    let flaps = |rig: &Rig| {
        let two = Duration::from_secs(2);
        let Parted { cut, mut healed } = cut_for(rig, true, two)?;
        for _ in 0..4 {
            rig::pass(healed + two);
            healed = cut_for(rig, true, two)?.healed;
        }
        Ok(Parted { cut, healed })
    };
    let _ = parted("2 s on and 2 s off", 100, flaps);
}

/// Two installs on one device, each with its agent; who is hit, and with what.
struct Pair {
    rig: Rig,
    agents: [rig::Program; 2],
    _doubles: [rig::Program; 2],
    /// Where they are.
    places: [(usize, u16); 2],
}

/// Where the two agents of one hardware are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Housing {
    /// In one network namespace.
    Together,
    /// In two, with one directory of locks.
    Namespaces,
    /// In two, each with a directory of its own.
    Apart,
}

impl Pair {
    fn new(housing: Housing) -> Option<Self> {
        let places = match housing {
            Housing::Together => [(1, 11_434), (1, 11_435)],
            Housing::Namespaces | Housing::Apart => [(1, 11_434), (2, 11_434)],
        };
        let rig = Rig::new(2)?;
        let doubles = places.map(|(host, port)| rig.double_on(host, 1, port, SECOND));
        let agents = places.map(|(host, port)| {
            if housing == Housing::Apart {
                rig.agent_apart(host, 1, port)
            } else {
                rig.agent_on(host, 1, port)
            }
        });
        Some(Self { rig, agents, _doubles: doubles, places })
    }

    /// Waits until one of them works, and gives the attempt and which of them it is.
    fn at_work(&self) -> ((u32, u32), usize) {
        let (host, port) = self.places[0];
        let first = agent_at(&self.rig, host, port).expect("it is in the roster");
        until(rig::PATIENCE, "one works", || !open_at(&self.rig).is_empty());
        let hit = open_at(&self.rig)[0];
        (hit, usize::from(sent_to(&self.rig, hit) != first))
    }
}

#[test]
fn fault_f20_two_agents_on_one_hardware_take_turns_and_one_goes_on_alone() {
    let Some(mut pair) = Pair::new(Housing::Together) else { return };
    let mut job = pair.rig.run(&pair.rig.prompts(8), &[]);
    let (hit, victim) = pair.at_work();
    let at = now();
    pair.agents[victim].kill();
    let (code, rows) = job.ends();
    assert_eq!((code, rows.len()), (Some(0), 8), "{}", job.log());
    let book = pair.rig.book();
    let mut figures = book.figures(8, &pair.rig.witness(), &DEVICES[..1]);
    figures.noticed = book.after(at, "ended", |line| (line.chunk, line.no) == hit);
    figures.recovered = elsewhere(&book, at, hit);
    figures.judge("F20 two agents, one hardware, one killed");
    within("the takeover", figures.recovered, Duration::from_secs(2));
}

#[test]
fn fault_f20_one_directory_of_locks_keeps_two_coordinators_apart_in_two_network_namespaces() {
    let Some(pair) = Pair::new(Housing::Namespaces) else { return };
    let input = pair.rig.prompts(6);
    // Each knows one of the two agents only, so nothing but the locks is between their orders.
    let mut jobs = [0, 1].map(|at| {
        let (host, port) = pair.places[at];
        pair.rig.run_beside(&input, &format!("job-{at}"), host, port)
    });
    for job in &mut jobs {
        let (code, rows) = job.ends();
        assert_eq!((code, rows.len()), (Some(0), 6), "{}", job.log());
    }
    let installs = pair.rig.witness().installs("cpu1").len();
    let overlap = pair.rig.witness().overlap("cpu1");
    print_overlap("two network namespaces, one lock directory, two coordinators", overlap);
    assert_eq!((installs, overlap), (2, Duration::ZERO));
}

#[test]
fn fault_f20_without_a_common_lock_one_coordinator_keeps_the_device_and_the_split_is_shown() {
    let Some(pair) = Pair::new(Housing::Apart) else { return };
    let mut job = pair.rig.run(&pair.rig.prompts(8), &[]);
    let (code, rows) = job.ends();
    assert_eq!((code, rows.len()), (Some(0), 8), "{}", job.log());
    let figures = pair.rig.book().figures(8, &pair.rig.witness(), &DEVICES[..1]);
    figures.judge("F20 two mount namespaces, no common lock, one coordinator");
    let input = pair.rig.prompts(4);
    for command in [&["machines"][..], &["plan", input.to_str().unwrap()]] {
        let output = pair.rig.tropa(command).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("lane.lock_split"), "{command:?} shows it: {output:?}");
    }
    let mut jobs = [0, 1].map(|at| {
        let (host, port) = pair.places[at];
        pair.rig.run_beside(&input, &format!("job-{at}"), host, port)
    });
    for job in &mut jobs {
        assert_eq!(job.ends().0, Some(0), "{}", job.log());
    }
    print_overlap(
        "two mount namespaces, no common lock, two coordinators",
        pair.rig.witness().overlap("cpu1"),
    );
}

#[expect(clippy::print_stdout, reason = "the figures of the catalogue")]
fn print_overlap(what: &str, overlap: Duration) {
    println!("F20 {what}: O {:.2} s", overlap.as_secs_f64());
}

#[test]
fn fault_f31_an_agent_that_is_asked_to_leave_hands_everything_over() {
    let Some(mut mesh) = Working::new(4, 24, SECOND) else { return };
    let (_, at_host) = mesh.hit();
    let at = now();
    let leaver = mesh.ids[at_host].clone();
    mesh.agents[at_host].signal(Signal::TERM);
    assert_eq!(mesh.agents[at_host].ends(), Some(0));
    let mut figures = mesh.ends();
    let book = mesh.rig.book();
    figures.recovered = book.after(at, "send", |line| line.more != leaver);
    figures.judge("F31 agent leaves");
    assert_eq!(figures.again, 0, "nothing is executed again");
    assert!(book.of("ended").all(|line| line.more != "lost"), "nothing is lost");
}
