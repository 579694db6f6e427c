//! The configuration: its files, what they come to, and how the operator's rules fare.

use tropa_proto::system::{self, Access};

use super::{
    Here, Seen,
    finding::{Finding, quoted},
};
use crate::{
    exit::Exit,
    rules::Standing,
    settings::{ConfigFile, FileError},
    words::count,
};

/// The files: read, or what is wrong and in which line.
pub(super) fn files(here: &Here) -> Vec<Finding> {
    let wrong = here.wrong.iter().map(unusable);
    let open = here.chosen.files.iter().filter_map(open_to_others);
    let read: Vec<String> = here
        .chosen
        .files
        .iter()
        .map(|file| format!("{} {}", file.source.name(), file.path.display()))
        .collect();
    let fine = here.wrong.is_empty().then(|| {
        let what = if read.is_empty() {
            "no configuration file, so all defaults".to_owned()
        } else {
            read.join(", ")
        };
        Finding::ok("config.file", what)
    });
    wrong.chain(open).chain(fine).collect()
}

fn unusable(error: &FileError) -> Finding {
    let path = error.path().display();
    let file = quoted(error.path());
    let edit = |line: u32| format!("${{EDITOR:-vi}} +{line} {file}");
    let look = format!("ls -l {file}; or name another with --config");
    let (what, fix) = match error {
        FileError::Read { source, .. } => (format!("{path} cannot be read: {source}"), look),
        FileError::Large { .. } => (error.to_string(), look),
        FileError::Invalid { line: Some(line), what, .. } => {
            (format!("{path} line {line}: {what}"), edit(*line))
        }
        FileError::Invalid { line: None, what, .. } => (format!("{path}: {what}"), edit(1)),
    };
    let why = "no command runs until it is mended, so the mesh was not looked at";
    Finding::fail("config.file", what).because(why).fix(fix)
}

/// Whoever can write the file says which machines are one, and which agents are asked.
fn open_to_others(file: &ConfigFile) -> Option<Finding> {
    let path = &file.path;
    let found = std::fs::metadata(path).ok()?;
    match system::access(path, &found) {
        Access::Bits { mode, .. } if mode & 0o022 != 0 => {
            let what = format!("{} can be written by others (mode {mode:04o})", path.display());
            let finding = Finding::warn("config.open", what);
            let why = "whoever does says which machines are one and whom this command asks";
            Some(finding.because(why).fix(format!("chmod go-w {}", quoted(path))))
        }
        Access::Bits { .. } | Access::Profile | Access::Unknown => None,
    }
}

/// The values: each can be used. What the secret is like is told of the secret.
pub(super) fn values(here: &Here) -> Vec<Finding> {
    match &here.settings {
        Err(failed) if failed.exit == Exit::NotAuthorised => Vec::new(),
        Err(failed) => {
            let why = "no command runs until it is mended, so the mesh was not looked at";
            let fix = "tropa doctor --json shows under `settings` where each value came from";
            vec![Finding::fail("config.value", format!("{:#}", failed.error)).because(why).fix(fix)]
        }
        Ok(_) => {
            let set =
                here.chosen.settings.iter().filter(|setting| setting.source.name() != "default").count();
            let all = count(here.chosen.settings.len(), "setting");
            vec![Finding::ok(
                "config.value",
                format!("{all}, {set} of them not the default (--json shows each)"),
            )]
        }
    }
}

/// The operator's rules: each is followed, or waits for agents that are not here.
pub(super) fn rules(seen: &Seen) -> Vec<Finding> {
    let Some(rules) = &seen.machines.rules else { return Vec::new() };
    let file = rules.file.display();
    let not_followed: Vec<Finding> = rules
        .rules
        .iter()
        .filter_map(|row| {
            let Standing::NotFollowed(why) = &row.standing else { return None };
            let what = format!("{file} line {}: the rule {} is not followed", row.line, row.rule);
            let fix = format!("${{EDITOR:-vi}} +{} {}", row.line, quoted(&rules.file));
            Some(Finding::warn("config.rule", what).because(why.clone()).fix(fix))
        })
        .collect();
    if !not_followed.is_empty() {
        return not_followed;
    }
    let waits = rules.rules.iter().filter(|row| matches!(row.standing, Standing::Waits(_))).count();
    let waiting =
        if waits == 0 { String::new() } else { format!(", {waits} of them about agents that are not here") };
    vec![Finding::ok("config.rule", format!("{} can be followed{waiting}", count(rules.rules.len(), "rule")))]
}
