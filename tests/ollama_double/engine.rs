//! The engine of one double: which models are loaded with which options, who waits, and what that costs in time.
//!
//! A request holds a loaded model ([`Hold`]) and a slot in it. Requests for a loaded model wait without limit; a
//! load is exclusive, bounded by the queue, and aborted when its client leaves, which here means: when its future
//! is dropped. A model with other load options is replaced as soon as no request refers to it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::burn::Burn;
use super::clock;
use super::model::Model;
use super::pace::Pace;

#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) settings: Settings,
    burn: Option<Burn>,
    state: Mutex<State>,
    gate: tokio::sync::Mutex<()>,
    changed: Notify,
    loading: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    loaded: BTreeMap<String, Loaded>,
    waiting: usize,
    loads: u64,
    reloads: u64,
    serial: u64,
}

#[derive(Debug)]
struct Loaded {
    name: String,
    options: String,
    context: u64,
    serial: u64,
    refs: usize,
    keep_alive: Duration,
    expires: Instant,
    dead: bool,
    slots: Arc<Semaphore>,
    runner: CancellationToken,
    last_prompt: Vec<u8>,
}

/// What a request needs loaded.
#[derive(Debug, Clone)]
pub(crate) struct Want {
    pub(crate) model: Model,
    /// The load options in one canonical form: another form is another load.
    pub(crate) options: String,
    pub(crate) context: u64,
    pub(crate) keep_alive: Duration,
}

/// What `/api/ps` needs to know of a loaded model.
#[derive(Debug, Clone)]
pub(crate) struct InMemory {
    pub(crate) name: String,
    pub(crate) context: u64,
    pub(crate) expires_in: Duration,
}

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueFull;

impl Engine {
    pub(crate) fn new(settings: Settings) -> Arc<Self> {
        let burn = (settings.burn > 0).then(|| Burn::measure(settings.burn));
        Arc::new(Self {
            settings,
            burn,
            state: Mutex::default(),
            gate: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            loading: watch::Sender::new(false),
        })
    }

    /// Waits until the model is loaded as wanted, and refers to it. Dropping the future gives up the load.
    pub(crate) async fn acquire(self: &Arc<Self>, want: &Want) -> Result<Hold, QueueFull> {
        let begun = clock::now();
        if let Some(hold) = self.join(want, begun) {
            return Ok(hold);
        }
        let place = Waiting::begin(self)?;
        let _gate = self.gate.lock().await;
        drop(place);
        if let Some(hold) = self.join(want, begun) {
            return Ok(hold);
        }
        self.make_room(want).await;
        let flag = Loading::begin(self);
        if !self.settings.load.is_zero() {
            let mut pace = self.pace(false);
            pace.spend(self.settings.load).await;
        }
        let slots = if want.model.can("completion") { self.settings.num_parallel } else { 1 };
        let mut state = self.state();
        state.loads += 1;
        state.serial += 1;
        let loaded = Loaded {
            name: want.model.name.clone(),
            options: want.options.clone(),
            context: want.context,
            serial: state.serial,
            refs: 0,
            keep_alive: want.keep_alive,
            expires: clock::now() + want.keep_alive,
            dead: false,
            slots: Arc::new(Semaphore::new(slots)),
            runner: CancellationToken::new(),
            last_prompt: Vec::new(),
        };
        state.loaded.insert(want.model.weights.clone(), loaded);
        drop(state);
        drop(flag);
        // Nothing can have replaced it: the gate is still ours, and it was not expired.
        self.join(want, begun).ok_or(QueueFull)
    }

    /// Refers to the model when it is loaded as wanted.
    fn join(self: &Arc<Self>, want: &Want, begun: Instant) -> Option<Hold> {
        let mut state = self.state();
        state.expire();
        let key = &want.model.weights;
        let loaded = state.loaded.get_mut(key)?;
        if loaded.options != want.options || loaded.name != want.model.name || loaded.dead {
            return None;
        }
        loaded.refs += 1;
        loaded.keep_alive = want.keep_alive;
        Some(Hold {
            engine: Arc::clone(self),
            key: key.clone(),
            serial: loaded.serial,
            slots: Arc::clone(&loaded.slots),
            runner: loaded.runner.clone(),
            context: loaded.context,
            load: clock::now() - begun,
        })
    }

