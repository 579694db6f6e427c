//! Steps as rows: one transaction for many, each judged by the rules of the journal.

use std::collections::BTreeSet;

use rusqlite::{Connection, ErrorCode, TransactionBehavior, ffi, params};
use tropa_proto::{
    bounded::Text,
    failure::Reason,
    id::{AgentId, ChunkIndex, hex},
    message::Outcome,
    proof::{self, Bug, planted},
    uid::{MachineUid, ShownId},
};

use super::{
    result_hash,
    step::{Done, Effect, Step, Token},
};

/// Writes the steps in one transaction and syncs it. On an error nothing of it is left.
pub(super) fn commit(conn: &mut Connection, steps: &[(Token, Step)]) -> rusqlite::Result<Vec<Effect>> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let effects = steps.iter().map(|(_, step)| apply(&tx, step)).collect::<Result<_, _>>()?;
    broken(proof::step("journal.commit"))?;
    tx.commit()?;
    broken(proof::step("journal.synced"))?;
    Ok(effects)
}

/// What a test breaks, as the store would say it.
fn broken(step: std::io::Result<()>) -> rusqlite::Result<()> {
    step.map_err(|error| {
        let full = error.kind() == std::io::ErrorKind::StorageFull;
        let code = if full { ffi::SQLITE_FULL } else { ffi::SQLITE_IOERR };
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(error.to_string()))
    })
}

fn unguarded(conn: &Connection, agent: AgentId, rivals: &BTreeSet<AgentId>) -> rusqlite::Result<Effect> {
    conn.prepare_cached("DELETE FROM unguarded WHERE agent = ?1")?.execute([agent.0])?;
    let mut row = conn.prepare_cached("INSERT INTO unguarded (agent, rival) VALUES (?1, ?2)")?;
    for rival in rivals {
        row.execute([agent.0, rival.0])?;
    }
    Ok(Effect::First)
}

fn apply(conn: &Connection, step: &Step) -> rusqlite::Result<Effect> {
    let changed = match step {
        Step::Attempt { chunk, no, agent, incarnation, machine, lane, now_ms } => conn
            .prepare_cached(
                "INSERT INTO attempt (idx, no, round, agent, incarnation, machine, lane, sent_ms)
                 VALUES (?1, ?2, (SELECT round FROM chunk WHERE idx = ?1), ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                chunk.0,
                no,
                agent.0,
                incarnation.0.cast_signed(),
                machine.0.0,
                lane,
                ms(*now_ms)
            ]),
        Step::Unguarded { agent, rivals } => return unguarded(conn, *agent, rivals),
        Step::Ended { chunk, no, class, reason, detail, now_ms } => conn
            .prepare_cached(
                "UPDATE attempt SET class = ?3, reason = ?4, detail = ?5, ended_ms = ?6
                 WHERE idx = ?1 AND no = ?2 AND class IS NULL",
            )?
            .execute(params![
                chunk.0,
                no,
                class.name(),
                reason.map(Reason::name),
                &*Text::<2048>::cut(detail),
                ms(*now_ms)
            ]),
        Step::Result { chunk, no, done, now_ms } => return result(conn, *chunk, *no, done, ms(*now_ms)),
        Step::Failed { chunk, no, class, detail } => conn
            .prepare_cached(
                "INSERT INTO result (idx, kind, no, class, detail) VALUES (?1, 'failed', ?2, ?3, ?4)
                 ON CONFLICT (idx) DO NOTHING",
            )?
            .execute(params![chunk.0, no, class.name(), &*Text::<2048>::cut(detail)]),
        Step::Request { chunk, body } => conn
            .prepare_cached("UPDATE chunk SET request = ?2 WHERE idx = ?1 AND request IS NULL")?
            .execute(params![chunk.0, body]),
        Step::State(state) => conn.prepare_cached("UPDATE job SET state = ?1")?.execute([state.name()]),
        Step::Started { chunk, no, now_ms } => conn
            .prepare_cached(
                "UPDATE attempt SET started_ms = ?3 WHERE idx = ?1 AND no = ?2 AND started_ms IS NULL",
            )?
            .execute(params![chunk.0, no, ms(*now_ms)]),
        Step::Named { agent, name } => return named(conn, "agent", &agent.0, name),
        Step::Machine { id, name, agents, aliases } => {
            machine(conn, *id, agents, aliases)?;
            return named(conn, "machine", &id.to_bytes(), name);
        }
    };
    judge(changed)
}

