//! A machine keeps one id in a journal, whoever of its agents worked, and whatever is found out of it later.

use std::collections::BTreeMap;

use tropa_proto::uid::{MachineUid, ShownId};

use super::*;

fn uid(n: u8) -> MachineUid {
    MachineUid { created_ms: u64::from(n), random: [n; 16] }
}

fn lasting(n: u8) -> ShownId {
    ShownId::Uid(uid(n))
}

fn roster(n: u8) -> ShownId {
    ShownId::Roster(MachineId(AgentId([n; 32])))
}

/// An agent takes a chunk while the agent `smallest` gives its machine the id in the roster, and brings a result.
fn done(chunk: u32, agent: u8, smallest: u8) -> [Step; 2] {
    let Step::Attempt { no, incarnation, lane, now_ms, .. } = attempt(chunk, 1) else { unreachable!() };
    let (agent, machine) = (AgentId([agent; 32]), MachineId(AgentId([smallest; 32])));
    let chunk = ChunkIndex(chunk);
    [Step::Attempt { chunk, no, agent, incarnation, machine, lane, now_ms }, result(chunk.0, 1, b"x")]
}

fn known(id: ShownId, name: &str, agents: &[u8], aliases: &[u8]) -> Step {
    let agents = agents.iter().map(|n| AgentId([*n; 32])).collect();
    Step::Machine { id, name: name.to_owned(), agents, aliases: aliases.iter().map(|n| uid(*n)).collect() }
}

fn tell(journal: &Journal, step: Step) {
    let (writer, reports) = journal.writer().unwrap();
    drop(reports);
    writer.submit(Token(0), step).unwrap();
    writer.finish();
}

/// Who has how many results, by every way in which the journal tells it.
fn shares(journal: &Journal) -> Vec<(ShownId, u32)> {
    let mut attempts: BTreeMap<ShownId, u32> = BTreeMap::new();
    journal.each_attempt(None, |row| *attempts.entry(row.machine).or_default() += 1).unwrap();
    let mut items: BTreeMap<ShownId, u32> = BTreeMap::new();
    for item in (0..journal.job().items).filter_map(|n| journal.item(n).unwrap()) {
        *items.entry(item.attempts[0].machine).or_default() += 1;
    }
    let totals = journal.totals().unwrap().machines;
    let totals: Vec<_> = totals.into_iter().map(|(id, share)| (id, share.items)).collect();
    assert_eq!(totals, attempts.into_iter().collect::<Vec<_>>());
    assert_eq!(totals, items.into_iter().collect::<Vec<_>>());
    totals
}

#[test]
fn agents_that_come_and_go_leave_their_machine_its_id() {
    let (_temp, journal) = journal(3);
    write(&journal, done(0, 1, 1).into());
    // The smallest has left, and a smaller one has come.
    write(&journal, done(1, 2, 2).into());
    write(&journal, done(2, 2, 0).into());
    tell(&journal, known(lasting(7), "den", &[1, 2], &[]));
    assert_eq!(shares(&journal), [(lasting(7), 3)]);
    assert_eq!(journal.names().unwrap().machine(lasting(7)), "den");
}

#[test]
fn machines_that_turn_out_to_be_one_are_one_in_what_was_done_before_and_may_part_again() {
    let (_temp, journal) = journal(2);
    write(&journal, [done(0, 1, 1), done(1, 2, 2)].concat());
    tell(&journal, known(lasting(1), "den", &[1], &[]));
    tell(&journal, known(lasting(2), "den", &[2], &[]));
    assert_eq!(shares(&journal), [(lasting(1), 1), (lasting(2), 1)]);
    let names = journal.names().unwrap();
    assert_eq!([1, 2].map(|n| names.machine(lasting(n))), ["den (m-0101)", "den (m-0202)"]);
    // The agent that brought the other uid has left for good: only its name is still known.
    tell(&journal, known(lasting(1), "den", &[1], &[2]));
    assert_eq!(shares(&journal), [(lasting(1), 2)]);
    assert_eq!(journal.names().unwrap().machine(lasting(1)), "den", "nobody else is called so");
    tell(&journal, known(lasting(2), "attic", &[2], &[]));
    assert_eq!(shares(&journal), [(lasting(1), 1), (lasting(2), 1)]);
    assert_eq!(journal.names().unwrap().machine(lasting(2)), "attic");
}

