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
mod at_once;
mod attempt;
mod builder;
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
mod modes;
mod pace;
mod record;
mod routes;
mod run;
mod server;
mod text;
mod witness;
mod work;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use builder::Builder;
pub use devices::{Device, Profile, Span};
pub use faults::{Fault, Mode, Rule};
pub use model::Model;
pub use record::{Outcome, Recorded};
pub use text::DIMENSIONS;
pub use witness::{Noted, Witness, Work};

use attempt::Attempt;
use engine::Want;
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
        Builder::new()
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
