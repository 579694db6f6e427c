//! Prompts with holes, written `{{question}}`, `{{answer:ROLE}}`, `{{candidates}}`, `{{number}}` and `{{repeats}}`.

use std::collections::BTreeSet;

/// What may stand between the braces, for messages.
const HOLES: &str = "{{question}}, {{answer:ROLE}}, {{candidates}}, {{number}} and {{repeats}}";

/// A prompt with holes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Template {
    pub(super) parts: Vec<Part>,
}

/// A piece of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Text(String),
    /// The question.
    Question,
    /// All answers of the role with this key.
    Answer(String),
    /// The answers that are voted on, each under its number.
    Candidates,
    /// Which of the repeats this is, from 1.
    Number,
    /// How many repeats there are.
    Repeats,
}

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TemplateError {
    /// The text that is wrong, as it is written.
    pub(super) written: String,
    pub(super) what: String,
    pub(super) remedy: String,
}

impl Template {
    /// Reads a template; blanks around a name do not count.
    pub(super) fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((name, behind)) = after.split_once("}}") else {
                let written: String = rest[before.len()..].chars().take(20).collect();
                let what = format!("`{}` has no `}}}}`", written.escape_debug());
                return Err(TemplateError { written, what, remedy: format!("close it; there are {HOLES}") });
            };
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Self::hole(name)?);
            rest = behind;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self { parts })
    }

    /// The keys of the roles whose answers it reads.
    pub(super) fn reads(&self) -> BTreeSet<&str> {
        let reads = self.parts.iter().filter_map(|part| match part {
            Part::Answer(role) => Some(role.as_str()),
            Part::Text(_) | Part::Question | Part::Candidates | Part::Number | Part::Repeats => None,
        });
        reads.collect()
    }

    fn hole(name: &str) -> Result<Part, TemplateError> {
        Ok(match name.trim() {
            "question" => Part::Question,
            "candidates" => Part::Candidates,
            "number" => Part::Number,
            "repeats" => Part::Repeats,
            other => match other.split_once(':') {
                Some(("answer", role)) if !role.trim().is_empty() => Part::Answer(role.trim().to_owned()),
                Some(_) | None => {
                    let written = format!("{{{{{name}}}}}");
                    let what = format!("`{}` is no hole of a prompt", written.escape_debug());
                    return Err(TemplateError { written, what, remedy: format!("there are {HOLES}") });
                }
            },
        })
    }
}
