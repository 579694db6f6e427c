//! Long texts and panels, told from the journal alone: what was asked for, what each node is for, and the answers.

use serde::Deserialize;
use serde_json::{Value, json};
use tropa_proto::failure::Class;

use crate::{
    job::{
        Answer, Origin,
        longform::{self, Finding, Section},
        panel::{self, Tally},
    },
    journal::{Decided, Error, Item, Journal, Kind},
    recipe,
    submit::Spec,
};

/// What is said about a job beside its results: what its reader should know, and how votes went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remarks {
    findings: Vec<Finding>,
    votes: Vec<Tally>,
}

/// What `tropa write` was asked, as far as the text needs it.
#[derive(Deserialize)]
struct Written {
    topic: String,
}

/// What `tropa panel` was asked, as far as the text needs it.
#[derive(Deserialize)]
struct Panelled {
    layout: panel::Layout,
    #[serde(default)]
    all: bool,
}

/// Makes the text of a long text or a panel; `None` for other jobs.
///
/// # Errors
/// When the journal cannot be read, or what was asked is not what such a job is asked.
pub(super) fn text(journal: &Journal) -> Result<Option<String>, Error> {
    Ok(match journal.job().kind {
        Kind::Write => {
            let (layout, answers) = written(journal)?;
            Some(longform::document(&layout, &answers))
        }
        Kind::Panel => {
            let Panelled { layout, all } = asked(journal)?;
            let answers: Vec<Answer> = items(journal)?.into_iter().map(ended).collect();
            Some(if all { panel::proceedings(&layout, &answers) } else { panel::outcome(&layout, &answers) })
        }
        Kind::Run | Kind::Map | Kind::Embed => None,
    })
}

impl Remarks {
    /// Looks at a job; there is nothing to say about jobs that are neither a long text nor a panel.
    ///
    /// # Errors
    /// When the journal cannot be read, or what was asked is not what such a job is asked.
    pub fn of(journal: &Journal) -> Result<Self, Error> {
        let mut remarks = Self::default();
        match journal.job().kind {
            Kind::Write => {
                let (layout, answers) = written(journal)?;
                remarks.findings = longform::findings(&layout, &answers);
            }
            Kind::Panel => {
                let layout = asked::<Panelled>(journal)?.layout;
                let answers: Vec<Answer> = items(journal)?.into_iter().map(ended).collect();
                remarks.votes = panel::tallies(&layout, &answers);
            }
            Kind::Run | Kind::Map | Kind::Embed => {}
        }
        Ok(remarks)
    }

    /// Tells them to people, a line each.
    #[must_use]
    pub fn text(&self) -> String {
        let findings = self.findings.iter().map(|finding| format!("warn    {finding}\n"));
        let votes = self.votes.iter().map(|tally| format!("{}\n", tally.sentence()));
        findings.chain(votes).collect()
    }

    /// Adds them to a summary for programs, where there are any.
    pub fn add_to(&self, summary: &mut Value) {
        if !self.findings.is_empty() {
            let finding =
                |finding: &Finding| json!({"level": "warn", "code": finding.code, "text": finding.text});
            summary["findings"] = self.findings.iter().map(finding).collect();
        }
        if !self.votes.is_empty() {
            summary["votes"] = self.votes.iter().map(Tally::json).collect();
        }
    }
}

fn written(journal: &Journal) -> Result<(longform::Layout, Vec<Answer>), Error> {
    let topic = asked::<Written>(journal)?.topic;
    let (mut sections, mut answers) = (Vec::new(), Vec::new());
    for item in items(journal)? {
        let origin = serde_json::from_str::<Origin>(&item.origin).ok();
        let section = origin.and_then(|origin| Section::from_metadata(&origin.metadata));
        let nothing = || Error::Damaged(format!("item {} is no part of a text", item.index));
        sections.push(section.ok_or_else(nothing)?);
        answers.push(ended(item));
    }
    Ok((longform::Layout { topic, sections }, answers))
}

fn asked<T: for<'a> Deserialize<'a>>(journal: &Journal) -> Result<T, Error> {
    let spec = serde_json::from_slice::<Spec>(&journal.job().spec);
    let asked = spec.and_then(|spec| serde_json::from_str(spec.job.get()));
    asked.map_err(|error| Error::Damaged(format!("what the job was asked: {error}")))
}

/// All nodes, in the order of the graph: each is an item of the output. It stops at the first that is not finished.
fn items(journal: &Journal) -> Result<Vec<Item>, Error> {
    let all = (0..journal.job().items).map(|index| journal.item(index)).map(Result::transpose);
    all.map_while(|item| item).collect()
}

fn ended(item: Item) -> Answer {
    match item.decided {
        Decided::Done(done) => match recipe::answer(&done.body) {
            Some(text) => Answer::Done { text, cut: done.done_reason == "length" },
            None => Answer::Failed {
                class: Class::EngineError.name().to_owned(),
                message: "the result is not what the endpoint returns".to_owned(),
            },
        },
        Decided::Failed(failed) => {
            let said = item.attempts.iter().rev().filter_map(|attempt| attempt.detail.clone());
            let said = std::iter::once(failed.detail).chain(said).find(|detail| !detail.is_empty());
            Answer::Failed { message: said.unwrap_or_else(|| failed.class.clone()), class: failed.class }
        }
    }
}