    async fn make_room(&self, want: &Want) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state();
                state.expire();
                if let Some(old) = state.loaded.get(&want.model.weights) {
                    let (idle, dead) = (old.refs == 0, old.dead);
                    if idle {
                        state.unload(&want.model.weights);
                        state.reloads += u64::from(!dead);
                    }
                } else if state.loaded.len() >= self.settings.max_loaded {
                    let idle = state.loaded.iter().filter(|(_, loaded)| loaded.refs == 0);
                    if let Some(key) =
                        idle.min_by_key(|(_, loaded)| loaded.expires).map(|(key, _)| key.clone())
                    {
                        state.unload(&key);
                    }
                }
                if !state.loaded.contains_key(&want.model.weights)
                    && state.loaded.len() < self.settings.max_loaded
                {
                    return;
                }
            }
            changed.await;
        }
    }

    /// `keep_alive: 0` without work: the runner ends now, or as soon as no request refers to it.
    pub(crate) fn unload(&self, model: &Model) {
        let mut state = self.state();
        if let Some(loaded) = state.loaded.get_mut(&model.weights) {
            loaded.keep_alive = Duration::ZERO;
            if loaded.refs == 0 {
                state.unload(&model.weights);
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// What is loaded, by name. Since 0.30 it is not known while a model loads.
    pub(crate) async fn in_memory(&self, wait_for_load: bool) -> Vec<InMemory> {
        if wait_for_load {
            let _ = self.loading.subscribe().wait_for(|loading| !loading).await;
        }
        let mut state = self.state();
        state.expire();
        let now = clock::now();
        let mut list: Vec<InMemory> = state
            .loaded
            .values()
            .map(|loaded| InMemory {
                name: loaded.name.clone(),
                context: loaded.context,
                expires_in: if loaded.refs > 0 { loaded.keep_alive } else { loaded.expires - now },
            })
            .collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// Forgets all that is loaded, as a new process would.
    pub(crate) fn forget(&self) {
        let mut state = self.state();
        while let Some(key) = state.loaded.keys().next().cloned() {
            state.unload(&key);
        }
    }

    pub(crate) fn loads(&self) -> u64 {
        self.state().loads
    }

    pub(crate) fn reloads(&self) -> u64 {
        self.state().reloads
    }

    /// Begins to occupy the devices.
    pub(crate) fn pace(&self, foreign: bool) -> Pace {
        let mut state = self.state();
        state.serial += 1;
        let serial = state.serial;
        drop(state);
        Pace::begin(&self.settings, self.burn, serial, foreign)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn unload(&mut self, key: &str) {
        if let Some(loaded) = self.loaded.remove(key) {
            loaded.runner.cancel();
        }
    }

    fn expire(&mut self) {
        let now = clock::now();
        let old = self.loaded.iter().filter(|(_, loaded)| loaded.refs == 0 && loaded.expires <= now);
        for key in old.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.unload(&key);
        }
    }
}

/// A reference to a loaded model.
#[derive(Debug)]
pub(crate) struct Hold {
    engine: Arc<Engine>,
    key: String,
    serial: u64,
    slots: Arc<Semaphore>,
    pub(crate) runner: CancellationToken,
    pub(crate) context: u64,
    /// How long it took to have it, other models' loads included.
    pub(crate) load: Duration,
}

impl Hold {
    /// Waits for a slot, without limit.
    pub(crate) async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).acquire_owned().await.ok()
    }

    /// How many bytes of this prompt the runner still has from the last one; remembers this one.
    pub(crate) fn cached(&self, prompt: &[u8]) -> usize {
        let mut state = self.engine.state();
        let Some(loaded) = state.loaded.get_mut(&self.key) else { return 0 };
        let same = loaded.last_prompt.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        loaded.last_prompt = prompt.to_owned();
        same
    }

    /// The runner dies. It stays listed until the next request wants it.
    pub(crate) fn crash(&self) {
        let mut state = self.engine.state();
        if let Some(loaded) = state.loaded.get_mut(&self.key).filter(|loaded| loaded.serial == self.serial) {
            loaded.dead = true;
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.engine.state();
        if let Some(loaded) = state.loaded.get_mut(&self.key).filter(|loaded| loaded.serial == self.serial) {
            loaded.refs -= 1;
            loaded.expires = clock::now() + loaded.keep_alive;
            if loaded.refs == 0 && loaded.keep_alive.is_zero() {
                state.unload(&self.key);
            }
        }
        drop(state);
        self.engine.changed.notify_waiters();
    }
}

/// A place in the queue of requests that need a load.
struct Waiting<'a>(&'a Engine);

impl<'a> Waiting<'a> {
    fn begin(engine: &'a Engine) -> Result<Self, QueueFull> {
        let mut state = engine.state();
        // One more than the queue holds: the one that is being loaded has left it.
        if state.waiting > engine.settings.max_queue {
            return Err(QueueFull);
        }
        state.waiting += 1;
        Ok(Self(engine))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

/// Says that a load goes on, until it is dropped.
struct Loading<'a>(&'a Engine);

impl<'a> Loading<'a> {
    fn begin(engine: &'a Engine) -> Self {
        engine.loading.send_replace(true);
        Self(engine)
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        self.0.loading.send_replace(false);
    }
}
