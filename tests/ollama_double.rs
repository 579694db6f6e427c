//! A faithful double of an Ollama install: the eight endpoints that the agent uses, with the shapes, texts, waits
//! and failures of the real one, and a witness of who worked when on which device.
//!
//! **Why HTTP by hand.** A third of the fault modes live below any HTTP library: a reset in the middle, a chunk
//! that announces more than it holds, one byte at a time, lines that end inside a character, a port that refuses
//! and comes back. With axum those would be body errors and socket options reached through three layers, and what
//! leaves would still be the library's choice. `http.rs` is what remains when only these clients must be served:
//! requests with a length, replies whole or chunked, and the bytes of the framing in our hands. A reset is
//! `SO_LINGER` zero before the close.
//!
//! **Time** is tokio's, so a paused clock works, and token times are absolute: they do not drift.
//!
//! **Ends.** A double that is dropped fails the test when a client called what it must never call, or when a
//! fault was given that never applied: a test of a failure that did not happen proves nothing.
//!
//! ```no_run
//! # async fn example() {
//! use tropa_tests::ollama_double::{Device, Double, Profile};
//! let cpu = Device::new("cpu0", Profile::Oversubscribed);
//! let one = Double::builder().model("llama3.2:1b").device(&cpu).fault("no_done:after=5*1").start().await;
//! let two = Double::builder().model("llama3.2:1b").device(&cpu).start().await;
//! // … run the mesh against one.url() and two.url() …
//! assert!(cpu.overlap().is_zero());
//! # }
//! ```

mod answer;
mod ask;
mod attempt;
mod burn;
mod clock;
mod control;
mod devices;
mod embed;
mod engine;
mod faults;
mod http;
mod lines;
mod model;
mod record;
mod routes;
mod server;
mod text;
mod witness;
mod work;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use devices::{Device, Profile, Span};
pub use faults::{Fault, Mode, Rule};
pub use model::Model;
pub use record::{Outcome, Recorded};
pub use text::DIMENSIONS;
pub use witness::{Witness, Work};

use attempt::Attempt;
use engine::Want;
use faults::Rules;
use server::Inner;

/// What a double is, with Ollama's defaults.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    version: String,
    models: Vec<Model>,
    devices: Vec<Device>,
    name: String,
    num_parallel: usize,
    max_queue: usize,
    max_loaded: usize,
    vram: u64,
    keep_alive: Duration,
    load: Duration,
    first: Duration,
    prefill: Duration,
    decode: Duration,
    jitter: u64,
    seed: u64,
    cached_prefix: bool,
    tokens: Option<u64>,
    salt: String,
    echo: bool,
    replies: Vec<(String, String)>,
    burn: usize,
}

/// Describes a double before it starts.
#[derive(Debug, Clone)]
pub struct Builder {
    settings: Settings,
    listen: SocketAddr,
    control: Option<SocketAddr>,
    faults: Vec<String>,
    marks: bool,
    strict: bool,
}

macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident($argument:ident: $kind:ty) $field:ident = $value:expr;)*) => {
        impl Builder {$(
            $(#[$doc])*
            #[must_use]
            pub fn $name(mut self, $argument: $kind) -> Self {
                self.settings.$field = $value;
                self
            }
        )*}
    };
}

settings! {
    /// What `/api/version` says and what shapes follow from it; 0.33.0 by default.
    version(version: &str) version = version.to_owned();
    /// How it is called in time lines; its address by default.
    name(name: &str) name = name.to_owned();
    /// Slots of one loaded model; 1 by default.
    num_parallel(slots: usize) num_parallel = slots.max(1);
    /// Requests that may wait for a load; 512 by default.
    max_queue(requests: usize) max_queue = requests;
    /// Models in memory at once; 3 by default.
    max_loaded(models: usize) max_loaded = models.max(1);
    /// Video memory in bytes; 0, a CPU, by default.
    vram(bytes: u64) vram = bytes;
    /// How long a model stays when the request does not say; 5 minutes by default.
    keep_alive(time: Duration) keep_alive = time;
    /// How long a load takes; 0 by default.
    load_ms(ms: u64) load = Duration::from_millis(ms);
    /// What every prompt costs besides its tokens; 0 by default.
    first_ms(ms: u64) first = Duration::from_millis(ms);
    /// Reading one token of a prompt; 20 by default.
    prefill_us(us: u64) prefill = Duration::from_micros(us);
    /// Making one token; 2000 by default.
    decode_us(us: u64) decode = Duration::from_micros(us);
    /// How far single times vary, in percent up and down; 0 by default, at most 99.
    jitter(percent: u64) jitter = percent;
    /// Decides jitter and the probability of faults; 0 by default.
    seed(seed: u64) seed = seed;
    /// Whether a prompt that begins like the last one is read faster; off by default.
    cached_prefix(on: bool) cached_prefix = on;
    /// The length of every answer that nothing else decides; by default 16 to 63, from the hash.
    tokens(tokens: u64) tokens = Some(tokens);
    /// Makes its texts differ from those of other doubles with the same models.
    salt(salt: &str) salt = salt.to_owned();
    /// Answers with the last message, byte for byte.
    echo(on: bool) echo = on;
    /// Real work in so many threads instead of sleeping; 0, sleeping, by default.
    burn(threads: usize) burn = threads;
}

