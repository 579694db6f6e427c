//! What a check finds (`conventions.md` §4).

use std::path::Path;

use serde::Serialize;

use crate::machines::WarningRow;

/// How bad it is. Order is the order of display.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// Something does not work until somebody mends it.
    Fail,
    /// It works, and is worth a look.
    Warn,
    /// It was looked at and is in order.
    Ok,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// How bad it is.
    pub(super) level: Level,
    /// Its stable code.
    pub(super) code: &'static str,
    /// What is so.
    pub(super) what: String,
    /// Why, or what follows; empty where that is said already.
    pub(super) why: String,
    /// What mends it, where there is one a command to copy; empty where nothing need be done.
    pub(super) fix: String,
}

impl Finding {
    /// Something does not work.
    pub(super) fn fail(code: &'static str, what: impl Into<String>) -> Self {
        Self::new(Level::Fail, code, what.into())
    }

    /// Something is worth a look.
    pub(super) fn warn(code: &'static str, what: impl Into<String>) -> Self {
        Self::new(Level::Warn, code, what.into())
    }

    /// Something is in order.
    pub(super) fn ok(code: &'static str, what: impl Into<String>) -> Self {
        Self::new(Level::Ok, code, what.into())
    }

    /// Adds why.
    pub(super) fn because(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    /// Adds what mends it.
    pub(super) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }

    fn new(level: Level, code: &'static str, what: String) -> Self {
        Self { level, code, what, why: String::new(), fix: String::new() }
    }
}

/// What `tropa machines` and plans warn of; what is information only is in order.
impl From<&WarningRow> for Finding {
    fn from(row: &WarningRow) -> Self {
        let level = if row.information { Level::Ok } else { Level::Warn };
        Self::new(level, row.code, row.text.clone()).fix(row.fix)
    }
}

/// Names the first three and counts the others.
pub(super) fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    /// What fits on a line.
    const NAMED: usize = 3;
    let names: Vec<&str> = names.into_iter().collect();
    let shown = names[..names.len().min(NAMED)].join(", ");
    match names.len() {
        more @ 4.. => format!("{shown} and {} more", more - NAMED),
        _ => shown,
    }
}

/// A path as a shell takes it: in quotes where it has anything else than letters, digits and a few harmless marks.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let harmless = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,".contains(c);
    if text.chars().all(harmless) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
