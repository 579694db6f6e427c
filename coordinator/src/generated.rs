//! Completions for shells and the manual pages, both made from the arguments, so that they never lag behind.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::{
    args::Args,
    exit::{Exit, OrExit as _, Outcome},
    stdout::print_bytes,
};

/// `tropa completions`.
///
/// # Errors
/// When stdout does not take them.
pub fn completions(shell: Shell) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "tropa", &mut text);
    print_bytes(&text)?;
    Ok(Exit::Done)
}

/// `tropa man`: the page of `tropa`, then those of its commands.
///
/// # Errors
/// When stdout does not take them.
pub fn man() -> Outcome {
    let mut command = Args::command();
    command.build();
    let mut text = Vec::new();
    let pages = std::iter::once(&command).chain(command.get_subcommands().filter(|sub| !sub.is_hide_set()));
    for page in pages {
        clap_mangen::Man::new(page.clone()).render(&mut text).or_exit(Exit::Io)?;
    }
    print_bytes(&text)?;
    Ok(Exit::Done)
}
