//! Faults and how they are chosen: `mode[:key=value,..][@condition,..][*times]`.
//!
//! A mode with keys also takes its values in order (`stall:3,1000`). Conditions are `path=`, `model=`,
//! `prompt~` (contains), `nth=` (only the n-th match) and `p=` (probability, seeded). Without `path=` a mode
//! applies where it makes sense: `no_done` to chat and generate, `ps_waits` to `/api/ps`. The first rule that
//! matches and is not used up applies. Modes that describe the install itself (`version`, `skew`,
//! `digest_changes`, `cloud_tag`, `vanish`) apply beside it.
//!
//! Wherever a mode has `after`, that many lines (in a stream) or work requests (`vanish`, `digest_changes`) pass
//! first.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::modes::{Row, Scope, TABLE};
use super::text::Draw;

pub use super::modes::Mode;

/// Marks in prompts that are remembered, so that `*times` in a mark works: far more than a test writes.
const MAX_MARKS: usize = 10_000;

/// A fault that applies to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What to do.
    pub mode: Mode,
    values: Vec<String>,
}

impl Fault {
    /// The numeric value of `key`; 0 for a key that the mode does not have.
    pub fn number(&self, key: &str) -> i64 {
        self.text(key).parse().unwrap_or(0)
    }

    /// The value of `key`; empty for a key that the mode does not have.
    pub fn text(&self, key: &str) -> &str {
        let place = self.mode.row().keys.iter().position(|(name, _)| *name == key);
        place.and_then(|nth| self.values.get(nth)).map_or("", String::as_str)
    }
}

/// One line of the grammar.
#[derive(Debug, Clone)]
pub struct Rule {
    source: String,
    fault: Fault,
    path: Option<String>,
    model: Option<String>,
    prompt: Option<String>,
    nth: Option<u64>,
    chance: Option<f64>,
    times: Option<u64>,
    matched: u64,
    used: u64,
}

impl FromStr for Rule {
    type Err = String;

    /// Parses one rule; the error names the part that is wrong.
    fn from_str(source: &str) -> Result<Self, String> {
        let fail = |what: String| format!("fault `{source}`: {what}");
        let (rest, times) = match source.rsplit_once('*') {
            None => (source, None),
            Some((rest, count)) => match count.parse::<u64>() {
                Ok(count) if count > 0 => (rest, Some(count)),
                _ => return Err(fail(format!("`*{count}` is not a number of times"))),
            },
        };
        let (call, conditions) = rest.split_once('@').map_or((rest, None), |(call, all)| (call, Some(all)));
        let (name, values) = call.split_once(':').map_or((call, None), |(name, values)| (name, Some(values)));
        let row = TABLE.iter().find(|row| row.name == name);
        let row = row.ok_or_else(|| fail(format!("unknown mode `{name}`")))?;
        let values = values_of(row, values).map_err(fail)?;
        let mut rule = Self {
            source: source.to_owned(),
            fault: Fault { mode: row.mode, values },
            path: None,
            model: None,
            prompt: None,
            nth: None,
            chance: None,
            times,
            matched: 0,
            used: 0,
        };
        for condition in conditions.into_iter().flat_map(|all| all.split(',')) {
            rule.add(condition).map_err(fail)?;
        }
        Ok(rule)
    }
}

fn values_of(row: &Row, given: Option<&str>) -> Result<Vec<String>, String> {
    let mut values: Vec<String> = row.keys.iter().map(|(_, default)| (*default).to_owned()).collect();
    for (nth, part) in given.into_iter().flat_map(|all| all.split(',')).enumerate() {
        let (place, value) = match part.split_once('=') {
            Some((key, value)) => {
                let place = row.keys.iter().position(|(name, _)| *name == key);
                (place.ok_or_else(|| format!("mode `{}` has no key `{key}`", row.name))?, value)
            }
            None if nth < row.keys.len() => (nth, part),
            None => return Err(format!("mode `{}` has no place for the value `{part}`", row.name)),
        };
        let (key, default) = row.keys[place];
        if default.parse::<i64>().is_ok() && value.parse::<i64>().is_err() {
            return Err(format!("`{key}` of `{}` is not a number: `{value}`", row.name));
        }
        values[place] = value.to_owned();
    }
    Ok(values)
}

