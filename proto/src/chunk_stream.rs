//! Work streams: one substream per attempt, on which a coordinator and an agent exchange framed messages.
//!
//! A frame is a length of four bytes, most significant first, and the encoded message. The length is checked
//! against the cap of the message before anything is reserved. Both directions stay open until the stream is
//! dropped: a stream is never half closed, since yamux would then not tell the agent that its coordinator went
//! away (`libp2p.md` §4). The end of a stream says only that the other side is gone; what cancels is a message.
//!
//! Receiving and sending may both be cancelled (`select!`) without harm: a frame that is read or written in part
//! is kept, and the next call goes on with it.

pub(crate) mod behaviour;

use std::{
    fmt,
    future::{Future as _, poll_fn},
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Sleep, sleep, timeout};

use crate::{
    codec::{self, CodecError, Message},
    id::AgentId,
    mesh::Complaints,
    message::{FromAgent, Hello, Role, ToAgent},
};

/// How long a write may take until the reader counts as stuck; its window is 256 KiB, so this is not the
/// network's delay (`libp2p.md` §4).
pub const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// How long a frame may take from its first byte to its last (`security.md` §6).
pub const FRAME_LIMIT: Duration = Duration::from_secs(30);

/// How long the other side may take for its `Hello`: strangers must not hold a place (`reliability.md` §4).
pub const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// Bytes of a `Hello`; less than any other first frame could need (`security.md` §6).
pub const HELLO_CAP: usize = 4 << 10;

/// How much is reserved beyond what has arrived: a declared length alone costs no more than this.
const STEP: usize = 64 << 10;

/// Bytes of the length in front of a frame.
const HEADER: usize = 4;

/// Both directions of one work stream. Dropping it tells the other side at once.
#[derive(Debug)]
pub struct WorkStream {
    reader: WorkReader,
    writer: WorkWriter,
}

/// The direction in which frames arrive.
pub struct WorkReader {
    from: Pin<Box<dyn AsyncRead + Send>>,
    /// The frame so far, its length in front.
    frame: Vec<u8>,
    /// How much of `frame` has arrived.
    have: usize,
    /// Runs from the first byte of a frame.
    limit: Option<Pin<Box<Sleep>>>,
    ends: Ends,
}

/// The direction in which frames leave.
pub struct WorkWriter {
    to: Pin<Box<dyn AsyncWrite + Send>>,
    /// The frame that is being written.
    frame: Vec<u8>,
    /// How much of `frame` has left.
    sent: usize,
    stuck: bool,
    ends: Ends,
}

/// What a stream knows of its ends, and the place that it holds until both halves are dropped.
#[derive(Clone, Debug)]
struct Ends {
    peer: AgentId,
    at: Option<IpAddr>,
    _place: Place,
    /// Who hears that the other side broke the rules.
    complaints: Complaints,
}

/// A place among the streams of one peer, given back when the last clone is dropped: a permit of a stream that was
/// opened here, one more reference to a counter of a stream that the peer opened.
pub(crate) type Place = Arc<dyn fmt::Debug + Send + Sync>;

/// Says why a work stream cannot go on. After any of these it is of no use and should be dropped.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// A frame is not what may come here, or what may be sent.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Reading failed.
    #[error("reading from {peer:?} failed")]
    Read {
        /// The other side.
        peer: AgentId,
        /// Why.
        source: io::Error,
    },
    /// Writing failed: the other side is gone.
    #[error("writing to {peer:?} failed")]
    Write {
        /// The other side.
        peer: AgentId,
        /// Why.
        source: io::Error,
    },
    /// The stream ended within a frame.
    #[error("the stream from {0:?} ended within a frame")]
    Cut(AgentId),
    /// A frame took longer than [`FRAME_LIMIT`] to arrive.
    #[error("a frame from {0:?} did not arrive in time")]
    Slow(AgentId),
    /// A frame took longer than [`WRITE_LIMIT`] to leave.
    #[error("{0:?} does not read")]
    Stuck(AgentId),
    /// No `Hello` came within [`HELLO_LIMIT`].
    #[error("{0:?} did not say hello in time")]
    NoHello(AgentId),
    /// The first frame was another one, or from one that has no business here.
    #[error("{0:?} did not begin with the hello of its role")]
    NotHello(AgentId),
    /// The other side went away before its `Hello`.
    #[error("{0:?} is gone")]
    Gone(AgentId),
}

impl WorkStream {
    pub(crate) fn new<S>(
        peer: AgentId,
        at: Option<IpAddr>,
        stream: S,
        place: Place,
        complaints: Complaints,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (from, to) = stream.split();
        let ends = Ends { peer, at, _place: place, complaints };
        Self {
            reader: WorkReader {
                from: Box::pin(from),
                frame: Vec::new(),
                have: 0,
                limit: None,
                ends: ends.clone(),
            },
            writer: WorkWriter { to: Box::pin(to), frame: Vec::new(), sent: 0, stuck: false, ends },
        }
    }

