//! What a job brings from earlier ones about the speed of installs, and what it leaves for later ones.

use tropa_proto::id::AgentId;

use super::Loop;
use crate::{
    exit::Failed,
    schedule::{Event, ModelIndex},
    speeds::Speed,
};

impl Loop<'_> {
    /// Tells the scheduler what is known of installs that it has not heard of yet.
    pub(super) fn recall_speeds(&mut self, new: &[AgentId]) -> Result<(), Failed> {
        let mut known = Vec::new();
        for agent in new {
            let (Some(lane), Some(install)) = (self.lanes.get(agent), self.installs.get(agent)) else {
                continue;
            };
            for (index, model) in (0..).zip(&self.run.models) {
                let speed = self.run.speeds.get(*agent, lane, model.fingerprint);
                let Some(speed) = speed else { continue };
                let width = speed.width_at(install.engine);
                known.push(Event::Remembered(*agent, ModelIndex(index), speed.pace, width));
            }
        }
        known.into_iter().try_for_each(|event| self.tell(event))
    }

    /// Keeps what this job has measured. A failure costs the next job some learning, and is told.
    pub(super) fn keep_speeds(&mut self) {
        let at_ms = self.run.clock.wall_ms();
        let mut learned = false;
        for (agent, ModelIndex(index), pace, width) in self.schedule.measured() {
            let model = self.run.models.get(usize::from(index));
            let install = self.installs.get(&agent);
            if let (Some(lane), Some(model), Some(install)) = (self.lanes.get(&agent), model, install) {
                let speed = Speed::new(pace, width, install.engine, at_ms);
                self.run.speeds.learn(agent, lane, model.fingerprint, speed);
                learned = true;
            }
        }
        if learned && let Err(error) = self.run.speeds.save() {
            self.run.progress.say(&format!("the speeds that this job measured could not be kept: {error}"));
        }
    }
}
