//! Getting everybody together: the members of the mesh, or the agent that the command brings itself.

use anyhow::anyhow;
use tropa_proto::mesh::DialFailure;

use crate::{
    args::MachinesArgs,
    clock::Clock,
    exit::{Exit, Failed, OrExit as _, Outcome},
    live,
    machines::Report,
    members::Members,
    own_agent::OwnAgent,
    settings::Settings,
    speeds::Speeds,
    stdout::{print, print_json},
};

/// What brings the secret of an agent's mesh here, on the machine of that agent.
pub(crate) const TAKE_IN: &str = "cat ~/.config/tropa/mesh.secret | ssh HERE tropa mesh join";

/// Who is there.
#[derive(Debug)]
pub struct Assembly {
    /// The members of the mesh.
    pub members: Members,
    /// The agent of this process, where no other answered.
    pub own: Option<OwnAgent>,
}

impl Assembly {
    /// Joins the mesh under this key and waits until everybody who should be there has been heard; where nobody is,
    /// starts an agent beside the Ollama of this machine.
    ///
    /// # Errors
    /// [`Exit::NotAuthorised`] where whoever was named holds another secret, [`Exit::NothingCanRun`] where agents
    /// were named and none answers.
    pub async fn gather(settings: &Settings, key: [u8; 32], clock: Clock) -> Result<Self, Failed> {
        let mut members = Members::join(settings, key, clock).await?;
        members.gather(settings.wait).await;
        if members.is_empty() {
            refuse_if_named(&members, settings)?;
            return Self::alone(members, settings).await;
        }
        for (address, why) in members.failures() {
            tracing::warn!(%address, why = describe(why), "an agent could not be reached");
        }
        Ok(Self { members, own: None })
    }

    /// As [`Assembly::gather`], to look at what is there: whoever was named and does not answer is among
    /// [`Members::failures`], and refuses nothing.
    ///
    /// # Errors
    /// As [`Members::join`] and [`OwnAgent::start`].
    pub async fn look(settings: &Settings, key: [u8; 32], clock: Clock) -> Result<Self, Failed> {
        let mut members = Members::join(settings, key, clock).await?;
        members.gather(settings.wait).await;
        // An agent of this machine that is in another mesh is no reason to work without it.
        let elsewhere = members.failures().values().any(|why| *why == DialFailure::WrongSecret);
        if members.is_empty() && settings.peers.is_empty() && !elsewhere {
            return Self::alone(members, settings).await;
        }
        Ok(Self { members, own: None })
    }

    /// Starts an agent beside the Ollama of this machine.
    async fn alone(mut members: Members, settings: &Settings) -> Result<Self, Failed> {
        let own = OwnAgent::start(settings).await?;
        members.dial(own.address()).await;
        members.gather(settings.wait).await;
        Ok(Self { members, own: Some(own) })
    }

    /// Lets the own agent end in good order and leaves the mesh.
    pub async fn finish(self) {
        if let Some(own) = self.own {
            own.finish().await;
        }
        self.members.leave().await;
    }
}

/// A random key, for a command that submits nothing.
///
/// # Errors
/// When the operating system has no random bytes to give.
pub fn passing_key() -> Result<[u8; 32], Failed> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).or_exit(Exit::Io)?;
    Ok(key)
}

/// `tropa machines`: waits at most `--wait` for everybody, and as long again for the live tests that run by
/// themselves.
///
/// # Errors
/// As [`Assembly::gather`]; with `--test` as [`live::on_demand`].
pub async fn machines(args: &MachinesArgs, settings: &Settings, clock: Clock) -> Outcome {
    let mut assembly = Assembly::gather(settings, passing_key()?, clock).await?;
    if let Some([a, b]) = args.test.as_deref() {
        let tested = live::on_demand(&mut assembly.members, [a, b]).await;
        assembly.finish().await;
        let report = tested?;
        if settings.json {
            print_json(&report)?
        } else {
            print(&report.text())?
        }
        return Ok(Exit::Done);
    }
    assembly.members.settle(settings.wait).await;
    let rules = assembly.members.rules();
    let (view, live_tests) = assembly.members.view_and_tests();
    let mut report = Report::with(view, live_tests, rules);
    // Where the file cannot be read it is set aside, and the next job measures anew.
    report.add_widths(view, &Speeds::open(&settings.state).0);
    if args.why {
        report.add_scores();
    }
    assembly.finish().await;
    if settings.json {
        print_json(&report)?
    } else {
        print(&report.text(args.why))?
    }
    Ok(if report.machines.is_empty() { Exit::NothingCanRun } else { Exit::Done })
}

/// A user who named agents wants those, and not an agent of our own in their place.
fn refuse_if_named(members: &Members, settings: &Settings) -> Result<(), Failed> {
    if let Some((address, _)) = members.failures().iter().find(|(_, why)| **why == DialFailure::WrongSecret) {
        let error = anyhow!(
            "mesh.secret: the agent at {address} is in another mesh; on its machine, run `{TAKE_IN}`, or pass its \
             --mesh-secret-file"
        );
        return Err(error).or_exit(Exit::NotAuthorised);
    }
    if settings.peers.is_empty() {
        return Ok(());
    }
    let tried: Vec<String> =
        members.failures().iter().map(|(address, why)| format!("{address}: {}", describe(why))).collect();
    let error = anyhow!(
        "no agent answers at {} ({}); is tropa-agent running there, and does it listen on that address?",
        settings.peers.join(", "),
        if tried.is_empty() { "no answer in time".to_owned() } else { tried.join(", ") }
    );
    Err(error).or_exit(Exit::NothingCanRun)
}

/// Why a dial failed, in a few words.
pub(crate) fn describe(why: &DialFailure) -> String {
    match why {
        DialFailure::WrongSecret => "another mesh secret".to_owned(),
        DialFailure::Refused => "connection refused".to_owned(),
        DialFailure::Timeout => "no answer in time".to_owned(),
        DialFailure::Myself => "this command itself".to_owned(),
        DialFailure::Other(text) => text.clone(),
    }
}
