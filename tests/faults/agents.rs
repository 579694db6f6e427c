//! Rows whose fault is at an agent or on the way to it.

use rustix::process::Signal;
use tropa_tests::skipped;

use super::*;

const ROW_1: Duration = Duration::from_millis(500);
const ROW_1_AGAIN: Duration = Duration::from_secs(2);
const SUSPECT: Duration = Duration::from_secs(4);
const DEAD: Duration = Duration::from_secs(8);
const ELSEWHERE: Duration = Duration::from_secs(10);

/// Four agents, their doubles, and a job of chunks of a second over them, each agent at work.
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
    fn new(hosts: usize, chunks: u32) -> Option<Self> {
        let rig = Rig::new(hosts)?;
        let doubles = (1..=hosts).map(|host| rig.double(host, SECOND)).collect();
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
    let Some(mut mesh) = Working::new(4, 24) else { return };
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
    let Some(mut mesh) = Working::new(4, 40) else { return };
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
    let Some(mut mesh) = Working::new(4, 60) else { return };
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
fn fault_f06_after_a_partition_of_half_the_mesh_what_was_finished_meanwhile_is_fetched() {
    for (both, shape) in [(true, "both ways"), (false, "one way")] {
        let Some(mut mesh) = Working::new(4, 64) else { return };
        let in_flight = open_at(&mesh.rig).len();
        for host in [1, 2] {
            if let Err(why) = mesh.rig.cut(host, both) {
                return skipped(&format!("no iptables: {why}"));
            }
        }
        let cut = now();
        until(rig::PATIENCE, "the rest works on", || {
            mesh.rig.book().after(cut + Duration::from_secs(12), "commit", |_| true).is_some()
        });
        let healed = now();
        for host in [1, 2] {
            mesh.rig.heal(host);
        }
        let isolated = [mesh.ids[0].clone(), mesh.ids[1].clone()];
        let mut figures = mesh.ends();
        let book = mesh.rig.book();
        figures.noticed = book.after(cut, "suspect", |line| isolated.contains(&line.more));
        figures.recovered = book.after(healed, "send", |line| isolated.contains(&line.more));
        figures.judge(&format!("F6 partition, {shape}"));
        within("the first order after the heal", figures.recovered, Duration::from_secs(5));
        assert!(figures.again <= in_flight, "only what was in flight at the cut runs again");
    }
}

#[test]
fn fault_f20_two_agents_on_one_hardware_take_turns_and_one_goes_on_alone() {
    let Some(rig) = Rig::new(1) else { return };
    let _doubles = [rig.double_on(1, 1, 11_434, SECOND), rig.double_on(1, 1, 11_435, SECOND)];
    let mut agents = [rig.agent_on(1, 1, 11_434), rig.agent_on(1, 1, 11_435)];
    let mut job = rig.run(&rig.prompts(8), &[]);
    let first = agent_at(&rig, 1, 11_434).expect("it is in the roster");
    let mut open = Vec::new();
    until(rig::PATIENCE, "one works", || {
        open = open_at(&rig);
        !open.is_empty()
    });
    let (chunk, no) = open[0];
    let victim = usize::from(sent_to(&rig, (chunk, no)) != first);
    let at = now();
    agents[victim].kill();
    let (code, rows) = job.ends();
    assert_eq!((code, rows.len()), (Some(0), 8), "{}", job.log());
    let book = rig.book();
    let mut figures = book.figures(8, &rig.witness(), &DEVICES[..1]);
    figures.noticed = book.after(at, "ended", |line| (line.chunk, line.no) == (chunk, no));
    figures.recovered = elsewhere(&book, at, (chunk, no));
    figures.judge("F20 two agents, one hardware, one killed");
    within("the takeover", figures.recovered, Duration::from_secs(2));
}

#[test]
fn fault_f31_an_agent_that_is_asked_to_leave_hands_everything_over() {
    let Some(mut mesh) = Working::new(4, 24) else { return };
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
