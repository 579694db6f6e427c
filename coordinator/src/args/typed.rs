//! Which arguments were typed and which came from a variable: what has been read does not show it any more.

use std::collections::BTreeMap;

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, parser::ValueSource};

use super::Args;

/// From where an argument came that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was typed.
    Flag,
    /// Its variable says it.
    Variable,
}

/// Where each argument that was given came from.
#[derive(Clone, Debug, Default)]
pub struct Typed(BTreeMap<String, Origin>);

impl Args {
    /// Reads what was typed, with where each of it came from.
    ///
    /// # Errors
    /// For wrong usage, and for help and the version, which are no arguments to go on with.
    pub fn read() -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(std::env::args_os())?;
        let mut args = Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        args.global.typed = Typed::of(&matches);
        Ok(args)
    }
}

impl Typed {
    /// Takes the names of arguments, with underscores, and where they came from.
    pub fn new<'a>(given: impl IntoIterator<Item = (&'a str, Origin)>) -> Self {
        Self(given.into_iter().map(|(id, origin)| (id.to_owned(), origin)).collect())
    }

    /// Reads it off what was read, that of the subcommands too.
    pub(super) fn of(matches: &ArgMatches) -> Self {
        let mut given = matches.subcommand().map_or_else(Self::default, |(_, inner)| Self::of(inner));
        for id in matches.ids() {
            let origin = match matches.value_source(id.as_str()) {
                Some(ValueSource::CommandLine) => Origin::Flag,
                Some(ValueSource::EnvVariable) => Origin::Variable,
                // A default; what else there may be is new to clap.
                Some(_) | None => continue,
            };
            given.0.insert(id.as_str().to_owned(), origin);
        }
        given
    }

    /// Where an argument came from, by its name with underscores; `None` where it was not given.
    #[must_use]
    pub fn origin(&self, id: &str) -> Option<Origin> {
        self.0.get(id).copied()
    }
}
