//! What stands behind an announcement: the hardware's evidence and the install's inventory, kept up to date.
//!
//! Taking stock costs the engine's machine a little, so it happens when the install begins or ceases to work, and
//! else only while it is idle: an agent must cost next to nothing beside an engine that works.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tropa_proto::{
    bounded::Text,
    evidence::{Evidence, Facts, Key, Salt},
    message::{Description, EngineState, Inventory},
    permit::Shut,
    roster::Hashes,
    system,
};

use crate::{
    Config,
    clock::now,
    evidence::{self, BootClock, LaneSpec, Options, Privileged, Root, Shown, VramWatch},
    execute::Load,
    occupation::{Occupation, all_loaded},
    ollama::{ClientError, Ollama},
    runtime_dir::RuntimePlaces,
};

/// While idle: soon enough that a model pulled by hand is found within a coffee.
const EVERY: Duration = Duration::from_secs(30);

/// While the engine does not answer: its return is waited for.
const EVERY_WHILE_DOWN: Duration = Duration::from_secs(2);

/// After the install began or ceased to work: by then a load shows in `/api/ps`.
const AFTER_CHANGE: Duration = Duration::from_secs(1);

/// While a model is being loaded: until it shows in `/api/ps`, nobody else gets the devices that it may not need.
const EVERY_WHILE_LOADING: Duration = Duration::from_secs(5);

/// The evidence of a machine without GPUs changes when hardware is plugged; with GPUs the lane depends on what is
/// loaded, so it is read with every stock.
const EVIDENCE_EVERY: Duration = Duration::from_secs(300);

/// Facts, evidence and inventory of one install.
#[derive(Debug)]
pub(crate) struct Stock {
    reading: Reading,
    ollama: Arc<Ollama>,
    facts: Facts,
    description: Description,
    hashes: Hashes,
    due: Instant,
    evidence_due: Instant,
    /// Why nothing is taken at present.
    shut: Option<Shut>,
    work: Load,
    /// Stock was asked for since the last was begun.
    asked: bool,
    /// How many loads had begun when what is known was looked at.
    loads_seen: u64,
    taking: Option<Taking>,
}

/// A stock that is being taken.
#[derive(Debug)]
struct Taking {
    /// How many loads had begun when it was.
    loads: u64,
    read: JoinHandle<(Option<Facts>, Inventory)>,
}

/// What it takes to read the evidence.
#[derive(Clone, Debug)]
struct Reading {
    root: Root,
    key: Key,
    /// Of the mesh's former salt, where that is still published under.
    former: Option<Key>,
    lane: Option<LaneSpec>,
    port: Option<u16>,
    log: Option<String>,
    machine: Option<String>,
    /// What root has read for us, if it has.
    privileged: Vec<PathBuf>,
    /// Of all readings of this install.
    watch: Arc<Mutex<VramWatch>>,
}

impl Stock {
    /// Reads the hardware and takes stock of the install for the first time.
    pub(crate) async fn take(config: &Config, ollama: Arc<Ollama>) -> Self {
        let reading = Reading::new(config);
        let inventory = ollama.inventory().await;
        let facts = reading.clone().read(&inventory, false).await;
        let (evidence, former) = reading.keyed(&facts);
        let description = Description { evidence, former, inventory, denied: Text::default() };
        let mut stock = Self {
            hashes: description.hashes(),
            reading,
            ollama,
            facts,
            description,
            due: now() + EVERY,
            evidence_due: now() + EVIDENCE_EVERY,
            shut: None,
            work: Load::default(),
            asked: false,
            loads_seen: 0,
            taking: None,
        };
        stock.schedule();
        stock
    }

    /// What is published.
    pub(crate) fn description(&self) -> &Description {
        &self.description
    }

    /// What was read; never leaves the machine.
    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The devices that attempts occupy as the loaded models lie in memory now.
    pub(crate) fn occupation(&self) -> Occupation {
        let mut occupation = Occupation::new(&self.facts, &self.description.inventory);
        occupation.as_of = self.loads_seen;
        occupation
    }

    /// The hashes of evidence and inventory, for announcements.
    pub(crate) fn hashes(&self) -> Hashes {
        self.hashes
    }

    /// Says in what is published why the install takes nothing at present; says whether that is news.
    pub(crate) fn shut(&mut self, why: Option<Shut>) -> bool {
        self.shut = why;
        self.publish()
    }

    /// Takes in what the install does. Stock is taken soon where it has begun or ceased to work, or begun to load a
    /// model.
    pub(crate) fn watch(&mut self, work: Load) {
        if (work.running > 0, work.loads) != (self.work.running > 0, self.work.loads) {
            self.due = now() + AFTER_CHANGE;
            self.asked = true;
        }
        self.work = work;
    }

    /// Takes in that the process of the engine is gone, or that another one answers. While it is gone, attempts wait for
    /// it a while: nothing is said of it before they give up.
    pub(crate) fn engine_changed(&mut self, up: bool) {
        if up || self.work.running == 0 {
            self.due = now();
            self.asked = true;
        }
    }

    /// Waits for the next stock and says whether anything of what is published has changed. May be dropped at any time.
    pub(crate) async fn taken(&mut self) -> bool {
        if self.taking.is_none() {
            sleep_until(self.due).await;
            self.asked = false;
            self.taking = Some(Taking { loads: self.work.loads, read: self.begin() });
        }
        let Some(Taking { loads, read }) = &mut self.taking else { return false };
        let loads = *loads;
        let taken = read.await;
        self.taking = None;
        let Ok((read, inventory)) = taken else {
            // A reader panicked, which is a bug of ours that was printed; what is known stays.
            self.schedule();
            return false;
        };
        self.loads_seen = loads;
        if let Some(facts) = read {
            (self.description.evidence, self.description.former) = self.reading.keyed(&facts);
            self.facts = facts;
            self.evidence_due = now() + EVIDENCE_EVERY;
        }
        self.description.inventory = inventory;
        self.schedule();
        self.publish()
    }

