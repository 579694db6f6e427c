//! The only file that says bincode: bytes of a message, and back, with everything checked.
//!
//! A frame's body is one version byte and one bincode value. Decoding is limited twice, by the cap of the message
//! and by the bound of each field; all bytes must be used; and a decoded value must pass its own
//! [`Message::check`] before anybody sees it (`security.md` §5.1). Nothing that arrives can make this file panic.

use bincode::{
    config::{self, Configuration, Limit, LittleEndian, Varint},
    error::{DecodeError, EncodeError},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    evidence::Evidence,
    message::{
        Announcement, Answer, Description, FromAgent, Inventory, LiveFinding, MAX_RESULT, Question, ToAgent,
        VERSION,
    },
};

/// The most that any message may decode to. A constant of the configuration; each message's own cap is lower.
const CEILING: usize = 8 << 20;

/// A value that travels as one frame.
pub trait Message: Serialize + DeserializeOwned {
    /// Bytes of the encoded body, version byte included. The reason stands at each implementation.
    const CAP: usize;

    /// Names the message in errors.
    const NAME: &'static str;

    /// Refuses what the types cannot: ranges, order, finite numbers.
    ///
    /// # Errors
    /// Names what is out of range.
    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

/// Says why bytes are not a message, or a message not bytes.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The frame is larger than its message may be.
    #[error("{name} of {len} bytes is above its cap of {cap}")]
    TooLarge {
        /// The message.
        name: &'static str,
        /// Its length.
        len: usize,
        /// Its cap.
        cap: usize,
    },
    /// The sender speaks another version of the protocol.
    #[error("{name} is of protocol version {found}, this build speaks {VERSION}")]
    Version {
        /// The message.
        name: &'static str,
        /// The version found.
        found: u8,
    },
    /// There is nothing in the frame.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// The bytes are not that message.
    #[error("decoding {name} failed")]
    Decode {
        /// The message.
        name: &'static str,
        /// What bincode says.
        source: Box<DecodeError>,
    },
    /// There is more in the frame than the message.
    #[error("{name} is followed by {extra} more bytes")]
    Trailing {
        /// The message.
        name: &'static str,
        /// How many.
        extra: usize,
    },
    /// The value is well formed and not allowed.
    #[error("{name} is not allowed: {what}")]
    Invalid {
        /// The message.
        name: &'static str,
        /// Why.
        what: &'static str,
    },
    /// The value cannot be written.
    #[error("encoding {name} failed")]
    Encode {
        /// The message.
        name: &'static str,
        /// What bincode says.
        source: Box<EncodeError>,
    },
}

/// Writes a message: version byte, then the value.
///
/// # Errors
/// When the value breaks its own rules or is above its cap, so that a peer is never sent what it must refuse.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, CodecError> {
    message.check().map_err(|what| CodecError::Invalid { name: M::NAME, what })?;
    let mut bytes = vec![VERSION];
    let body = bincode::serde::encode_to_vec(message, configuration())
        .map_err(|source| CodecError::Encode { name: M::NAME, source: Box::new(source) })?;
    bytes.extend_from_slice(&body);
    within_cap::<M>(bytes.len())?;
    Ok(bytes)
}

/// Reads a message from a whole frame.
///
/// # Errors
/// When the frame is above the message's cap, of another version, not that message, too long for it, or when the
/// value breaks its rules.
pub fn decode<M: Message>(frame: &[u8]) -> Result<M, CodecError> {
    within_cap::<M>(frame.len())?;
    let (&found, body) = frame.split_first().ok_or(CodecError::Empty(M::NAME))?;
    if found != VERSION {
        return Err(CodecError::Version { name: M::NAME, found });
    }
    let (message, used): (M, usize) = bincode::serde::decode_from_slice(body, configuration())
        .map_err(|source| CodecError::Decode { name: M::NAME, source: Box::new(source) })?;
    if used != body.len() {
        return Err(CodecError::Trailing { name: M::NAME, extra: body.len() - used });
    }
    message.check().map_err(|what| CodecError::Invalid { name: M::NAME, what })?;
    Ok(message)
}

fn configuration() -> Configuration<LittleEndian, Varint, Limit<CEILING>> {
    config::standard().with_limit::<CEILING>()
}

fn within_cap<M: Message>(len: usize) -> Result<(), CodecError> {
    if len > M::CAP { Err(CodecError::TooLarge { name: M::NAME, len, cap: M::CAP }) } else { Ok(()) }
}

/// Gossip stays small: an announcement names by hash what is large (`security.md` §6).
impl Message for Announcement {
    const CAP: usize = 1 << 10;
    const NAME: &'static str = "announcement";

    fn check(&self) -> Result<(), &'static str> {
        // Shorter periods would flood the mesh, longer ones hide a death for more than half an hour.
        if !(1_000..=660_000).contains(&self.period_ms) {
            return Err("the period is not between 1 s and 660 s");
        }
        if self.width > 64 {
            return Err("the width is above 64");
        }
        if !self.machine.is_valid() {
            return Err("a machine was made at a time that no uid has, or forwards to itself");
        }
        Ok(())
    }
}

/// A question is a few bytes.
impl Message for Question {
    const CAP: usize = 4 << 10;
    const NAME: &'static str = "question";
}

/// A page of the roster, or a description with 1,024 models.
impl Message for Answer {
    const CAP: usize = 4 << 20;
    const NAME: &'static str = "answer";

    fn check(&self) -> Result<(), &'static str> {
        if let Self::LiveTest { finding: LiveFinding::Clock { received_ns, sent_ns }, .. } = self
            && !(0 <= *received_ns && received_ns <= sent_ns)
        {
            return Err("the answer left before the question arrived");
        }
        if let Self::LiveTest { finding: LiveFinding::Neighbours(agents), .. } = self
            && !agents.is_sorted_by(|a, b| a < b)
        {
            return Err("neighbours are not in order, or named twice");
        }
        if let Self::Description(description) = self {
            description.check()?;
        }
        Ok(())
    }
}

/// Bounded by its fields; encoded alone only to be hashed.
impl Message for Evidence {
    const CAP: usize = 64 << 10;
    const NAME: &'static str = "evidence";
}

/// Bounded by its fields; encoded alone only to be hashed.
impl Message for Inventory {
    const CAP: usize = 4 << 20;
    const NAME: &'static str = "inventory";
}

/// Bounded by its fields.
impl Message for Description {
    const CAP: usize = 4 << 20;
    const NAME: &'static str = "description";

    fn check(&self) -> Result<(), &'static str> {
        if self.former.as_ref().is_some_and(|former| former.salt == self.evidence.salt) {
            return Err("the former salt is the present one");
        }
        Ok(())
    }
}

/// A body of 1 MiB and what describes it.
impl Message for ToAgent {
    const CAP: usize = (1 << 20) + (16 << 10);
    const NAME: &'static str = "order to an agent";
}

/// A piece of a result, 64 KiB, and what describes it.
impl Message for FromAgent {
    const CAP: usize = (64 << 10) + (4 << 10);
    const NAME: &'static str = "report of an agent";

    fn check(&self) -> Result<(), &'static str> {
        // Nobody collects the frames of a longer one.
        if let Self::Done(_, outcome) = self
            && usize::try_from(outcome.bytes).map_or(true, |bytes| bytes > MAX_RESULT)
        {
            return Err("the result is above 8 MiB");
        }
        Ok(())
    }
}