impl Rule {
    fn add(&mut self, condition: &str) -> Result<(), String> {
        if let Some(part) = condition.strip_prefix("prompt~") {
            self.prompt = Some(part.to_owned());
            return Ok(());
        }
        let (key, value) =
            condition.split_once('=').ok_or_else(|| format!("`{condition}` is not a condition"))?;
        match key {
            "path" => {
                if !self.fault.mode.applies_to(value) && !matches!(self.fault.mode.row().scope, Scope::Work) {
                    return Err(format!("mode `{}` does not apply to `{value}`", self.fault.mode.name()));
                }
                self.path = Some(value.to_owned());
            }
            "model" => self.model = Some(value.to_owned()),
            "nth" => {
                let nth = value.parse().ok().filter(|nth| *nth > 0);
                self.nth = Some(nth.ok_or_else(|| format!("`nth` is not a number from 1: `{value}`"))?);
            }
            "p" => {
                let chance = value.parse().ok().filter(|chance| (0.0..=1.0).contains(chance));
                self.chance = Some(chance.ok_or_else(|| format!("`p` is not between 0 and 1: `{value}`"))?);
            }
            _ => return Err(format!("unknown condition `{key}`")),
        }
        Ok(())
    }

    /// Whether it applies to this request; counts matches and uses.
    fn take(&mut self, place: usize, request: &Asked<'_>, seed: u64) -> Option<Fault> {
        let elsewhere = match &self.path {
            Some(path) => path != request.path,
            None => !self.fault.mode.applies_to(request.path),
        };
        if elsewhere
            || self.times.is_some_and(|times| self.used >= times)
            || self.model.as_ref().is_some_and(|model| !model.eq_ignore_ascii_case(request.model))
            || self.prompt.as_ref().is_some_and(|part| !request.prompt.contains(part.as_str()))
        {
            return None;
        }
        self.matched += 1;
        let draw = || Draw::new(&[b"fault", &seed.to_le_bytes()]).number((place as u64) << 32 | self.matched);
        if self.nth.is_some_and(|nth| nth != self.matched)
            || self.chance.is_some_and(|chance| draw() as f64 / u64::MAX as f64 >= chance)
        {
            return None;
        }
        self.used += 1;
        Some(self.fault.clone())
    }
}

/// What a rule looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) path: &'a str,
    pub(crate) model: &'a str,
    pub(crate) prompt: &'a str,
}

/// The rules of one double, in order, and the marks that prompts brought.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    rules: Vec<Rule>,
    marks: BTreeMap<String, Rule>,
    cleared: Vec<String>,
    seed: u64,
    read_marks: bool,
}

impl Rules {
    /// No rules yet; `seed` decides probabilities, and `read_marks` whether prompts may bring rules.
    pub(crate) fn new(seed: u64, read_marks: bool) -> Self {
        Self { seed, read_marks, ..Self::default() }
    }

