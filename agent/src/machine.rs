//! The name of the machine that an agent is on, kept over restarts and agreed on with its neighbours.
//!
//! [`Known::new`] matches what the agent remembers to the hardware that it finds, by the rules of
//! [`continuity`](tropa_proto::continuity): it is the machine of the record, perhaps with new parts, or another one,
//! and then the name is a new one. While it runs, [`Known::heard`] takes in what other agents claim: agents of one
//! kernel all come to the oldest name among them, in whatever order they hear of each other; and a name that another
//! machine claims with more right is left to it. What is decided is pure; what is remembered is written before it is
//! told (`identity.md` §11).

mod record;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use tropa_proto::{
    continuity::{Match, Outcome, best},
    epoch::SETTLED_AFTER,
    evidence::{Core, Facts, Salt},
    id::{AgentId, Incarnation},
    message::{AgentState, Announcement},
    uid::{Before, Change, MachineClaim, MachineUid, one_kernel},
};

pub use self::record::Record;
use crate::state::StateError;

/// Agents on other kernels that claim our name and are watched: more than one is a copied image, and one of them is
/// enough to settle it.
const MAX_RIVALS: usize = 16;

/// What an agent knows of its machine.
#[derive(Debug)]
pub struct Known {
    record: Record,
    claim: MachineClaim,
    /// The name in a record that came here with a disk.
    moved_from: Option<MachineUid>,
    rivals: BTreeMap<AgentId, Rival>,
}

/// An agent on another kernel that claims our name: when it was heard first, and with which number.
#[derive(Clone, Copy, Debug)]
struct Rival {
    incarnation: Incarnation,
    seq: u64,
    since: Duration,
}

/// Who matches a record, and where.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// The agent's key, and the one that it has just replaced, if it has.
    pub keys: &'a [AgentId],
    /// What was read of the machine.
    pub facts: &'a Facts,
    /// What is written here outlives a restart, or the operator has named the machine.
    pub durable: bool,
    /// The time since 1970.
    pub since_1970: Duration,
}

/// What came of hearing another agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing is to be told.
    Nothing,
    /// The claim has changed: write the record, and say so.
    Changed,
    /// Another machine claims our name with more right: [`Known::give_up`].
    Outclaimed,
}

impl Known {
    /// Chooses among records, one's own and those of neighbours in one state directory, by the rules of continuity;
    /// without one that matches, the machine is called `fresh`.
    #[must_use]
    pub fn new(own: Option<Record>, neighbours: Vec<Record>, fresh: Record, here: &Here<'_>) -> Self {
        let matched =
            |record: &Record| record.hashed(here.keys, here.facts).matches(&record.anchors(), false);
        let own = own.map(|record| (matched(&record), record));
        let rebinds = neighbours.into_iter().map(|record| (matched(&record), record)).chain(own.clone());
        let rebinds: Vec<(Match, Record)> =
            rebinds.filter(|(found, _)| found.outcome == Outcome::Rebind).collect();
        let chosen = best(rebinds.iter().map(|(found, record)| (record.uid, record.uid.created_ms, *found)));
        let rebound = rebinds.iter().find(|(_, record)| Some(record.uid) == chosen);
        let (mut record, change, moved_from) = match (rebound, own) {
            (Some((found, record)), _) => {
                let mut record = record.clone();
                // Other names that the machine was given before its agents had heard of each other.
                rebinds.iter().for_each(|(_, other)| record.forward(other.uid));
                (record, found.warning.map_or(Change::None, |_| Change::HardwareChanged), None)
            }
            (None, Some((found, record))) => {
                (fresh, found.warning.map_or(Change::None, |_| Change::Moved), Some(record.uid))
            }
            (None, None) => (fresh, Change::None, None),
        };
        let seen = record.hashed(here.keys, here.facts);
        let remembered = record.anchors();
        // A fresh record knows the present hardware, and was made in this boot.
        let is_fresh = remembered.values.is_empty();
        let same_boot = is_fresh || !seen.boots.is_disjoint(&remembered.boots);
        record.see(&seen, millis(here.since_1970));
        let hardware = seen.hardware_in_common(if is_fresh { &seen } else { &remembered });
        let claim = MachineClaim {
            uid: record.uid,
            before: before(&record),
            hardware: u8::try_from(hardware).unwrap_or(u8::MAX),
            same_boot,
            change,
            durable: here.durable,
        };
        Self { record, claim, moved_from, rivals: BTreeMap::new() }
    }

    /// What the agent says of its machine.
    #[must_use]
    pub fn claim(&self) -> MachineClaim {
        self.claim
    }

    /// What is remembered.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Takes in what is seen of the machine now, hardware that was plugged or a new key; says whether any of it is
    /// new.
    pub fn see(&mut self, here: &Here<'_>) -> bool {
        let seen = self.record.hashed(here.keys, here.facts);
        let before = self.record.anchors();
        self.record.see(&seen, millis(here.since_1970));
        self.record.anchors() != before
    }

