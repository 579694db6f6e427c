//! What a double is before it starts: Ollama's defaults, and what a test wants otherwise.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::control;
use super::devices::Device;
use super::faults::Rules;
use super::model::Model;
use super::server::Inner;
use super::{Double, Settings};

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
    /// How it is called in time lines; its address by default. Two doubles of one name are one install.
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
    pub(crate) fn new() -> Self {
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
        Self { settings, listen, control: None, faults: Vec::new(), marks: false, strict: true }
    }

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