#[test]
fn a_machine_without_a_uid_goes_by_its_agent_until_it_has_one() {
    let (_temp, journal) = journal(1);
    write(&journal, done(0, 2, 1).into());
    assert_eq!(shares(&journal), [(roster(1), 1)], "nothing is known of it");
    tell(&journal, known(roster(1), "copy", &[1, 2], &[]));
    assert_eq!(shares(&journal), [(roster(1), 1)]);
    assert_eq!(journal.names().unwrap().machine(roster(1)), "copy");
    tell(&journal, known(lasting(5), "copy", &[1, 2], &[]));
    assert_eq!(shares(&journal), [(lasting(5), 1)]);
    assert_eq!(journal.names().unwrap().machines.len(), 1, "the former name is of no machine any more");
    tell(&journal, known(roster(1), "copy", &[1, 2], &[]));
    assert_eq!(shares(&journal), [(roster(1), 1)], "another machine has claimed the uid with more right");
}

/// Makes a journal one of another version, as far as its header and the table of machines go.
fn turn_into(version: i64, dir: &Path) {
    let conn = Connection::open(dir.join("journal.db")).unwrap();
    conn.execute_batch(&format!("DROP TABLE machine; PRAGMA user_version={version}")).unwrap();
    conn.execute("INSERT INTO name VALUES ('machine', ?1, 'den')", [[1_u8; 32]]).unwrap();
}

fn version(dir: &Path) -> i64 {
    let conn = Connection::open(dir.join("journal.db")).unwrap();
    conn.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

#[test]
fn a_journal_of_the_version_before_is_read_as_it_is_and_brought_up_when_its_job_goes_on() {
    let (_temp, journal) = journal(2);
    write(&journal, done(0, 2, 1).into());
    let dir = journal.dir().to_owned();
    drop(journal);
    turn_into(schema::FORMER_VERSION, &dir);

    let reader = Journal::open_read_only(&dir).unwrap();
    assert_eq!(shares(&reader), [(roster(1), 1)]);
    assert_eq!(reader.names().unwrap().machine(roster(1)), "den");
    assert_eq!(version(&dir), schema::FORMER_VERSION, "a reader changes nothing");

    let journal = Journal::open(&dir).unwrap();
    assert_eq!((version(&dir), shares(&journal)), (schema::USER_VERSION, vec![(roster(1), 1)]));
    write(&journal, done(1, 2, 2).into());
    tell(&journal, known(lasting(7), "den", &[1, 2], &[]));
    assert_eq!(shares(&journal), [(lasting(7), 2)], "what was done before too");
    assert_eq!(shares(&reader), [(roster(1), 1), (roster(2), 1)], "a reader of before sees no uid");
    drop((journal, reader));
    assert_eq!(shares(&Journal::open(&dir).unwrap()), [(lasting(7), 2)]);
}

#[test]
fn a_journal_of_any_other_version_is_refused_by_readers_and_coordinators() {
    for other in [schema::FORMER_VERSION - 1, schema::USER_VERSION + 1] {
        let (_temp, journal) = journal(1);
        let dir = journal.dir().to_owned();
        drop(journal);
        turn_into(other, &dir);
        for refused in [Journal::open(&dir).err(), Journal::open_read_only(&dir).err()] {
            let text = refused.map(|error| error.to_string()).unwrap_or_default();
            assert!(text.contains(&format!("user_version is {other}, not 5")), "{text}");
        }
        assert_eq!(version(&dir), other);
    }
}
