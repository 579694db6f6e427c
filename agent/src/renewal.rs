//! Two agents with one key: a state directory was copied, and the younger takes a new key (`identity.md` §12).

use tokio::time::Instant;
use tropa_proto::message::{AgentState, Announcement};

use crate::{Agent, AgentError, LEAVES_WITHIN, LONGEST_PERIOD, announcing::announce_here, clock::now};

impl Agent {
    /// Takes in that another agent runs with this key: the state directory was copied. The younger of the two, by
    /// its incarnation, takes a new key; the older leaps over the other's numbers, so that it is heard again, and
    /// says so at once. Says whether it is to announce itself now.
    pub(crate) fn heard_itself(&mut self, other: &Announcement) -> Result<bool, AgentError> {
        if other.state == AgentState::Leaving || self.renewing.is_some() {
            return Ok(false);
        }
        let (mine, its) = (self.incarnation, other.incarnation);
        // Who heard itself under its own incarnation is one of two that went on from one snapshot: nothing tells
        // which is the older, and either may take a new key.
        if mine >= its {
            tracing::warn!(
                other = &*other.label,
                "identity.clone: an older agent runs with this agent's key, its state directory was copied; taking a new key"
            );
            self.renewing = Some(now());
            self.phase = AgentState::Draining;
        } else {
            tracing::warn!(
                other = &*other.label,
                "identity.clone: a younger agent runs with this agent's key, its state directory was copied; this one keeps the key"
            );
            self.state.skip_past(other.seq)?;
        }
        Ok(true)
    }

    pub(crate) fn may_renew(&self) -> bool {
        let load = *self.load.borrow();
        let idle = load.running + load.queued + load.checking + load.waiting_results == 0;
        self.renewing.is_some() && (idle || self.renews_at() <= now())
    }

    /// When the agent takes a new key even if something still runs: that is lost to its coordinator, which runs it
    /// again.
    pub(crate) fn renews_at(&self) -> Instant {
        // Far enough not to be reached where nothing is to be renewed.
        self.renewing.map_or_else(|| now() + LONGEST_PERIOD, |since| since + LEAVES_WITHIN)
    }

    /// Takes a new key and joins the mesh again under it; the executor goes on.
    pub(crate) async fn renew(&mut self) -> Result<(), AgentError> {
        let before = self.mesh.listening();
        self.state.mint(self.stock.facts())?;
        self.look_at_machine()?;
        drop(self.presence.take());
        self.mesh.clone().shutdown().await;
        (self.mesh, self.events) = self.joining.join_again(&self.state, &before).await?;
        self.presence = announce_here(self.runtime.as_ref(), self.install_port, &self.mesh);
        (self.renewing, self.phase) = (None, AgentState::Ready);
        self.members.clear();
        self.welcome();
        tracing::warn!(agent = self.id().short(), "runs under a new key");
        Ok(())
    }
}
