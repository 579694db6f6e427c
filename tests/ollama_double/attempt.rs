//! One piece of work on one engine: a loaded model, a slot, the devices, in this order; then the prompt is read
//! and tokens come. What happens when the client hangs up is decided here, by what was going on: generation stops
//! at once, reading a prompt goes on to its end and keeps slot and devices, unless the runner is closed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::clock;
use super::engine::{Engine, Hold, QueueFull, Want};
use super::pace::Pace;

/// Running work.
#[derive(Debug)]
pub(crate) struct Attempt {
    hold: Option<Hold>,
    busy: Option<Busy>,
    pub(crate) load: Duration,
    pub(crate) context: u64,
    token: Duration,
    /// What is left of reading the prompt.
    unread: Duration,
    /// How long the devices stay busy after the client has gone.
    pub(crate) zombie: Duration,
}

#[derive(Debug)]
struct Busy {
    pace: Pace,
    _slot: Option<OwnedSemaphorePermit>,
}

impl Attempt {
    /// Waits for the model and for a slot, and occupies the devices.
    pub(crate) async fn begin(engine: &Arc<Engine>, want: &Want) -> Result<Self, QueueFull> {
        let hold = engine.acquire(want).await?;
        let slot = hold.slot().await;
        let busy = Some(Busy { pace: engine.pace(false), _slot: slot });
        Ok(Self {
            load: hold.load,
            context: hold.context,
            hold: Some(hold),
            busy,
            token: engine.settings.decode,
            unread: Duration::ZERO,
            zombie: Duration::ZERO,
        })
    }

    /// Every token takes this many times as long.
    pub(crate) fn slow_down(&mut self, factor: u32) {
        self.token = self.token.saturating_mul(factor);
    }

    /// Bytes of the prompt that need no reading, since the last prompt began the same way.
    pub(crate) fn cached(&self, prompt: &[u8]) -> usize {
        self.hold.as_ref().map_or(0, |hold| hold.cached(prompt))
    }

    /// Reads the prompt; returns how long it took.
    pub(crate) async fn read(&mut self, alone: Duration) -> Duration {
        let begun = clock::now();
        self.unread = alone;
        while let Some(busy) = self.busy.as_mut().filter(|_| !self.unread.is_zero()) {
            self.unread -= busy.pace.slice(self.unread).await;
        }
        clock::now() - begun
    }

    /// Does something else that takes this long alone.
    pub(crate) async fn spend(&mut self, alone: Duration) {
        if let Some(busy) = &mut self.busy {
            busy.pace.spend(alone).await;
        }
    }

    /// One token.
    pub(crate) async fn token(&mut self) {
        self.spend(self.token).await;
    }

    /// Holds slot and devices without doing anything, then goes on.
    pub(crate) async fn stall(&mut self, time: Duration) {
        tokio::time::sleep(time).await;
        if let Some(busy) = &mut self.busy {
            busy.pace.restart();
        }
    }

    /// The runner dies, and what it did ends.
    pub(crate) fn crash(&mut self) {
        if let Some(hold) = &self.hold {
            hold.crash();
        }
        self.finish();
    }

    /// Ends the work: slot and devices are free. Called before the last line leaves, since a device is idle when
    /// its client learns that the work is done.
    pub(crate) fn finish(&mut self) {
        self.busy = None;
        self.hold = None;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let Some(mut busy) = self.busy.take() else { return };
        let Some(hold) = self.hold.take() else { return };
        let (unread, zombie, runner) = (self.unread, self.zombie, hold.runner.clone());
        if unread.is_zero() && zombie.is_zero() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let rest = async {
                busy.pace.spend(unread).await;
                tokio::time::sleep(zombie).await;
            };
            tokio::select! {
                () = rest => {}
                () = runner.cancelled() => {}
            }
        });
        // Only now: closing the runner, if nothing else refers to it, must find the rest already waiting.
        drop(hold);
    }
}