    /// Names the other side, as its key has proved it.
    #[must_use]
    pub fn peer(&self) -> AgentId {
        self.reader.ends.peer
    }

    /// The address from which the other side has opened it; `None` where it was opened here, or its connection is gone.
    #[must_use]
    pub fn opened_from(&self) -> Option<IpAddr> {
        self.reader.ends.at
    }

    /// Sends one message, as [`WorkWriter::send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send<M: Message>(&mut self, message: &M) -> Result<(), WorkError> {
        self.writer.send(message).await
    }

    /// Receives one message, as [`WorkReader::recv`].
    ///
    /// # Errors
    /// As there.
    pub async fn recv<M: Message>(&mut self) -> Result<Option<M>, WorkError> {
        self.reader.recv().await
    }

    /// Gives the two directions to two owners. The stream lives until both are dropped.
    #[must_use]
    pub fn split(self) -> (WorkReader, WorkWriter) {
        (self.reader, self.writer)
    }
}

impl WorkReader {
    /// Names the other side.
    #[must_use]
    pub fn peer(&self) -> AgentId {
        self.ends.peer
    }

    /// Receives one message; `None`: the other side is gone, which says nothing about what it had asked for.
    ///
    /// May be cancelled: what has arrived of a frame is kept for the next call.
    ///
    /// # Errors
    /// When a frame is too large, which is seen before it is read, does not decode, ends early, or takes longer
    /// than [`FRAME_LIMIT`].
    pub async fn recv<M: Message>(&mut self) -> Result<Option<M>, WorkError> {
        self.recv_within(M::CAP).await
    }

    /// Receives the first frame of an agent, of which no more is read than a `Hello` may have.
    ///
    /// # Errors
    /// As [`WorkReader::recv`], and when the agent does not say hello, as an agent, within [`HELLO_LIMIT`].
    pub async fn hello_of_agent(&mut self) -> Result<Hello, WorkError> {
        let peer = self.ends.peer;
        let first = timeout(HELLO_LIMIT, self.recv_within::<FromAgent>(HELLO_CAP)).await;
        match first.map_err(|_elapsed| WorkError::NoHello(peer))??.ok_or(WorkError::Gone(peer))? {
            FromAgent::Hello(hello) if hello.role == Role::Agent => Ok(hello),
            FromAgent::Hello(_)
            | FromAgent::Accepted(..)
            | FromAgent::Refused(..)
            | FromAgent::Tokens { .. }
            | FromAgent::Done(..)
            | FromAgent::Body(_)
            | FromAgent::Failed(..)
            | FromAgent::Beat(_)
            | FromAgent::Attached(_) => Err(WorkError::NotHello(peer)),
        }
    }

    async fn recv_within<M: Message>(&mut self, cap: usize) -> Result<Option<M>, WorkError> {
        let received = self.read_frame(cap).await;
        // Another version of the protocol is no ill will.
        if let Err(WorkError::Codec(error)) = &received
            && !matches!(error, CodecError::Version { .. })
        {
            self.ends.complaints.about(self.ends.peer);
        }
        received
    }

    async fn read_frame<M: Message>(&mut self, cap: usize) -> Result<Option<M>, WorkError> {
        let peer = self.ends.peer;
        loop {
            let declared = self.declared();
            if let Some(len) = declared {
                if len > cap {
                    return Err(CodecError::TooLarge { name: M::NAME, len, cap }.into());
                }
                if self.have == HEADER + len {
                    self.have = 0;
                    self.limit = None;
                    let frame = std::mem::take(&mut self.frame);
                    return Ok(Some(codec::decode(&frame[HEADER..])?));
                }
            }
            let whole = HEADER + declared.unwrap_or(0);
            self.frame.resize(whole.min(self.have + STEP), 0);
            match self.read_some().await {
                Ok(0) if self.have == 0 => return Ok(None),
                Ok(0) => return Err(WorkError::Cut(peer)),
                Ok(_) => {}
                Err(source) if source.kind() == io::ErrorKind::TimedOut => return Err(WorkError::Slow(peer)),
                Err(source) if self.have == 0 && means_gone(&source) => return Ok(None),
                Err(source) => return Err(WorkError::Read { peer, source }),
            }
        }
    }

