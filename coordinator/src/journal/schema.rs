//! The tables of a journal, and how a connection to one is opened so that its promise holds.
//!
//! State that can be derived is not stored: a chunk is finished if and only if it has a row in `result`, and
//! running if and only if it has an attempt without `class`. The tables are those of `reliability.md` §7.2 with
//! these additions, which but for `recipe` and `unguarded` only the result file and reports need: `chunk.endpoint` and
//! `chunk.origin` (what the item was called and how its answer is to be shaped), `chunk.recipe` (the body with holes
//! of a chunk that builds on others; `request` is the same with the answers in it, written when they are all there),
//! `attempt.machine` and `attempt.reason`, `result.metrics` (times of the deciding attempt, JSON) and `result.detail`
//! (words of a failure). `attempt.machine` is the machine's whole id in the roster of that time, the smallest among its
//! agents; `machine` says by which uid the machine of an agent goes, as it was last heard, and an attempt counts to the
//! machine of its agent: so a machine keeps its name here when agents come and go, and two that turn out to be one
//! become one. `attempt.started_ms` (when its engine began) and `name` (what agents are called, and machines by the id
//! that people see) are for reports; `unguarded` (which agents no kernel lock keeps from the devices of which) is for a
//! successor, who must keep them away too; `result.sha256` covers the number of the chunk and the body.
//!
//! Version 5 has `machine` and version 4 had not: opened for writing, such a journal gets the table; a reader, who may
//! not write, sees an empty one.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::Error;

/// `PRAGMA application_id` of a journal: the letters `trop`.
pub(super) const APPLICATION_ID: i64 = 0x7472_6f70;

/// `PRAGMA user_version`: the version of the tables below. A journal of another version than this and the one before
/// is refused.
pub(super) const USER_VERSION: i64 = 5;

/// The version that lacks [`MACHINE`] and is otherwise the same.
pub(super) const FORMER_VERSION: i64 = 4;

/// The largest journal that is checked page by page at every opening: a gigabyte takes a few seconds to read.
pub(super) const QUICK_CHECK_BELOW: u64 = 1 << 30;

const TABLES: &str = "
CREATE TABLE job (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  id BLOB NOT NULL CHECK (length(id) = 16),
  kind TEXT NOT NULL CHECK (kind IN ('run','map','write','panel','embed')),
  spec BLOB NOT NULL,
  spec_sha256 BLOB NOT NULL CHECK (length(spec_sha256) = 32),
  input_sha256 BLOB NOT NULL CHECK (length(input_sha256) = 32),
  created_ms INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('open','done','cancelled'))) STRICT;
CREATE TABLE chunk (
  idx INTEGER PRIMARY KEY CHECK (idx >= 0),
  item INTEGER UNIQUE,
  hash BLOB NOT NULL CHECK (length(hash) = 32), model TEXT NOT NULL,
  endpoint TEXT NOT NULL CHECK (endpoint IN ('chat','generate','embed')),
  request BLOB,
  recipe BLOB,
  origin TEXT,
  round INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE need (
  idx INTEGER NOT NULL REFERENCES chunk(idx), on_idx INTEGER NOT NULL REFERENCES chunk(idx),
  PRIMARY KEY (idx, on_idx), CHECK (on_idx < idx)) STRICT, WITHOUT ROWID;
CREATE TABLE attempt (
  idx INTEGER NOT NULL REFERENCES chunk(idx), no INTEGER NOT NULL CHECK (no >= 1),
  round INTEGER NOT NULL, agent BLOB NOT NULL, incarnation INTEGER NOT NULL,
  machine BLOB NOT NULL CHECK (length(machine) = 32), lane TEXT NOT NULL, sent_ms INTEGER NOT NULL,
  started_ms INTEGER, ended_ms INTEGER,
  class TEXT, reason TEXT, detail TEXT CHECK (length(detail) <= 2048),
  PRIMARY KEY (idx, no)) STRICT, WITHOUT ROWID;
CREATE TABLE result (
  idx INTEGER PRIMARY KEY REFERENCES chunk(idx),
  kind TEXT NOT NULL CHECK (kind IN ('done','failed')),
  no INTEGER,
  class TEXT, model_fingerprint TEXT, model_digest TEXT, done_reason TEXT,
  prompt_tokens INTEGER, output_tokens INTEGER,
  metrics TEXT, detail TEXT CHECK (length(detail) <= 2048),
  sha256 BLOB, body BLOB,
  CHECK ((kind = 'done') = (body IS NOT NULL)), CHECK ((kind = 'failed') = (class IS NOT NULL)),
  FOREIGN KEY (idx, no) REFERENCES attempt(idx, no)) STRICT;
CREATE TABLE unguarded (
  agent BLOB NOT NULL CHECK (length(agent) = 32), rival BLOB NOT NULL CHECK (length(rival) = 32),
  PRIMARY KEY (agent, rival)) STRICT, WITHOUT ROWID;
CREATE TABLE name (
  kind TEXT NOT NULL CHECK (kind IN ('agent','machine')), id BLOB NOT NULL,
  name TEXT NOT NULL CHECK (length(name) <= 256),
  PRIMARY KEY (kind, id)) STRICT, WITHOUT ROWID;
";

/// Without the verb before it: a reader makes one of its own.
const MACHINE: &str = "TABLE machine (
  agent BLOB PRIMARY KEY CHECK (length(agent) = 32), uid BLOB NOT NULL CHECK (length(uid) = 22)) STRICT, WITHOUT ROWID;
";