impl Builder {
    /// Adds a model.
    #[must_use]
    pub fn model(mut self, model: impl Into<Model>) -> Self {
        self.settings.models.push(model.into());
        self
    }

    /// Adds a device that it works on; a name is a device that nobody shares.
    #[must_use]
    pub fn device(mut self, device: impl Into<Device>) -> Self {
        self.settings.devices.push(device.into());
        self
    }

    /// Adds a fault, in the grammar of the module `faults`.
    #[must_use]
    pub fn fault(mut self, rule: &str) -> Self {
        self.faults.push(rule.to_owned());
        self
    }

    /// A prompt that contains `part` is answered with `text`.
    #[must_use]
    pub fn reply(mut self, part: &str, text: &str) -> Self {
        self.settings.replies.push((part.to_owned(), text.to_owned()));
        self
    }

    /// No time for anything: for benchmarks of what stands before the engine.
    #[must_use]
    pub fn instant(self) -> Self {
        self.load_ms(0).first_ms(0).prefill_us(0).decode_us(0).tokens(1)
    }

    /// Reads faults from prompts, written as `[[rule]]`.
    #[must_use]
    pub fn marks(mut self) -> Self {
        self.marks = true;
        self
    }

    /// Dropping it fails nothing: for doubles that live as long as the process, and for those whose faults are
    /// a matter of chance.
    #[must_use]
    pub fn lenient(mut self) -> Self {
        self.strict = false;
        self
    }

    /// Where it listens; a free port of 127.0.0.1 by default.
    #[must_use]
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        self.listen = addr;
        self
    }

    /// Opens a control listener, as the binary does.
    #[must_use]
    pub fn control(mut self, addr: SocketAddr) -> Self {
        self.control = Some(addr);
        self
    }

    /// Starts it on this runtime.
    ///
    /// # Panics
    ///
    /// When a fault cannot be read or the address cannot be had: a test cannot go on then.
    pub async fn start(self) -> Double {
        match self.try_start().await {
            Ok(double) => double,
            Err(error) => panic!("start an Ollama double: {error}"),
        }
    }

    /// Starts it on this runtime.
    ///
    /// # Errors
    ///
    /// Says which fault cannot be read, or why the address cannot be had.
    #[expect(
        clippy::unused_async,
        reason = "it needs a runtime, and an async function cannot be called without"
    )]
    pub async fn try_start(self) -> io::Result<Double> {
        let mut rules = Rules::new(self.settings.seed, self.marks);
        for fault in &self.faults {
            rules.add(fault.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?);
        }
        let inner = Inner::start(self.listen, self.settings, rules)?;
        let control = self.control.map(|addr| control::start(&inner, addr)).transpose()?;
        Ok(Double { inner, control, strict: self.strict })
    }
}

/// A running double. It ends when it is dropped.
#[derive(Debug)]
pub struct Double {
    inner: Arc<Inner>,
    control: Option<SocketAddr>,
    strict: bool,
}

impl Double {
    /// A double with Ollama's defaults, no model and no device.
    pub fn builder() -> Builder {
        let settings = Settings {
            version: "0.33.0".to_owned(),
            models: Vec::new(),
            devices: Vec::new(),
            name: String::new(),
            num_parallel: 1,
            max_queue: 512,
            max_loaded: 3,
            vram: 0,
            keep_alive: Duration::from_secs(300),
            load: Duration::ZERO,
            first: Duration::ZERO,
            prefill: Duration::from_micros(20),
            decode: Duration::from_micros(2000),
            jitter: 0,
            seed: 0,
            cached_prefix: false,
            tokens: None,
            salt: String::new(),
            echo: false,
            replies: Vec::new(),
            burn: 0,
        };
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Builder { settings, listen, control: None, faults: Vec::new(), marks: false, strict: true }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.inner.addr
    }

