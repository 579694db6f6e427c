//! `tropa mesh new`, `join` and `resalt`: the file that makes several machines one mesh.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tropa_proto::secret::MeshSecret;

use crate::{
    args::MeshCommand,
    exit::{Exit, Failed, OrExit as _, Outcome},
    settings::Settings,
    stdout::print,
};

/// A secret file is two short lines; what is longer is something else.
const MAX_INPUT: u64 = 4096;

/// Makes or joins a mesh.
///
/// # Errors
/// When a secret is there already, what comes on stdin is none, or the file cannot be written.
pub fn mesh(command: MeshCommand, settings: &Settings) -> Outcome {
    match command {
        MeshCommand::New { file } => new(&place(file, settings)?),
        MeshCommand::Resalt { old, new } => resalt(&old, &new),
        MeshCommand::Join { file } => join(&place(file, settings)?),
    }
}

fn place(file: Option<PathBuf>, settings: &Settings) -> Result<PathBuf, Failed> {
    let file = file.unwrap_or_else(|| settings.secret_file());
    if file.exists() {
        let message = format!(
            "{} is there already: this machine is in a mesh; to leave it, remove the file and restart the agent",
            file.display()
        );
        return Err(Failed::new(Exit::Io, message));
    }
    Ok(file)
}

fn new(file: &Path) -> Outcome {
    let secret = MeshSecret::generate().context("making a mesh secret").or_exit(Exit::Io)?;
    secret.write_new(file).with_context(|| format!("writing {}", file.display())).or_exit(Exit::Io)?;
    let path = file.display();
    print(&format!(
        "wrote {path}

Everybody who has this file may submit and execute work, and reads what runs on their machine.
On each other machine, run:

  ssh THIS-MACHINE cat {path} | tropa mesh join

Then start the agent beside each Ollama, here too (a running one must be started again):

  tropa-agent

On one LAN they find each other. Elsewhere name one that listens: tropa-agent --peer HOST:11634
See who is there, and which installs are the same hardware: tropa machines --why"
    ))?;
    Ok(Exit::Done)
}

fn resalt(old: &Path, new: &Path) -> Outcome {
    let secret = MeshSecret::read(old).context("reading the mesh secret").or_exit(Exit::Input)?;
    if secret.former_salt().is_some() {
        let message = format!(
            "{} has a former id-salt already: end that replacement first, by removing its line on every machine",
            old.display()
        );
        return Err(Failed::new(Exit::Input, message));
    }
    let resalted = secret.resalted().context("making a new id-salt").or_exit(Exit::Io)?;
    resalted.write_new(new).with_context(|| format!("writing {}", new.display())).or_exit(Exit::Io)?;
    let (old, new) = (old.display(), new.display());
    print(&format!(
        "wrote {new}

It admits to the same mesh as {old}, and hardware ids are published under both salts.
On each machine, one after the other, put it in the place of the old one and restart the agent.
`tropa machines` counts the same machines all the while.

When all have it, after a week at the latest, remove the line `former-id-salt` on each and restart again.
Rules that name an id (`ignore`) must then name the new one: see `tropa machines --json`."
    ))?;
    Ok(Exit::Done)
}

fn join(file: &Path) -> Outcome {
    let mut text = String::new();
    let read = std::io::stdin().take(MAX_INPUT).read_to_string(&mut text);
    read.context("reading the secret from stdin").or_exit(Exit::Input)?;
    let secret = MeshSecret::parse(&text)
        .context("what came on stdin is no mesh secret; pass the file that `tropa mesh new` wrote")
        .or_exit(Exit::Input)?;
    secret.write_new(file).with_context(|| format!("writing {}", file.display())).or_exit(Exit::Io)?;
    print(&format!("wrote {}\nNow start the agent beside Ollama: tropa-agent", file.display()))?;
    Ok(Exit::Done)
}
