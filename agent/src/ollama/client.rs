//! The only file that names reqwest: the eight requests that may be sent, and what can go wrong under HTTP.
//!
//! [`Call`] is the allow-list (`ollama-api.md` §2.1): nothing else of Ollama's API can be requested, because
//! there is no way to write another path. One connection per request; dropping it is the cancel. There is no time
//! limit in the client, since headers come only after queueing, loading and reading the prompt; each caller
//! brings its own.

use std::{error::Error as _, io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use reqwest::{header, redirect::Policy};
use tokio::{sync::Notify, time::timeout};

use super::url::OllamaUrl;

/// Bytes of an error body that are read; longer ones are cut (`ollama-api.md` §7).
pub(super) const MAX_ERROR: usize = 64 << 10;

/// Bytes of a control reply; an install with a thousand models needs less (`ollama-api.md` §7).
const MAX_CONTROL: usize = 4 << 20;

/// The limit for a connection to an install on the same machine (`ollama-api.md` §7).
const CONNECT: Duration = Duration::from_secs(2);

/// What may be asked of an install.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// `GET /api/version`.
    Version,
    /// `GET /api/tags`.
    Tags,
    /// `GET /api/ps`.
    Ps,
    /// `GET /api/status`.
    Status,
    /// `POST /api/show`.
    Show,
    /// `POST /api/chat`.
    Chat,
    /// `POST /api/generate`.
    Generate,
    /// `POST /api/embed`.
    Embed,
}

impl Call {
    /// Gives the path on the install.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Version => "/api/version",
            Self::Tags => "/api/tags",
            Self::Ps => "/api/ps",
            Self::Status => "/api/status",
            Self::Show => "/api/show",
            Self::Chat => "/api/chat",
            Self::Generate => "/api/generate",
            Self::Embed => "/api/embed",
        }
    }

    /// Gives the time limit of a control call; those that do work have limits per attempt, and this is for their
    /// empty forms.
    fn limit(self) -> Duration {
        match self {
            Self::Version | Self::Ps | Self::Status => Duration::from_secs(2),
            Self::Tags | Self::Show | Self::Chat | Self::Generate | Self::Embed => Duration::from_secs(5),
        }
    }
}

/// What went wrong under HTTP.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// No connection: refused, or none within two seconds.
    #[error("connecting failed: {0}")]
    Refused(String),
    /// The connection broke, or ended before any byte of an answer.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// The answer ended inside its own framing.
    #[error("the answer was cut off: {0}")]
    Cut(String),
    /// What came is not HTTP.
    #[error("the answer is not HTTP: {0}")]
    NotHttp(String),
    /// The control call had no answer in its time.
    #[error("no answer in time")]
    TimedOut,
    /// The control reply is above its cap.
    #[error("the answer is too large")]
    TooLarge,
}

/// The content type of an answer, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `application/json` or `application/x-ndjson`.
    Json,
    /// `text/plain`.
    Plain,
    /// Any other.
    Other,
    /// None was given.
    Absent,
}

/// A whole answer to a control call.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) kind: Kind,
    pub(super) body: Bytes,
}

/// An answer whose headers have come.
#[derive(Debug)]
pub(super) struct Answer {
    response: reqwest::Response,
}

/// A client of one install.
#[derive(Clone, Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    base: OllamaUrl,
    /// Told of every connection that is refused.
    refusals: Arc<Notify>,
}