/// Every pragma of a connection with the value that it must read back as (`reliability.md` §7.3).
///
/// `synchronous=NORMAL` would be fifty times faster and lose acknowledged results in a power cut.
const PRAGMAS: [(&str, &str); 7] = [
    ("journal_mode", "wal"),
    ("synchronous", "2"),
    ("foreign_keys", "1"),
    ("trusted_schema", "0"),
    ("cell_size_check", "1"),
    ("busy_timeout", "5000"),
    ("wal_autocheckpoint", "1000"),
];

/// On macOS only these make `fsync` reach the disk.
#[cfg(target_os = "macos")]
const PLATFORM: [(&str, &str); 2] = [("fullfsync", "1"), ("checkpoint_fullfsync", "1")];
#[cfg(not(target_os = "macos"))]
const PLATFORM: [(&str, &str); 0] = [];

/// Opens an empty database file and makes the tables.
pub(super) fn create(file: &Path) -> Result<Connection, Error> {
    let conn = connect(file)?;
    let doing = "make the tables of the journal";
    // One transaction: a crash leaves an empty file or a whole schema.
    let sql = format!(
        "BEGIN IMMEDIATE; PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={USER_VERSION}; {TABLES}
         CREATE {MACHINE} COMMIT;"
    );
    conn.execute_batch(&sql).map_err(|e| Error::sql(doing, e))?;
    Ok(conn)
}

/// Opens a journal for reading and writing, proves that it is one and undamaged, and brings it to the present version.
///
/// # Errors
/// [`Error::NotAJournal`] for another file or version, [`Error::Damaged`] with the first finding of the check.
pub(super) fn open(file: &Path) -> Result<Connection, Error> {
    // The header is read before `connect` sets the journal mode, which would write to a file that is not ours.
    let conn = connect_existing(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let version = verify(&conn)?;
    set_pragmas(&conn)?;
    if std::fs::metadata(file).is_ok_and(|meta| meta.len() < QUICK_CHECK_BELOW) {
        check(&conn)?;
    }
    if version == FORMER_VERSION {
        // One transaction: a crash leaves the one version or the other.
        let sql = format!("BEGIN IMMEDIATE; CREATE {MACHINE} PRAGMA user_version={USER_VERSION}; COMMIT;");
        conn.execute_batch(&sql).map_err(|e| Error::sql("bring the journal to the present version", e))?;
    }
    Ok(conn)
}

/// Opens a journal that another process may be writing, for reading only.
pub(super) fn open_read_only(file: &Path) -> Result<Connection, Error> {
    let conn = connect_existing(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let (version, sql) = (verify(&conn)?, |e| Error::sql("open the journal", e));
    conn.pragma_update(None, "busy_timeout", 5000).map_err(sql)?;
    conn.pragma_update(None, "trusted_schema", 0).map_err(sql)?;
    if version == FORMER_VERSION {
        // In this connection's memory: the file stays as it is.
        let table = format!("PRAGMA temp_store=MEMORY; CREATE TEMP {MACHINE}");
        conn.execute_batch(&table).map_err(sql)?;
    }
    Ok(conn)
}

/// Opens a further connection to a journal that this process has opened already.
pub(super) fn connect(file: &Path) -> Result<Connection, Error> {
    let conn = connect_existing(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    set_pragmas(&conn)?;
    Ok(conn)
}

/// Walks all pages.
///
/// # Errors
/// [`Error::Damaged`] with the first finding.
pub(super) fn check(conn: &Connection) -> Result<(), Error> {
    let found: Result<String, _> = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
    match found {
        Ok(text) if text == "ok" => Ok(()),
        Ok(text) => Err(Error::Damaged(text)),
        Err(error) => Err(damaged("check the journal", error)),
    }
}

fn connect_existing(file: &Path, access: OpenFlags) -> Result<Connection, Error> {
    Connection::open_with_flags(
        file,
        access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW,
    )
    .map_err(|e| Error::sql("open the journal", e))
}

/// Makes sure that it is a journal of this version or of the one before, and says which.
fn verify(conn: &Connection) -> Result<i64, Error> {
    let mut version = 0;
    for (name, want, or) in
        [("application_id", APPLICATION_ID, APPLICATION_ID), ("user_version", USER_VERSION, FORMER_VERSION)]
    {
        let found: i64 = conn
            .pragma_query_value(None, name, |row| row.get(0))
            .map_err(|e| damaged("read the header of the journal", e))?;
        if found == 0 && is_empty(conn) {
            return Err(Error::Incomplete);
        }
        if ![want, or].contains(&found) {
            return Err(Error::NotAJournal { name, found, want });
        }
        version = found;
    }
    Ok(version)
}

/// Tells a journal whose coordinator ended before it had made the tables from a file of somebody else.
fn is_empty(conn: &Connection) -> bool {
    conn.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0)).unwrap_or(false)
}

fn set_pragmas(conn: &Connection) -> Result<(), Error> {
    for (name, want) in PRAGMAS.iter().chain(&PLATFORM).copied() {
        conn.execute_batch(&format!("PRAGMA {name}={want}"))
            .map_err(|e| damaged("set the pragmas of the journal", e))?;
        let found = conn
            .pragma_query_value(None, name, |row| Ok(shown(row.get_ref(0)?)))
            .map_err(|e| damaged("read the pragmas of the journal", e))?;
        if found != want {
            return Err(Error::Pragma { name, found, want });
        }
    }
    Ok(())
}

fn shown(value: rusqlite::types::ValueRef<'_>) -> String {
    use rusqlite::types::ValueRef;
    match value {
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        ValueRef::Null | ValueRef::Real(_) | ValueRef::Blob(_) => String::new(),
    }
}

fn damaged(doing: &'static str, error: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => Error::Damaged(error.to_string()),
        _ => Error::sql(doing, error),
    }
}