fn named(conn: &Connection, kind: &str, id: &[u8], name: &str) -> rusqlite::Result<Effect> {
    conn.prepare_cached("INSERT OR REPLACE INTO name (kind, id, name) VALUES (?1, ?2, ?3)")?
        .execute(params![kind, id, &*Text::<256>::cut(name)])?;
    Ok(Effect::First)
}

/// Writes by which uid the machine of these agents goes. One without a uid goes by what stands with the attempts.
fn machine(
    conn: &Connection,
    id: ShownId,
    agents: &[AgentId],
    aliases: &BTreeSet<MachineUid>,
) -> rusqlite::Result<()> {
    let ShownId::Uid(uid) = id else {
        let mut forget = conn.prepare_cached("DELETE FROM machine WHERE agent = ?1")?;
        return agents.iter().try_for_each(|agent| forget.execute([agent.0]).map(drop));
    };
    let mut row = conn.prepare_cached("INSERT OR REPLACE INTO machine (agent, uid) VALUES (?1, ?2)")?;
    for agent in agents {
        row.execute(params![agent.0, uid.to_bytes()])?;
    }
    let mut forward = conn.prepare_cached("UPDATE machine SET uid = ?1 WHERE uid = ?2")?;
    for alias in aliases {
        forward.execute([uid.to_bytes(), alias.to_bytes()])?;
    }
    // Nothing is counted to these any more, and a name of theirs would look like that of another machine.
    let former = aliases.iter().map(|alias| alias.to_bytes().to_vec());
    let former = former.chain(agents.iter().map(|agent| agent.0.to_vec()));
    let mut forget = conn.prepare_cached("DELETE FROM name WHERE kind = 'machine' AND id = ?1")?;
    former.into_iter().try_for_each(|id| forget.execute([id]).map(drop))
}

fn result(
    conn: &Connection,
    chunk: ChunkIndex,
    no: u32,
    done: &Done,
    now_ms: i64,
) -> rusqlite::Result<Effect> {
    let outcome = &done.outcome;
    if planted(Bug::NoKeyAtCommit) {
        conn.prepare_cached("DELETE FROM result WHERE idx = ?1")?.execute([chunk.0])?;
    }
    let inserted = conn
        .prepare_cached(
            "INSERT INTO result (idx, kind, no, model_fingerprint, model_digest, done_reason,
                                 prompt_tokens, output_tokens, metrics, sha256, body)
             VALUES (?1, 'done', ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT (idx) DO NOTHING",
        )?
        .execute(params![
            chunk.0,
            no,
            hex(&done.fingerprint),
            hex(&outcome.digest),
            &*outcome.done_reason,
            outcome.prompt_tokens,
            outcome.output_tokens,
            metrics(outcome),
            result_hash(chunk.0, &done.body),
            done.body
        ]);
    let effect = judge(inserted)?;
    let sql = match effect {
        // The attempt may have been given up before its result came and won.
        Effect::First => {
            "UPDATE attempt SET class = 'done', reason = NULL, detail = NULL, ended_ms = ?3 WHERE idx = ?1 AND no = ?2"
        }
        Effect::Late => {
            "UPDATE attempt SET class = 'superseded', ended_ms = ?3 WHERE idx = ?1 AND no = ?2 AND class IS NULL"
        }
        Effect::Refused => return Ok(effect),
    };
    conn.prepare_cached(sql)?.execute(params![chunk.0, no, now_ms])?;
    Ok(effect)
}

/// The times of an outcome as the export reads them: microseconds, but for `wait_ms`.
fn metrics(outcome: &Outcome) -> String {
    let Outcome {
        reasoning_only, wait_ms, wall_us, first_us, load_us, prompt_us, decode_us, total_us, ..
    } = outcome;
    serde_json::json!({
        "reasoning_only": reasoning_only, "wait_ms": wait_ms, "wall_us": wall_us, "first_us": first_us,
        "load_us": load_us, "prompt_us": prompt_us, "decode_us": decode_us, "total_us": total_us,
    })
    .to_string()
}

/// Tells by what a statement changed what became of its step. A broken rule undoes the statement, not the others.
fn judge(changed: rusqlite::Result<usize>) -> rusqlite::Result<Effect> {
    match changed {
        Ok(0) => Ok(Effect::Late),
        Ok(_) => Ok(Effect::First),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
            Ok(Effect::Refused)
        }
        Err(error) => Err(error),
    }
}

fn ms(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}
