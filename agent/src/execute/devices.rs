//! The devices of the lane: waiting for their locks, what their files say of attempts at the engine, and settling.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tropa_proto::proof::{Bug, planted};

use super::{
    End, Executor,
    records::{SETTLE_LEAST, SETTLE_MOST, options_hash, record_name, settle_one, warn_record},
};
use crate::{
    admission::{Event, Key},
    clock::now,
    device_lock::{Held, SettleRecord},
    ollama::Request,
};

impl Executor {
    pub(super) fn acquire(&mut self) -> Option<Event> {
        let locks = self.settings.locks.clone().filter(|_| !planted(Bug::NoKernelLock));
        let Some(locks) = locks else { return Some(Event::LaneHeld { dirty: false }) };
        self.acquired += 1;
        let occupation = &self.settings.devices;
        let devices = if self.admission.takes_all() { &occupation.anywhere } else { &occupation.loaded };
        let (number, devices) = (self.acquired, devices.clone());
        let blocked = self.blocked.0.clone();
        self.acquiring = Some(self.tasks.spawn(async move {
            // A name that finds no room is lost; another follows, or the lock.
            let on_blocked = |holder| {
                let _ = blocked.try_send(holder);
            };
            End::Lane(number, locks.acquire(&devices, on_blocked).await)
        }));
        None
    }

    /// The attempts whose models are not loaded, so that they may go to any device of the install.
    pub(super) fn unplaced(&self) -> BTreeSet<Key> {
        let open = self.attempts.iter();
        let unplaced = open.filter(|(_, attempt)| !self.settings.devices.is_placed(&attempt.request));
        unplaced.map(|(key, _)| *key).collect()
    }

    /// Something is at the engine that may be on any device of the install.
    pub(super) fn is_loading(&self) -> bool {
        let mut running = self.attempts.values().filter(|attempt| attempt.started.is_some());
        running.any(|attempt| !self.settings.devices.is_placed(&attempt.request))
    }

    pub(super) fn settle(&mut self) {
        let mut ours = std::mem::take(&mut self.hung_up);
        let left = self.held.as_ref().map(Held::foreign_records).unwrap_or_default();
        let attempts = ours.iter().map(|(record, _)| record.attempt.clone()).collect();
        ours.extend(left.records.into_iter().map(|record| {
            let limit = Duration::from_millis(record.remaining_ms).clamp(SETTLE_LEAST, SETTLE_MOST);
            (record, limit)
        }));
        let (ollama, netns) = (Arc::clone(&self.ollama), self.netns);
        self.tasks.spawn(async move {
            let mut proved = true;
            let mut seen = BTreeSet::new();
            for (record, limit) in ours {
                if seen.insert((record.endpoint.clone(), record.netns, record.model.clone())) {
                    proved &= settle_one(&ollama, netns, &record, limit).await;
                }
            }
            if left.unreadable {
                // It names no install to ask, so only time is left.
                tokio::time::sleep(SETTLE_LEAST).await;
                proved = false;
            }
            End::Settled { attempts, proved }
        });
    }

    /// What the lock files hold of an attempt while it is at the engine.
    pub(super) fn record(&self, key: &Key) -> Option<SettleRecord> {
        let request = &self.attempts.get(key)?.request;
        Some(SettleRecord { attempt: record_name(key), ..self.record_of(request) })
    }

    /// The same of a request without a name.
    pub(super) fn record_of(&self, request: &Request) -> SettleRecord {
        SettleRecord {
            endpoint: self.ollama.base().to_string(),
            netns: self.netns,
            model: request.model.to_string(),
            options_hash: options_hash(&request.runner),
            attempt: String::new(),
            remaining_ms: u64::try_from(request.limits.deadline.as_millis()).unwrap_or(u64::MAX),
        }
    }

    pub(super) fn clear(&self, key: &Key) {
        if let Some(held) = &self.held
            && let Err(error) = held.clear(&record_name(key))
        {
            warn_record(&error);
        }
    }

    /// How long a request that we hung up on may still run.
    pub(super) fn remaining(&self, key: &Key) -> Duration {
        let Some(attempt) = self.attempts.get(key) else { return SETTLE_LEAST };
        let spent = attempt.started.map_or(Duration::ZERO, |started| now() - started);
        attempt.request.limits.deadline.saturating_sub(spent).clamp(SETTLE_LEAST, SETTLE_MOST)
    }
}