    pub(crate) fn add(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    /// Removes all rules; those that never applied are still unused.
    pub(crate) fn clear(&mut self) {
        self.cleared = self.unused();
        self.rules.clear();
    }

    /// Rules that never applied. One with a probability may well not.
    pub(crate) fn unused(&self) -> Vec<String> {
        let unused = self.rules.iter().filter(|rule| rule.used == 0 && rule.chance.is_none());
        self.cleared.iter().cloned().chain(unused.map(|rule| rule.source.clone())).collect()
    }

    /// The first fault that applies to this request, marks in the prompt first.
    pub(crate) fn pick(&mut self, request: &Asked<'_>) -> Option<Fault> {
        if self.read_marks
            && let Some(fault) = self.pick_mark(request)
        {
            return Some(fault);
        }
        let seed = self.seed;
        let on_request = |rule: &&mut Rule| rule.fault.mode.row().scope != Scope::Install;
        let mut rules = self.rules.iter_mut().filter(on_request).enumerate();
        rules.find_map(|(place, rule)| rule.take(place, request, seed))
    }

    fn pick_mark(&mut self, request: &Asked<'_>) -> Option<Fault> {
        let mut rest = request.prompt;
        while let Some(start) = rest.find("[[") {
            let inside = &rest[start + 2..];
            let end = inside.find("]]")?;
            let mark = &inside[..end];
            if !self.marks.contains_key(mark)
                && self.marks.len() < MAX_MARKS
                && let Ok(rule) = mark.parse::<Rule>()
            {
                self.marks.insert(mark.to_owned(), rule);
            }
            if let Some(rule) = self.marks.get_mut(mark)
                && let Some(fault) = rule.take(0, request, self.seed)
            {
                return Some(fault);
            }
            rest = &inside[end + 2..];
        }
        None
    }

    /// The fault of this mode that describes the install, if there is one for this request and it has begun.
    pub(crate) fn install(
        &mut self,
        mode: Mode,
        request: &Asked<'_>,
        begun: impl Fn(&Fault) -> bool,
    ) -> Option<Fault> {
        let seed = self.seed;
        let of_mode = |(_, rule): &(usize, &mut Rule)| rule.fault.mode == mode && begun(&rule.fault);
        let mut rules = self.rules.iter_mut().enumerate().filter(of_mode);
        rules.find_map(|(place, rule)| rule.take(place, request, seed))
    }

    /// Whether a rule of this mode is there and not used up; uses nothing.
    pub(crate) fn has(&self, mode: Mode) -> bool {
        let left = |rule: &Rule| rule.times.is_none_or(|times| rule.used < times);
        self.rules.iter().any(|rule| rule.fault.mode == mode && left(rule))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty() && !self.read_marks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(prompt: &str) -> Asked<'_> {
        Asked { path: "/api/chat", model: "m:latest", prompt }
    }

    #[test]
    fn every_mode_has_its_own_row() {
        for (place, row) in TABLE.iter().enumerate() {
            assert_eq!(row.mode as usize, place, "{}", row.name);
            assert!(row.name.parse::<Rule>().is_ok(), "{}", row.name);
        }
    }

    #[test]
    fn an_error_names_what_is_wrong() {
        for (source, named) in [
            ("no_dome", "unknown mode `no_dome`"),
            ("no_done:aftr=5", "no key `aftr`"),
            ("no_done:after=x", "`after` of `no_done` is not a number: `x`"),
            ("no_done:1,2", "no place for the value `2`"),
            ("no_done@modle=m", "unknown condition `modle`"),
            ("no_done@m", "`m` is not a condition"),
            ("no_done@nth=0", "`nth` is not a number from 1: `0`"),
            ("no_done@p=2", "`p` is not between 0 and 1: `2`"),
            ("no_done*x", "`*x` is not a number of times"),
            ("no_done@path=/api/tags", "does not apply to `/api/tags`"),
        ] {
            let error = source.parse::<Rule>().expect_err(source);
            assert!(error.contains(named) && error.contains(source), "{error}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_and_is_not_used_up_applies() {
        let mut rules = Rules::default();
        for source in ["no_done:after=5@model=M:latest,prompt~needle*1", "stall:2,70", "crash"] {
            rules.add(source.parse().unwrap());
        }
        let first = rules.pick(&chat("a needle")).unwrap();
        assert_eq!((first.mode, first.number("after")), (Mode::NoDone, 5));
        let second = rules.pick(&chat("a needle")).unwrap();
        assert_eq!((second.mode, second.number("after"), second.number("ms")), (Mode::Stall, 2, 70));
        assert_eq!(rules.unused(), ["crash"]);
        rules.clear();
        assert_eq!(rules.unused(), ["crash"]);
    }

    #[test]
    fn nth_counts_matches_and_a_mark_counts_its_times() {
        let mut rules = Rules { read_marks: true, ..Rules::default() };
        rules.add("crash@nth=2".parse().unwrap());
        assert_eq!(rules.pick(&chat("x")), None);
        assert_eq!(rules.pick(&chat("x")).unwrap().mode, Mode::Crash);
        assert_eq!(rules.pick(&chat("x")), None);
        assert_eq!(rules.pick(&chat("see [[no_done:after=5*1]]")).unwrap().mode, Mode::NoDone);
        assert_eq!(rules.pick(&chat("see [[no_done:after=5*1]]")), None);
    }

    #[test]
    fn a_probability_is_decided_by_the_seed() {
        let hits = |seed| {
            let mut rules = Rules { seed, ..Rules::default() };
            rules.add("crash@p=0.3".parse().unwrap());
            (0..1000).map(|_| rules.pick(&chat("x")).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(hits(7), hits(7));
        assert_ne!(hits(7), hits(8));
        let count = hits(7).iter().filter(|hit| **hit).count();
        assert!((250..350).contains(&count), "{count} of 1000");
    }
}