    /// Where it listens, as `http://address:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.inner.addr)
    }

    /// The control listener, if it has one.
    pub fn control_addr(&self) -> Option<SocketAddr> {
        self.control
    }

    /// Its name in time lines.
    pub fn name(&self) -> &str {
        &self.inner.engine.settings.name
    }

    /// Adds a fault while it runs.
    ///
    /// # Panics
    ///
    /// When the fault cannot be read.
    pub fn inject(&self, rule: &str) {
        match rule.parse() {
            Ok(rule) => self.inner.rules().add(rule),
            Err(error) => panic!("{error}"),
        }
    }

    /// Removes all faults. One that never applied still fails the test.
    pub fn clear(&self) {
        self.inner.rules().clear();
    }

    /// Faults that never applied.
    pub fn unused_faults(&self) -> Vec<String> {
        self.inner.rules().unused()
    }

    /// All requests, oldest first; the oldest are forgotten beyond 16,384.
    pub fn requests(&self) -> Vec<Recorded> {
        self.inner.record.requests()
    }

    /// Work on its devices, of all installs that share them in this process, by start.
    pub fn timeline(&self) -> Vec<Span> {
        let devices = &self.inner.engine.settings.devices;
        let mut spans: Vec<Span> = devices.iter().flat_map(Device::timeline).collect();
        spans.sort_by_key(|span| span.start);
        spans
    }

    /// How long at least two different installs worked at once on this device of its; must be zero.
    ///
    /// # Panics
    ///
    /// When it has no such device: a witness that looks elsewhere proves nothing.
    pub fn overlap(&self, device: &str) -> Duration {
        let mut devices = self.inner.engine.settings.devices.iter();
        match devices.find(|known| known.name() == device) {
            Some(known) => known.overlap(),
            None => panic!("the double {} has no device `{device}`", self.name()),
        }
    }

    /// Chats, generations and embeddings that run now.
    pub fn in_flight(&self) -> usize {
        self.inner.record.in_flight()
    }

    /// The most of them that ever ran at once.
    pub fn max_in_flight(&self) -> usize {
        self.inner.record.max_in_flight()
    }

    /// Completed loads, reloads included.
    pub fn loads(&self) -> u64 {
        self.inner.engine.loads()
    }

    /// Loads that replaced the same weights with other options.
    pub fn reloads(&self) -> u64 {
        self.inner.engine.reloads()
    }

    /// Connections that were accepted.
    pub fn connections(&self) -> u64 {
        self.inner.record.connections.load(Ordering::Relaxed)
    }

    /// Calls that no client of ours may make; must be empty.
    pub fn forbidden(&self) -> Vec<String> {
        self.inner.record.forbidden()
    }

    /// Closes all connections now, refuses new ones for this long, and comes back with nothing loaded.
    pub fn restart(&self, pause: Duration) {
        self.inner.restart(pause);
    }

    /// Accepts nothing more, lets running requests end, and returns when all have.
    pub async fn stop(&self) {
        self.inner.stopping.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Ends at once, as a killed process: connections are reset and the port refuses.
    pub fn kill(&self) {
        self.inner.killed.cancel();
    }

    /// A piece of its work without HTTP: reads a prompt of so many tokens and makes so many. For tests of time
    /// itself, where sockets and a paused clock do not go together.
    pub async fn work(&self, prompt: u64, tokens: u64) {
        let settings = &self.inner.engine.settings;
        let model = settings.models.first().cloned().unwrap_or_else(|| Model::new("work"));
        let (context, keep_alive) = (model.context, settings.keep_alive);
        let want = Want { model, options: String::new(), context, keep_alive };
        // Its queue has no other users than the test.
        let Ok(mut attempt) = Attempt::begin(&self.inner.engine, &want).await else { return };
        attempt.read(settings.prefill.saturating_mul(u32::try_from(prompt).unwrap_or(u32::MAX))).await;
        for _ in 0..tokens {
            attempt.token().await;
        }
        attempt.finish();
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.inner.killed.cancel();
        if !self.strict || std::thread::panicking() {
            return;
        }
        let (forbidden, unused) = (self.forbidden(), self.unused_faults());
        assert!(
            forbidden.is_empty(),
            "the double {} was called where nobody may: {forbidden:?}",
            self.name()
        );
        assert!(unused.is_empty(), "the double {} has faults that never applied: {unused:?}", self.name());
    }
}