/// Says that no HTTP client could be made.
#[derive(Debug, thiserror::Error)]
#[error("making the HTTP client failed")]
pub struct ClientError(#[source] reqwest::Error);

impl Client {
    pub(super) fn new(base: OllamaUrl) -> Result<Self, ClientError> {
        let http = reqwest::Client::builder()
            // A proxy from the environment would carry prompts away.
            .no_proxy()
            // A redirect is `not_ollama`.
            .redirect(Policy::none())
            // Attempts are the coordinator's to count.
            .retry(reqwest::retry::never())
            .referer(false)
            .http1_only()
            .connect_timeout(CONNECT)
            .pool_max_idle_per_host(0)
            .build()
            .map_err(ClientError)?;
        Ok(Self { http, base, refusals: Arc::default() })
    }

    pub(super) fn base(&self) -> &OllamaUrl {
        &self.base
    }

    /// Sends a request and waits for the headers, without a limit.
    pub(super) async fn open(&self, call: Call, body: Option<Bytes>) -> Result<Answer, Fault> {
        let url = format!("{}{}", self.base, call.path());
        let request = match body {
            None => self.http.get(url),
            Some(body) => self.http.post(url).header(header::CONTENT_TYPE, "application/json").body(body),
        };
        match request.send().await {
            Ok(response) => Ok(Answer { response }),
            Err(error) => {
                let fault = fault(&error, Phase::Headers);
                if matches!(fault, Fault::Refused(_)) {
                    self.refusals.notify_waiters();
                }
                Err(fault)
            }
        }
    }

    /// Waits until a connection is refused, from the first poll on.
    pub(super) async fn refused(&self) {
        self.refusals.notified().await;
    }

    /// Sends a control request and reads the whole answer within the limit and the cap of its call.
    pub(super) async fn control(&self, call: Call, body: Option<Bytes>) -> Result<Reply, Fault> {
        let exchange = async {
            let answer = self.open(call, body).await?;
            let (status, kind) = (answer.status(), answer.kind());
            match answer.read(MAX_CONTROL).await? {
                (body, false) => Ok(Reply { status, kind, body }),
                (_, true) => Err(Fault::TooLarge),
            }
        };
        timeout(call.limit(), exchange).await.unwrap_or(Err(Fault::TimedOut))
    }

    /// Says whether the install's port takes no connection at this moment.
    pub(super) async fn refuses(&self) -> bool {
        let (host, port) = self.base.host_and_port();
        !matches!(timeout(CONNECT, tokio::net::TcpStream::connect((host.as_str(), port))).await, Ok(Ok(_)))
    }
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(super) fn kind(&self) -> Kind {
        let Some(value) = self.response.headers().get(header::CONTENT_TYPE) else { return Kind::Absent };
        let essence = value.to_str().unwrap_or("").split(';').next().unwrap_or("").trim();
        if essence.eq_ignore_ascii_case("application/json")
            || essence.eq_ignore_ascii_case("application/x-ndjson")
        {
            Kind::Json
        } else if essence.eq_ignore_ascii_case("text/plain") {
            Kind::Plain
        } else {
            Kind::Other
        }
    }

    /// Waits for the next piece of the body; `None` is a clean end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        self.response.chunk().await.map_err(|error| fault(&error, Phase::Body))
    }

    /// Reads up to `cap` bytes of the body and says whether there were more.
    pub(super) async fn read(mut self, cap: usize) -> Result<(Bytes, bool), Fault> {
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            let room = cap - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() > room {
                return Ok((body.freeze(), true));
            }
        }
        Ok((body.freeze(), false))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Headers,
    Body,
}

/// Sorts an error of the HTTP stack: by kind where it has one, else by where it happened.
fn fault(error: &reqwest::Error, phase: Phase) -> Fault {
    let mut innermost = error.to_string();
    let mut kind = None;
    let mut source = error.source();
    while let Some(inner) = source {
        innermost = inner.to_string();
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            kind = Some(io.kind());
        }
        source = inner.source();
    }
    if error.is_connect() || (phase == Phase::Headers && error.is_timeout()) {
        return Fault::Refused(innermost);
    }
    match (phase, kind) {
        (
            _,
            Some(
                io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe,
            ),
        ) => Fault::Lost(innermost),
        (Phase::Body, _) => Fault::Cut(innermost),
        // hyper has no public kind for what it could not parse; its own words begin so.
        (Phase::Headers, None) if innermost.starts_with("invalid HTTP") || innermost.contains("pars") => {
            Fault::NotHttp(innermost)
        }
        (Phase::Headers, _) => Fault::Lost(innermost),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::raw_server::{Play, Server},
        *,
    };

    /// A client of a server that answers everything with so many bytes.
    async fn answered(bytes: usize) -> (Server, Client) {
        let head =
            format!("HTTP/1.1 500 x\r\nContent-Type: application/json\r\nContent-Length: {bytes}\r\n\r\n");
        let answer = [head.into_bytes(), vec![b' '; bytes]].concat();
        let server = Server::start(move |_, _| vec![Play::Bytes(answer.clone())]).await;
        let client = Client::new(server.url()).unwrap();
        (server, client)
    }

    #[tokio::test]
    async fn a_connection_that_is_refused_is_told_to_whoever_waits_for_it() {
        let (_server, client) = answered(1).await;
        tokio::select! {
            biased;
            () = client.refused() => panic!("nothing was refused"),
            answer = client.control(Call::Version, None) => assert!(answer.is_ok()),
        }
        let nobody = Client::new(OllamaUrl::parse("http://127.0.0.1:1", false).unwrap()).unwrap();
        let ((), answer) = tokio::join!(biased; nobody.refused(), nobody.control(Call::Version, None));
        assert!(matches!(answer, Err(Fault::Refused(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn an_error_body_and_a_control_reply_are_read_to_their_caps_and_not_one_byte_further() {
        for (bytes, fits) in [(MAX_CONTROL - 1, true), (MAX_CONTROL, true), (MAX_CONTROL + 1, false)] {
            let (_server, client) = answered(bytes).await;
            match client.control(Call::Tags, None).await {
                Ok(reply) => assert!(fits && reply.body.len() == bytes, "{bytes}"),
                Err(fault) => assert!(!fits && fault == Fault::TooLarge, "{bytes}: {fault:?}"),
            }
        }
        for (bytes, is_cut) in [(MAX_ERROR - 1, false), (MAX_ERROR, false), (MAX_ERROR + 1, true)] {
            let (_server, client) = answered(bytes).await;
            let answer = client.open(Call::Tags, None).await.unwrap();
            let (body, cut) = answer.read(MAX_ERROR).await.unwrap();
            assert_eq!((body.len(), cut), (bytes.min(MAX_ERROR), is_cut));
        }
    }
}