    /// Describes what is known now; says whether anything in it has changed.
    fn publish(&mut self) -> bool {
        self.description.inventory.permit.shut.clone_from(&self.shut);
        let hashes = self.description.hashes();
        std::mem::replace(&mut self.hashes, hashes) != hashes
    }

    fn begin(&self) -> JoinHandle<(Option<Facts>, Inventory)> {
        let (ollama, reading) = (Arc::clone(&self.ollama), self.reading.clone());
        let busy = self.work.running > 0;
        let evidence = !self.facts.gpus.is_empty() || self.evidence_due <= now();
        tokio::spawn(async move {
            let inventory = ollama.inventory().await;
            let read = if evidence { Some(reading.read(&inventory, busy).await) } else { None };
            (read, inventory)
        })
    }

    fn schedule(&mut self) {
        if self.asked {
            return;
        }
        let down = matches!(self.description.inventory.engine, EngineState::Down(_));
        self.due = now()
            + match (down, self.work.running > 0) {
                (true, _) => EVERY_WHILE_DOWN,
                (false, true) if self.work.loading => EVERY_WHILE_LOADING,
                // Until the install ceases to work.
                (false, true) => EVIDENCE_EVERY,
                (false, false) => EVERY,
            };
    }
}

impl Reading {
    fn new(config: &Config) -> Self {
        let (_, port) = config.ollama.host_and_port();
        Self {
            root: config.root.clone(),
            key: Key::new(&salt(config)),
            former: config.secret.as_ref().and_then(|secret| Some(Key::new(&Salt(*secret.former_salt()?)))),
            lane: config.lane.clone(),
            // A port of another host is not one of this host's processes.
            port: config.ollama.is_loopback().then_some(port),
            log: config.log.clone(),
            machine: config.machine.clone(),
            privileged: config.runtime.as_ref().map_or_else(Vec::new, RuntimePlaces::privileged),
            watch: Arc::default(),
        }
    }

    /// What may be published of the facts: under the salt of the mesh, and under the former one.
    fn keyed(&self, facts: &Facts) -> (Evidence, Option<Box<Evidence>>) {
        (facts.keyed(&self.key), self.former.as_ref().map(|former| Box::new(facts.keyed(former))))
    }

    fn options(&self, inventory: &Inventory, busy: bool) -> Options {
        let on_gpu = inventory
            .models
            .iter()
            .filter_map(|model| Some((model.name.to_string(), model.loaded?.size_vram)));
        Options {
            lane: self.lane.clone(),
            port: self.port,
            log: self.log.clone(),
            loaded: all_loaded(inventory),
            // What another host loads does not show in the memory of this one.
            on_gpu: if self.port.is_some() { on_gpu.collect() } else { BTreeMap::new() },
            busy,
            machine: self.machine.clone(),
        }
    }

    /// Reads what this user may read, and takes over from root what it may not.
    fn hardware(&self, options: &Options) -> Facts {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut facts = evidence::read(&self.root, options, &mut watch);
        drop(watch);
        // Declared hardware is another than the one that root has read.
        for file in self.privileged.iter().filter(|_| !self.root.is_declared()) {
            match Privileged::load(file) {
                Ok(privileged) => privileged.iter().for_each(|privileged| privileged.fill(&mut facts)),
                Err(error) => {
                    tracing::warn!(%error, file = %file.display(), "what root has read is not used")
                }
            }
        }
        facts
    }

    /// Reads in a thread of its own: it opens files and may load a library.
    async fn read(self, inventory: &Inventory, busy: bool) -> Facts {
        let options = self.options(inventory, busy);
        let read = tokio::task::spawn_blocking(move || self.hardware(&options)).await;
        match read {
            Ok(read) => read,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// The salt of the mesh, with which whatever names something of this machine is keyed.
pub(crate) fn salt(config: &Config) -> Salt {
    config.secret.as_ref().map_or(Salt::LOOPBACK, |secret| Salt(*secret.id_salt()))
}

/// Writes what only root can read for the agents of this machine; gives the file.
///
/// # Errors
/// When this is not root, or the file cannot be written.
pub(crate) fn save_privileged(config: &Config) -> io::Result<PathBuf> {
    if system::user().is_none() {
        let why = "no reading is kept for one user here: the agent reads all of it itself";
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    if !system::is_root() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "only root can read it"));
    }
    let places = config.runtime.as_ref().map_or_else(Vec::new, RuntimePlaces::privileged);
    let file = places.into_iter().next().ok_or(io::ErrorKind::NotFound)?;
    Privileged::read(&config.root).save(&file)?;
    Ok(file)
}

/// What `tropa-agent evidence` prints; the install is asked what it has loaded, for that tells where it works.
///
/// # Errors
/// When there can be no client for the install.
pub(crate) async fn show(config: &Config, raw: bool, json: bool) -> Result<String, ClientError> {
    let reading = Reading::new(config);
    let inventory = Ollama::with_policy(config.ollama.clone(), config.policy.clone())?.inventory().await;
    let options = reading.options(&inventory, false);
    let facts = reading.clone().read(&inventory, false).await;
    let published = facts.keyed(&reading.key);
    let former = reading.former.as_ref().map(Key::salt_name);
    let epoch = BootClock::of(&reading.root).sample();
    let log = evidence::read_server_log(&reading.root, &options);
    let shown = Shown { facts: &facts, evidence: &published, epoch: &epoch, log: &log, former };
    Ok(if json { evidence::show_json(&shown, raw).to_string() } else { evidence::show(&shown, raw) })
}
