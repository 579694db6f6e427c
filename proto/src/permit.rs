//! What an agent permits of its install: which models, how large, whether pictures may be sent, when, and how much.
//!
//! The operator says it to the agent, which refuses what is not permitted before anything reaches the engine. It
//! publishes it as well, so that a coordinator sends nothing in vain and can say beforehand who denies what; both
//! decide with the same function. Who may submit at all is not published: an agent answers that to each who asks.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    bounded::{List, Text},
    message::ModelName,
};

/// What may run at an install.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permit {
    /// The models that may run, by full name in lower case; one that ends in `*` stands for all that begin so. Empty:
    /// every model.
    pub models: List<ModelName, 64>,
    /// The largest context of a request, in tokens; 0: any.
    pub num_ctx: u32,
    /// The longest answer that a request may ask for, in tokens; 0: any.
    pub num_predict: u32,
    /// Pictures may be sent.
    pub images: bool,
    /// The hours in which work is taken, in the local time of the agent, as their operator wrote them; empty: always.
    /// Shown; [`Permit::shut`] decides.
    pub hours: Text<128>,
    /// Chunks that may start in an hour, whoever sends them; 0: any.
    pub rate: u32,
    /// Why nothing is taken at present; `None`: work is.
    pub shut: Option<Shut>,
}

/// Why an install takes nothing at present, with when it does again: a time with its offset as in RFC 3339, of the
/// agent's wall clock. That is shown and decides nothing: the agent says when it is open again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shut {
    /// It is outside the hours of the policy.
    Hours(Text<40>),
    /// As many chunks as the policy permits in an hour have started.
    Rate(Text<40>),
}

/// What a request asks of an install; 0 where it does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asks<'a> {
    /// The full name of the model, in any case.
    pub model: &'a str,
    /// Its context in tokens.
    pub num_ctx: u64,
    /// Tokens of its answer, at most.
    pub num_predict: u64,
    /// It carries pictures.
    pub images: bool,
}

/// The rule of a policy that denies something. Its name comes first in every [`Denial`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Who submits it.
    Coordinator,
    /// The model.
    Model,
    /// The context.
    NumCtx,
    /// The length of the answer.
    NumPredict,
    /// Pictures.
    Images,
    /// The time of day.
    Hours,
    /// How many chunks have started.
    Rate,
}

/// A rule, and what stands against what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The rule.
    pub rule: Rule,
    /// In a few words.
    pub why: String,
}

/// Everything is permitted.
impl Default for Permit {
    fn default() -> Self {
        Self {
            models: List::default(),
            num_ctx: 0,
            num_predict: 0,
            images: true,
            hours: Text::default(),
            rate: 0,
            shut: None,
        }
    }
}

impl Permit {
    /// Gives the first rule that denies this for good, in the order of [`Rule`]; `None` where all is permitted, if not
    /// at present.
    #[must_use]
    pub fn denies(&self, asks: &Asks<'_>) -> Option<Denial> {
        if !self.models.is_empty() && !self.models.iter().any(|permitted| names(permitted, asks.model)) {
            let models: Vec<&str> = self.models.iter().map(|model| &**model).collect();
            let why = format!("{} is asked, permitted: {}", asks.model, models.join(", "));
            return Some(Denial { rule: Rule::Model, why });
        }
        let above = |rule, asked: u64, most: u32| {
            let why = format!("{asked} is asked, at most {most} is permitted");
            (most > 0 && asked > u64::from(most)).then_some(Denial { rule, why })
        };
        above(Rule::NumCtx, asks.num_ctx, self.num_ctx)
            .or_else(|| above(Rule::NumPredict, asks.num_predict, self.num_predict))
            .or_else(|| {
                let why = "pictures are not permitted".to_owned();
                (asks.images && !self.images).then_some(Denial { rule: Rule::Images, why })
            })
    }
}

impl Permit {
    /// Gives the rule by which nothing is taken at present, with when that is over; `None` where work is taken.
    #[must_use]
    pub fn shut(&self) -> Option<Denial> {
        Some(match self.shut.as_ref()? {
            Shut::Hours(opens) => Denial {
                rule: Rule::Hours,
                why: format!("it opens at {}; its hours are {}", &**opens, &*self.hours),
            },
            Shut::Rate(opens) => Denial {
                rule: Rule::Rate,
                why: format!("it opens at {}; {} chunks an hour are permitted", &**opens, self.rate),
            },
        })
    }
}

/// Says whether an entry of a permit stands for the model of this name.
fn names(permitted: &str, model: &str) -> bool {
    match permitted.strip_suffix('*') {
        Some(beginning) => {
            model.get(..beginning.len()).is_some_and(|start| start.eq_ignore_ascii_case(beginning))
        }
        None => permitted.eq_ignore_ascii_case(model),
    }
}

