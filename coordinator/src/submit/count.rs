//! Asking a model how many tokens a text is, by letting it read a sample and write one token.
//!
//! Ollama has no way to count without working (`ollama-api.md` §5), and models differ: an English text is a token for
//! four bytes with one, one for each byte with another. Documents that must be cut are worth the question. It is a
//! job like any other, with a journal that is thrown away, so it goes where the real work will go and loads the model
//! as that will.

use std::path::Path;

use anyhow::anyhow;
use tropa_proto::id::JobId;

use super::{OrCode as _, exit_of};
use crate::{
    args::When,
    assemble::Assembly,
    clock::Clock,
    exit::{Exit, Failed, OrExit as _},
    job::{
        self, Density, JobOptions, Measured,
        graph::{Graph, Message, Node, Role},
    },
    journal::{Decided, Draft, Journal, Kind},
    plan::Pinned,
    progress::Progress,
    report::{Destination, Form, Output},
    resume::schedule,
    run::{End, Runner, Stuck},
    settings::Settings,
    speeds::Speeds,
    stop::{Stop, Stopped},
};

/// Samples that are read, at most: one for each of so many documents, the longest ones.
pub(crate) const MAX_SAMPLES: usize = 8;

/// A text of which so much is read, at most: enough that the words around it, which a model's template adds, are a few
/// per cent.
const SAMPLE: usize = 2048;

/// What a count is made with.
#[derive(Debug)]
pub(super) struct Count<'a> {
    /// A place that nobody else uses and that is removed afterwards.
    pub dir: &'a Path,
    /// The model that reads.
    pub model: &'a Pinned,
    /// The context that the real work will have.
    pub context: u32,
}

impl Count<'_> {
    /// Lets the model read samples of these texts and gives the one with most tokens for its bytes; `None` where none
    /// could be read.
    ///
    /// # Errors
    /// When the user stops it, nothing can run it, or the journal cannot be written.
    pub(super) async fn run(
        &self,
        texts: &[&str],
        assembly: &mut Assembly,
        settings: &Settings,
        clock: Clock,
        stop: &mut Stop,
    ) -> Result<Option<Density>, Failed> {
        // Even a token for every byte fits.
        let size = SAMPLE.min(self.context as usize / 2);
        let samples: Vec<String> = texts.iter().take(MAX_SAMPLES).map(|text| sample(text, size)).collect();
        let journal = self.journal(&samples, clock)?;
        let models = vec![self.model.clone()];
        let schedule = schedule(&journal, &models)?;
        let mut output =
            Output::open(&journal, Destination::Nowhere, Form::Lines, false).or_exit(Exit::Io)?;
        let mut progress = Progress::new(When::Never, true);
        // How fast one token is written says nothing of answers: what is learned here is thrown away too.
        let (speeds, _) = Speeds::open(self.dir);
        let runner = Runner {
            members: &mut assembly.members,
            journal: &journal,
            models,
            output: &mut output,
            progress: &mut progress,
            clock,
            speeds,
            patience: settings.wait,
            only: None,
        };
        match runner.run(schedule, stop).await? {
            End::Done => {}
            End::Stopped(Stopped { exit, .. }) => {
                return Err(anyhow!("stopped before the job began")).or_exit(exit);
            }
            End::Cancelled => {
                return Err(anyhow!("cancelled before the job began")).or_exit(Exit::Interrupted);
            }
            End::Stuck(Stuck { why, exit }) => {
                return Err(anyhow!("nothing here can run the job\n{why}")).or_exit(exit);
            }
        }
        let mut densest = None;
        for (index, sample) in (0..).zip(&samples) {
            let item = journal.item(index).or_code()?;
            let Some(Decided::Done(done)) = item.map(|item| item.decided) else { continue };
            let counted = Density::counted(u64::from(done.prompt_tokens), sample.len() as u64);
            densest =
                densest.into_iter().chain(counted).max_by_key(|density: &Density| density.tokens(1 << 20));
        }
        Ok(densest)
    }

    fn journal(&self, samples: &[String], clock: Clock) -> Result<Journal, Failed> {
        let mut graph = Graph::default();
        for sample in samples {
            let messages = vec![Message::new(Role::User, vec![sample.as_str().into()])];
            graph.add(Node::new("count", "count", 1, messages).shown()).or_exit(Exit::Input)?;
        }
        let options = JobOptions { num_ctx: Some(self.context), ..JobOptions::default() };
        let id = JobId::random().or_exit(Exit::Io)?;
        let taken_in = || {
            let measured = Measured::new(graph, options, Density::default())?;
            let mut draft = Draft::create(self.dir, id)?;
            draft.insert::<job::Error>(measured.chunks(&self.model.name))?;
            Ok::<_, job::Error>(draft.finish(Kind::Map, b"{}".to_vec(), clock.wall_ms())?)
        };
        taken_in().map_err(|error| Failed { exit: exit_of(error.exit_code()), error: error.into() })
    }
}

/// Takes the beginning, the middle and the end of a text, together at most so many bytes.
fn sample(text: &str, size: usize) -> String {
    if text.len() <= size {
        return text.to_owned();
    }
    let third = size / 3;
    let piece = |from: usize| {
        let from = text.ceil_char_boundary(from);
        &text[from..text.floor_char_boundary(from + third)]
    };
    [piece(0), piece((text.len() - third) / 2), piece(text.len() - third)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_of_all_places_and_no_longer_than_it_may_be() {
        let text = format!("{}{}{}", "a".repeat(500), "ñ".repeat(500), "z".repeat(500));
        let taken = sample(&text, 300);
        assert!(taken.len() <= 300);
        assert!(["a", "ñ", "z"].iter().all(|letter| taken.contains(letter)), "{taken}");
        assert_eq!(sample("short", 300), "short");
    }
}
