//! Ids are types: an agent, a job, a chunk and an attempt cannot be mixed up, and an address is none of them.
//!
//! Long ids are random or public keys; people see a short form (`a-91c2`, `7f3c90`) and may type any unique
//! prefix of the hexadecimal digits.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// Names an agent or a coordinator: the 32 bytes of its Ed25519 public key.
///
/// The mesh derives the libp2p `PeerId` from it. Order is the order of the bytes and is the last tie-break of
/// every decision.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AgentId(pub [u8; 32]);

/// Names one run of one agent process: when it started, in milliseconds since 1970 by its own clock, in the upper 44
/// bits, and chance in the lower 20.
///
/// Whoever shows the larger number has started later. Two runs of one key, which exist only where a state directory
/// was copied, compare so and both come to one answer (`identity.md` §12); with a clock that is wrong they still
/// agree, only perhaps about the wrong one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

/// Tells the processes apart that an install's Ollama has been: another process has another number, and one keeps its
/// number for as long as the agent can tell that it is the same.
///
/// Chance, or a hash of what only the machine itself knows: it says nothing of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EngineRun(pub u32);

/// Names a job: 128 random bits, made once by its coordinator, kept until the job is purged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(pub [u8; 16]);

/// Names a chunk within its job: its place in the job's order, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChunkIndex(pub u32);

/// Names one execution of one chunk on the whole mesh; the number rises from 1 and is never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttemptId {
    /// The job that the chunk belongs to.
    pub job: JobId,
    /// The chunk.
    pub chunk: ChunkIndex,
    /// The number of the attempt, from 1.
    pub no: u32,
}

/// Names a machine of the roster by the smallest id among its agents.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineId(pub AgentId);

impl AgentId {
    /// Shows as many hexadecimal digits as people need to tell the agents of one mesh apart.
    #[must_use]
    pub fn short(&self) -> String {
        format!("a-{}", &hex(&self.0)[..4])
    }
}

impl EngineRun {
    /// The agent has seen no process yet, or does not say.
    pub const UNKNOWN: Self = Self(0);

    /// Whether what was learned of one of these holds for the other: both are known, and the same.
    #[must_use]
    pub fn is_same(self, other: Self) -> bool {
        self == other && self != Self::UNKNOWN
    }
}

impl MachineId {
    /// Shows the short form, `m-` and four digits.
    #[must_use]
    pub fn short(&self) -> String {
        format!("m-{}", &hex(&self.0.0)[..4])
    }
}

impl JobId {
    /// Makes a new random id.
    ///
    /// # Errors
    /// When the operating system has no random bytes to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Shows the first six hexadecimal digits.
    #[must_use]
    pub fn short(&self) -> String {
        hex(&self.0)[..6].to_owned()
    }
}

impl Incarnation {
    /// Makes a new incarnation that nobody compares by its age: a coordinator's.
    ///
    /// # Errors
    /// When the operating system has no random bytes to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        getrandom::u64().map(Self)
    }

    /// Makes the incarnation of an agent that starts now. A time after 2527 counts as 2527.
    ///
    /// # Errors
    /// When the operating system has no random bytes to give.
    pub fn started(since_1970: Duration) -> Result<Self, getrandom::Error> {
        let started = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX).min((1 << 44) - 1);
        Ok(Self(started << 20 | u64::from(getrandom::u32()? >> 12)))
    }
}

/// Writes bytes as lower-case hexadecimal digits, two per byte.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads exactly `N` bytes from `2 × N` hexadecimal digits of either case; anything else is `None`.
#[must_use]
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}

/// Says that a text is not an id of the wanted kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id is {digits} hexadecimal digits")]
pub struct NotAnId {
    digits: usize,
}

impl FromStr for JobId {
    type Err = NotAnId;
    fn from_str(text: &str) -> Result<Self, NotAnId> {
        unhex(text).map(Self).ok_or(NotAnId { digits: 32 })
    }
}

impl FromStr for AgentId {
    type Err = NotAnId;
    fn from_str(text: &str) -> Result<Self, NotAnId> {
        unhex(text).map(Self).ok_or(NotAnId { digits: 64 })
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl fmt::Debug for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl fmt::Debug for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.job.short(), self.chunk.0, self.no)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text() {
        let job = JobId([0xab; 16]);
        assert_eq!(job.to_string().parse(), Ok(job));
        let agent = AgentId([7; 32]);
        assert_eq!(agent.to_string().parse(), Ok(agent));
    }

    #[test]
    fn whoever_started_later_has_the_larger_incarnation() {
        let started = |ms| Incarnation::started(Duration::from_millis(ms)).unwrap();
        assert!(started(1_790_000_000_001) > started(1_790_000_000_000));
        assert!(started(u64::MAX) > started(1_790_000_000_000));
    }

    #[test]
    fn a_text_of_the_wrong_length_or_alphabet_is_no_id() {
        for text in ["", "ab", &"g".repeat(32), &"é".repeat(16), &"a".repeat(33)] {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
    }
}