    fn declared(&self) -> Option<usize> {
        let header = self.frame.first_chunk::<HEADER>().filter(|_| self.have >= HEADER)?;
        // Where a length does not fit it is above every cap.
        Some(usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX))
    }

    /// Reads into the free end of `frame`. What it returns is already accounted for when it returns.
    async fn read_some(&mut self) -> io::Result<usize> {
        poll_fn(|context| {
            let late = self.limit.as_mut().is_some_and(|limit| limit.as_mut().poll(context).is_ready());
            if late {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let result = ready!(self.from.as_mut().poll_read(context, &mut self.frame[self.have..]));
            if let Ok(read @ 1..) = result {
                self.have += read;
                self.limit.get_or_insert_with(|| Box::pin(sleep(FRAME_LIMIT)));
            }
            Poll::Ready(result)
        })
        .await
    }
}

impl WorkWriter {
    /// Names the other side.
    #[must_use]
    pub fn peer(&self) -> AgentId {
        self.ends.peer
    }

    /// Sends one message and returns when it has left this process, which says nothing about its arrival.
    ///
    /// When cancelled, the message is not sent, or is finished before the next one.
    ///
    /// # Errors
    /// When the message breaks its own rules (and nothing was sent), the other side is gone, or it does not read
    /// for [`WRITE_LIMIT`].
    pub async fn send<M: Message>(&mut self, message: &M) -> Result<(), WorkError> {
        let peer = self.ends.peer;
        let body = codec::encode(message)?;
        if self.stuck {
            return Err(WorkError::Stuck(peer));
        }
        let written = timeout(WRITE_LIMIT, async {
            self.finish_frame().await?;
            // Below every cap, so below 4 GiB.
            let len = u32::try_from(body.len()).map_err(io::Error::other)?;
            self.frame.extend_from_slice(&len.to_be_bytes());
            self.frame.extend_from_slice(&body);
            self.finish_frame().await
        })
        .await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(WorkError::Write { peer, source }),
            Err(_elapsed) => {
                self.stuck = true;
                Err(WorkError::Stuck(peer))
            }
        }
    }

    /// Sends bytes as they are, whatever rule they break. For the tests' peer that breaks the rules.
    ///
    /// # Errors
    /// When the other side is gone.
    #[cfg(feature = "planted")]
    pub async fn send_raw(&mut self, bytes: &[u8]) -> Result<(), WorkError> {
        self.frame.extend_from_slice(bytes);
        let peer = self.ends.peer;
        self.finish_frame().await.map_err(|source| WorkError::Write { peer, source })
    }

    async fn finish_frame(&mut self) -> io::Result<()> {
        while self.sent < self.frame.len() {
            match self.to.write(&self.frame[self.sent..]).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => self.sent += written,
            }
        }
        self.frame.clear();
        self.sent = 0;
        self.to.flush().await
    }
}

/// Exchanges hellos as the coordinator, who opened the stream.
///
/// # Errors
/// When the agent does not say hello, as an agent, within [`HELLO_LIMIT`].
pub async fn greet_agent(stream: &mut WorkStream, mine: Hello) -> Result<Hello, WorkError> {
    let peer = stream.peer();
    let both = async {
        stream.writer.send(&ToAgent::Hello(mine)).await?;
        stream.reader.hello_of_agent().await
    };
    timeout(HELLO_LIMIT, both).await.unwrap_or(Err(WorkError::NoHello(peer)))
}

/// Exchanges hellos as the agent, to whom the stream came.
///
/// # Errors
/// When the coordinator does not say hello, as a coordinator, within [`HELLO_LIMIT`].
pub async fn greet_coordinator(stream: &mut WorkStream, mine: Hello) -> Result<Hello, WorkError> {
    let peer = stream.peer();
    let both = async {
        stream.writer.send(&FromAgent::Hello(mine)).await?;
        stream.reader.recv_within(HELLO_CAP).await?.ok_or(WorkError::Gone(peer))
    };
    match timeout(HELLO_LIMIT, both).await.unwrap_or(Err(WorkError::NoHello(peer)))? {
        ToAgent::Hello(hello) if hello.role == Role::Coordinator => Ok(hello),
        ToAgent::Hello(_)
        | ToAgent::Run(_)
        | ToAgent::Cancel(_)
        | ToAgent::TakeBack(_)
        | ToAgent::Ack(_)
        | ToAgent::Fetch { .. }
        | ToAgent::Renew(_)
        | ToAgent::Reattach(_) => Err(WorkError::NotHello(peer)),
    }
}

fn means_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::NotConnected
    )
}

impl fmt::Debug for WorkReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkReader").field("peer", &self.ends.peer).field("have", &self.have).finish()
    }
}

impl fmt::Debug for WorkWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = self.frame.len() - self.sent;
        f.debug_struct("WorkWriter").field("peer", &self.ends.peer).field("left", &left).finish()
    }
}

#[cfg(test)]
mod tests;