    /// Takes in what another agent claims, heard at `now` since our start. `mine` is what we would announce now.
    ///
    /// A neighbour on our kernel that has an older name gives it to us. An agent on another kernel that has our name
    /// is a copy, or we are; that is believed once it has spoken twice, ten seconds apart, since the last words of
    /// an agent that ended with the boot before arrive late.
    pub fn heard(
        &mut self,
        mine: (AgentId, Incarnation, &Core),
        from: AgentId,
        other: &Announcement,
        now: Duration,
    ) -> Heard {
        let (me, incarnation, core) = mine;
        if other.state == AgentState::Leaving {
            self.rivals.remove(&from);
            return Heard::Nothing;
        }
        let same = one_kernel(core, &other.core);
        let theirs = other.machine.uid;
        if same == Some(true) {
            self.rivals.remove(&from);
            if theirs < self.record.uid && !self.record.given_up.contains(&theirs) {
                self.record.rename(theirs);
                self.claim.uid = theirs;
                self.claim.before = before(&self.record);
                self.rivals.clear();
                return Heard::Changed;
            }
            return Heard::Nothing;
        }
        let ours = theirs == self.record.uid;
        if same.is_none() || !(ours || Some(theirs) == self.moved_from) {
            return Heard::Nothing;
        }
        if !self.settled(from, other, now) {
            return Heard::Nothing;
        }
        if !ours {
            // The record that came here with a disk belongs to a machine that is alive: the disk was copied.
            self.moved_from = None;
            self.claim.change = Change::None;
            self.claim.before = Before::CopyOf(theirs);
            return Heard::Changed;
        }
        let hold = (self.claim.hold(incarnation), me);
        if hold < (other.machine.hold(other.incarnation), from) { Heard::Outclaimed } else { Heard::Nothing }
    }

    /// Leaves the name to the machine that claims it with more right, and goes by a fresh one.
    pub fn give_up(&mut self, fresh: MachineUid) {
        self.claim.before = Before::CopyOf(self.record.uid);
        self.record.give_up(fresh);
        self.claim.uid = fresh;
        self.claim.change = Change::None;
        self.rivals.clear();
    }

    /// The other has spoken twice, far enough apart.
    fn settled(&mut self, from: AgentId, other: &Announcement, now: Duration) -> bool {
        let first = Rival { incarnation: other.incarnation, seq: other.seq, since: now };
        if !self.rivals.contains_key(&from) && self.rivals.len() >= MAX_RIVALS {
            return false;
        }
        let rival = self.rivals.entry(from).or_insert(first);
        if rival.incarnation != other.incarnation {
            *rival = first;
        }
        other.seq > rival.seq && now.saturating_sub(rival.since) >= SETTLED_AFTER
    }
}

/// The machine's name on disk and in mind.
#[derive(Debug)]
pub struct Machine {
    known: Known,
    directory: PathBuf,
}

impl Machine {
    /// Finds out which machine this is, and writes it down.
    ///
    /// # Errors
    /// When the record is open to others or not ours, cannot be read or written, or there is no chance to be had.
    pub fn open(directory: &Path, here: &Here<'_>) -> Result<Self, StateError> {
        let own = Record::load(directory)?;
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).map_err(StateError::Random)?;
        let fresh = Record::new(mint(here.since_1970)?, Salt(salt));
        let known = Known::new(own, Record::neighbours(directory), fresh, here);
        known.record.save(directory)?;
        Ok(Self { known, directory: directory.to_owned() })
    }

    /// What the agent says of its machine.
    #[must_use]
    pub fn claim(&self) -> MachineClaim {
        self.known.claim()
    }

    /// Takes in what is seen of the machine now, and writes it down if there is anything new.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn see(&mut self, here: &Here<'_>) -> Result<(), StateError> {
        if self.known.see(here) { self.known.record.save(&self.directory) } else { Ok(()) }
    }

    /// Takes in what another agent claims; says whether there is something new to announce.
    ///
    /// # Errors
    /// When it cannot be written, or there is no chance to be had.
    pub fn heard(
        &mut self,
        mine: (AgentId, Incarnation, &Core),
        from: AgentId,
        other: &Announcement,
        now: Duration,
        since_1970: Duration,
    ) -> Result<bool, StateError> {
        let before = self.known.claim.uid;
        match self.known.heard(mine, from, other, now) {
            Heard::Nothing => return Ok(false),
            Heard::Changed => {}
            Heard::Outclaimed => self.known.give_up(mint(since_1970)?),
        }
        let claim = self.known.claim;
        match claim.before {
            Before::CopyOf(of) => tracing::warn!(
                machine = of.short(),
                now = claim.uid.short(),
                other = &*other.label,
                "identity.clone: the record of this machine was copied from one that is alive; this machine has a name of its own"
            ),
            Before::Nothing | Before::Alias(_) => {
                tracing::info!(
                    before = before.short(),
                    machine = claim.uid.short(),
                    "the machine has an older name"
                );
            }
        }
        self.known.record.save(&self.directory)?;
        Ok(true)
    }
}

/// The newest of the names that forward to the present one.
fn before(record: &Record) -> Before {
    record.aliases.last().map_or(Before::Nothing, |alias| Before::Alias(*alias))
}

fn mint(since_1970: Duration) -> Result<MachineUid, StateError> {
    MachineUid::mint(since_1970).map_err(StateError::Random)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
