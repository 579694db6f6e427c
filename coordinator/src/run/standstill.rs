//! Why a job does not go on: nobody could ever work on it, or whoever could takes nothing at present.

use std::collections::BTreeSet;

use tropa_proto::roster::Out;

use super::{Loop, Stuck};
use crate::{
    exit::Exit,
    plan::{self, Pinned},
    schedule::{Kind, ModelIndex},
    terminal::escaped,
};

impl Loop<'_> {
    /// Says for whom the job waits, where all who could work on it are shut; once for each answer.
    pub(super) fn say_what_opens(&mut self) {
        let mut able = self.installs.values().filter(|install| !install.models.is_empty()).peekable();
        let waits = able.peek().is_some() && able.all(|install| install.shut) && self.schedule.is_idle();
        let now = if waits { self.what_opens() } else { String::new() };
        if now != self.waits_for {
            if !now.is_empty() {
                self.run.progress.say(&now);
            }
            self.waits_for = now;
        }
    }

    fn what_opens(&mut self) -> String {
        let shut =
            |out: &Option<Out>| if let Some(Out::Shut(rule)) = out { Some(rule.clone()) } else { None };
        let installs = self.run.members.view().installs.iter();
        let all: Vec<String> = installs
            .filter_map(|install| {
                Some(format!("{}: {}", escaped(&install.label), escaped(&shut(&install.out)?)))
            })
            .collect();
        format!("waiting, since nothing is taken at present: {}", all.join("; "))
    }

    pub(super) fn why_stuck(&mut self, stuck: &BTreeSet<Kind>) -> Stuck {
        let items = self.snapshot.total - self.snapshot.done - self.snapshot.failed;
        let left = |pinned: &Pinned, index| {
            let of_model = stuck.iter().filter(|kind| kind.model == ModelIndex(index));
            let asked = |kind: &Kind| Some((kind.context, *pinned.asks.get(&kind.context)?));
            Pinned { asks: of_model.filter_map(asked).collect(), ..pinned.clone() }
        };
        let wanted: Vec<Pinned> = (0..)
            .zip(&self.run.models)
            .filter(|(index, _)| stuck.iter().any(|kind| kind.model == ModelIndex(*index)))
            .map(|(index, pinned)| left(pinned, index))
            .collect();
        let view = self.run.members.view();
        if view.installs.is_empty() {
            let why = "no agent is left; start one beside an Ollama: tropa-agent\n".to_owned();
            return Stuck { why, exit: Exit::NothingCanRun };
        }
        let plan = plan::plan_without(view, items, &wanted, &[], &self.denials);
        let mut why = plan.why_nothing();
        if plan.is_denied() {
            return Stuck { why, exit: Exit::NotAuthorised };
        }
        let refused: BTreeSet<&String> = self.last_words.values().collect();
        for detail in refused.into_iter().filter(|detail| !detail.is_empty()).take(4) {
            why.push_str(&format!("{}\n", escaped(detail)));
        }
        Stuck { why, exit: Exit::NothingCanRun }
    }
}
