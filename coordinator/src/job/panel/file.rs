//! A panel as a user writes it.
//!
//! ```toml
//! answer = "editor"            # whose answer is the panel's; the last role without it
//!
//! [[role]]
//! name = "thinker"
//! repeats = 3                  # it answers three times, independently
//! temperature = 1.0
//! prompt = "Answer as expert {{number}} of {{repeats}}: {{question}}"
//!
//! [[role]]
//! name = "editor"
//! model = "llama3.2:3b"        # where it is not the model of the job
//! system = "You are brief."
//! max-tokens = 300
//! prompt = "{{question}}\n\nAnswers:\n{{answer:thinker}}\n\nJoin them."
//! ```
//!
//! A role with `vote = "thinker"` votes on the answers of that role: its prompt has the hole `{{candidates}}`, and what
//! it answers must be `{"vote": N}` or the number alone.

use std::{collections::BTreeMap, ops::Range};

use serde::Deserialize;
use toml::Spanned;

use super::{
    super::{InputError, LARGEST_MAX_TOKENS, item::check_model},
    LARGEST_REPEATS, LARGEST_ROLES, Role, Roles,
    template::{Part, Template},
};

/// A file of roles larger than this is not one: prompts and bodies end at a megabyte.
pub const LARGEST_FILE: usize = 1 << 20;

/// The longest name of a role in bytes: it stands in headings and messages.
const LONGEST_NAME: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    answer: Option<Spanned<String>>,
    #[serde(default)]
    role: Vec<SaidRole>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SaidRole {
    name: Spanned<String>,
    model: Option<Spanned<String>>,
    system: Option<Spanned<String>>,
    prompt: Spanned<String>,
    repeats: Option<Spanned<i64>>,
    max_tokens: Option<Spanned<i64>>,
    temperature: Option<Spanned<f64>>,
    vote: Option<Spanned<String>>,
}

/// The text of a file, to find lines in.
struct Source<'a>(&'a str);

/// Reads a file of roles and checks all but the order of the roles.
pub(super) fn roles(text: &str) -> Result<Roles, InputError> {
    let source = Source(text);
    if text.len() > LARGEST_FILE {
        let what = format!("{} bytes, and at most {LARGEST_FILE} are read", text.len());
        return Err(InputError::at(0, what, "shorten the prompts"));
    }
    let said: Said = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(0, |span| source.line(&span));
        InputError::at(line, error.message().replace('\n', " "), "`tropa panel --help` shows a file of roles")
    })?;
    if said.role.is_empty() || said.role.len() > LARGEST_ROLES {
        let what = format!("{} roles, and a panel has 1 to {LARGEST_ROLES}", said.role.len());
        return Err(InputError::at(0, what, "write each as a table [[role]]"));
    }
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    let mut roles = Vec::new();
    for role in &said.role {
        let role = source.role(role)?;
        if let Some(before) = lines.insert(role.key.clone(), role.line) {
            let what = format!("the role `{}` again; line {before} has it already", role.key);
            return Err(InputError::at(role.line, what, "give each role its own name, or use `repeats`"));
        }
        roles.push(role);
    }
    let answer = match said.answer {
        Some(answer) if lines.contains_key(answer.get_ref()) => answer.into_inner(),
        Some(answer) => {
            let what = format!("`answer` names `{}`, which is no role", answer.get_ref());
            return Err(InputError::at(source.line(&answer.span()), what, one_of(lines.keys())));
        }
        // There is at least one.
        None => roles.last().map(|role| role.key.clone()).unwrap_or_default(),
    };
    for role in &roles {
        source.check_names(role, &lines, &said.role)?;
    }
    let asks = roles.iter().flat_map(|role| role.prompts.iter().chain(&role.system));
    if !asks.into_iter().any(|template| template.parts.contains(&Part::Question)) {
        let remedy = "write {{question}} where it belongs";
        return Err(InputError::at(0, "no prompt has {{question}}, so nobody is asked it", remedy));
    }
    Ok(Roles { roles, answer })
}