impl Rule {
    /// Every rule.
    pub const ALL: [Self; 7] = [
        Self::Coordinator,
        Self::Model,
        Self::NumCtx,
        Self::NumPredict,
        Self::Images,
        Self::Hours,
        Self::Rate,
    ];

    /// Says whether what it denies is permitted later, without anybody doing anything.
    #[must_use]
    pub fn passes(self) -> bool {
        match self {
            Self::Hours | Self::Rate => true,
            Self::Coordinator | Self::Model | Self::NumCtx | Self::NumPredict | Self::Images => false,
        }
    }

    /// Gives the name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Model => "model",
            Self::NumCtx => "num_ctx",
            Self::NumPredict => "num_predict",
            Self::Images => "images",
            Self::Hours => "hours",
            Self::Rate => "rate",
        }
    }

    /// Finds the rule that a denial on the wire names.
    #[must_use]
    pub fn of(denial: &str) -> Option<Self> {
        let (name, _) = denial.split_once(':')?;
        Self::ALL.into_iter().find(|rule| rule.name() == name)
    }
}

/// `rule: why`, as it stands on the wire and in tables.
impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule.name(), self.why)
    }
}

impl Denial {
    /// The same for the wire, cut where it is too long.
    #[must_use]
    pub fn text(&self) -> Text<128> {
        Text::cut(&self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKS: Asks<'static> = Asks { model: "Qwen3:8b", num_ctx: 8192, num_predict: 500, images: false };

    fn permit(models: &[&str]) -> Permit {
        let models = models.iter().map(|model| Text::cut(model)).collect();
        Permit { models: List::new(models).unwrap(), ..Permit::default() }
    }

    #[test]
    fn a_permit_that_says_nothing_permits_everything() {
        let all = Asks { num_ctx: u64::MAX, num_predict: u64::MAX, images: true, ..ASKS };
        assert_eq!(Permit::default().denies(&all), None);
    }

    #[test]
    fn a_model_is_permitted_by_its_name_in_any_case_or_by_its_beginning() {
        for (models, permitted) in [
            (&["qwen3:8b"][..], true),
            (&["llama3.2:3b", "qwen3:*"], true),
            (&["*"], true),
            (&["qwen3:8"], false),
            (&["qwen3:8b-thinking*"], false),
            (&["llama3.2:3b"], false),
        ] {
            let denial = permit(models).denies(&ASKS);
            assert_eq!(denial.is_none(), permitted, "{models:?}: {denial:?}");
        }
    }

    #[test]
    fn limits_hold_at_their_value_and_not_one_above() {
        for (num_ctx, num_predict, rule) in [
            (8192, 500, None),
            (8191, 500, Some(Rule::NumCtx)),
            (8192, 499, Some(Rule::NumPredict)),
            (1, 1, Some(Rule::NumCtx)),
        ] {
            let permit = Permit { num_ctx, num_predict, ..Permit::default() };
            assert_eq!(permit.denies(&ASKS).map(|denial| denial.rule), rule, "{num_ctx} {num_predict}");
        }
        let pictures = Permit { images: false, ..Permit::default() };
        assert_eq!(pictures.denies(&ASKS), None);
        let denial = pictures.denies(&Asks { images: true, ..ASKS });
        assert_eq!(denial.map(|denial| denial.rule), Some(Rule::Images));
    }

    #[test]
    fn a_denial_names_its_rule_first() {
        for rule in Rule::ALL {
            let denial = Denial { rule, why: "x".repeat(200) };
            assert_eq!(Rule::of(&denial.text()), Some(rule));
        }
        assert_eq!(Rule::of("weather: rain"), None);
    }

    #[test]
    fn what_is_shut_says_until_when_and_is_denied_for_good_by_nothing() {
        let opens = Text::cut("2026-11-28T22:00:00+01:00");
        let hours = Permit {
            hours: Text::cut("22:00-06:00"),
            shut: Some(Shut::Hours(opens.clone())),
            ..Permit::default()
        };
        let rate = Permit { rate: 40, shut: Some(Shut::Rate(opens)), ..Permit::default() };
        for (permit, text) in [
            (hours, "hours: it opens at 2026-11-28T22:00:00+01:00; its hours are 22:00-06:00"),
            (rate, "rate: it opens at 2026-11-28T22:00:00+01:00; 40 chunks an hour are permitted"),
        ] {
            let denial = permit.shut().unwrap();
            assert_eq!(denial.to_string(), text);
            assert!(denial.rule.passes());
            assert_eq!(permit.denies(&ASKS), None);
        }
        assert_eq!(Permit::default().shut(), None);
    }
}