impl Source<'_> {
    fn line(&self, span: &Range<usize>) -> u64 {
        let before = self.0.get(..span.start).unwrap_or(self.0);
        before.bytes().filter(|byte| *byte == b'\n').count() as u64 + 1
    }

    /// The line in which a piece of a text stands; that of the text where it is written with escapes.
    fn line_of(&self, span: &Range<usize>, piece: &str) -> u64 {
        let at = self.0.get(span.clone()).and_then(|text| text.find(piece)).unwrap_or(0);
        self.line(&(span.start + at..span.end))
    }

    fn role(&self, said: &SaidRole) -> Result<Role, InputError> {
        let line = self.line(&said.name.span());
        let name = said.name.get_ref();
        let fine = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(fine) {
            let what = format!("`{}` is no name of a role", name.escape_debug());
            return Err(InputError::at(line, what, "use letters, digits, - and _, at most 64 bytes"));
        }
        if let Some(model) = &said.model {
            check_model(self.line(&model.span()), model.get_ref())?;
        }
        if said.prompt.get_ref().trim().is_empty() {
            let what = format!("the prompt of `{name}` is empty");
            return Err(InputError::at(self.line(&said.prompt.span()), what, "write what is asked"));
        }
        let repeats = self.number("repeats", said.repeats.as_ref(), LARGEST_REPEATS)?;
        let max_tokens = self.number("max-tokens", said.max_tokens.as_ref(), LARGEST_MAX_TOKENS)?;
        if let Some(temperature) = &said.temperature
            && !(0.0..=100.0).contains(temperature.get_ref())
        {
            let what = format!("`temperature` is {}", temperature.get_ref());
            return Err(InputError::at(
                self.line(&temperature.span()),
                what,
                "give a number from 0, such as 0.7",
            ));
        }
        Ok(Role {
            key: name.clone(),
            name: name.clone(),
            round: 0,
            line,
            model: said.model.as_ref().map(|model| model.get_ref().clone()),
            system: said.system.as_ref().map(|system| self.template(system)).transpose()?,
            prompts: vec![self.template(&said.prompt)?],
            repeats: repeats.unwrap_or(1),
            max_tokens,
            temperature: said.temperature.as_ref().map(|temperature| *temperature.get_ref()),
            vote: said.vote.as_ref().map(|vote| vote.get_ref().clone()),
        })
    }

    fn number(&self, key: &str, said: Option<&Spanned<i64>>, most: u32) -> Result<Option<u32>, InputError> {
        let Some(said) = said else { return Ok(None) };
        match u32::try_from(*said.get_ref()) {
            Ok(number) if (1..=most).contains(&number) => Ok(Some(number)),
            Ok(_) | Err(_) => {
                let what = format!("`{key}` is {}", said.get_ref());
                Err(InputError::at(self.line(&said.span()), what, format!("give a number from 1 to {most}")))
            }
        }
    }

    fn template(&self, text: &Spanned<String>) -> Result<Template, InputError> {
        Template::parse(text.get_ref()).map_err(|error| {
            let line = self.line_of(&text.span(), &error.written);
            InputError::at(line, error.what, error.remedy)
        })
    }

    /// Sees to it that a role names only roles that are there, and that whoever votes has something to vote on.
    fn check_names(
        &self,
        role: &Role,
        lines: &BTreeMap<String, u64>,
        said: &[SaidRole],
    ) -> Result<(), InputError> {
        let written = said.iter().find(|said| *said.name.get_ref() == role.key);
        let texts = written.into_iter().flat_map(|said| [Some(&said.prompt), said.system.as_ref()]).flatten();
        for (text, template) in texts.zip(role.prompts.iter().chain(&role.system)) {
            if let Some(unknown) = template.reads().into_iter().find(|key| !lines.contains_key(*key)) {
                let line = self.line_of(&text.span(), &format!("answer:{unknown}"));
                let what = format!("`{}` reads the answer of `{unknown}`, which is no role", role.key);
                return Err(InputError::at(line, what, one_of(lines.keys())));
            }
            let candidates = template.parts.contains(&Part::Candidates);
            if candidates && role.vote.is_none() {
                let line = self.line_of(&text.span(), "candidates");
                let what = format!("`{}` has {{{{candidates}}}} and does not vote", role.key);
                return Err(InputError::at(line, what, "name the role that it votes on: vote = \"NAME\""));
            }
        }
        let vote = written.and_then(|said| said.vote.as_ref());
        let (Some(vote), Some(on)) = (vote, &role.vote) else { return Ok(()) };
        let line = self.line(&vote.span());
        if !lines.contains_key(on) {
            let what = format!("`{}` votes on `{on}`, which is no role", role.key);
            return Err(InputError::at(line, what, one_of(lines.keys())));
        }
        if !role.prompts.iter().any(|prompt| prompt.parts.contains(&Part::Candidates)) {
            let what = format!("`{}` votes, and its prompt does not show on what", role.key);
            return Err(InputError::at(line, what, "write {{candidates}} where the answers belong"));
        }
        let repeats =
            said.iter().find(|said| said.name.get_ref() == on).and_then(|said| said.repeats.as_ref());
        if repeats.is_none_or(|repeats| *repeats.get_ref() < 2) {
            let what = format!("`{}` votes on the single answer of `{on}`", role.key);
            return Err(InputError::at(line, what, format!("give `{on}` repeats = 2 or more")));
        }
        Ok(())
    }
}

fn one_of<'a>(names: impl Iterator<Item = &'a String>) -> String {
    format!("take one of {}", names.map(String::as_str).collect::<Vec<_>>().join(", "))
}
