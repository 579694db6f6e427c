//! `tropa machines --test A B`: all live tests of one pair, now; and what `--why` says of tests.

use std::fmt::Write as _;

use serde::Serialize;
use tropa_proto::{
    id::{AgentId, hex},
    roster::{Install, View},
};

use super::{LiveTests, Outcome, Tested, Trial, is_declared, pair};
use crate::{
    exit::{Exit, Failed},
    members::Members,
    table::Table,
    terminal::escaped,
};

/// The object that `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct PairReport {
    /// The version of this object.
    pub schema: &'static str,
    /// The two agents, in their short form: A and B of the tests.
    pub agents: [String; 2],
    /// Their names for people.
    pub labels: [String; 2],
    /// The tests, in the order in which they ran.
    pub tests: Vec<Tested>,
    /// What the two are to each other now: `same kernel`, `same machine`, `unknown` or `distinct`.
    pub relation: String,
    /// `proof`, `operator`, `high`, `medium` or `low`.
    pub confidence: String,
    /// Every line that counted.
    pub reasons: Vec<String>,
}

/// Runs all live tests for two agents, named by label or by the beginning of their ids.
///
/// # Errors
/// [`Exit::Usage`] where a name is unknown or ambiguous, with the list of agents, or where the two cannot be tested,
/// with the reason; [`Exit::NothingCanRun`] where nobody is here.
pub async fn on_demand(members: &mut Members, names: [&str; 2]) -> Result<PairReport, Failed> {
    let usage = |why: String| Failed::new(Exit::Usage, format!("--test {} {}: {why}", names[0], names[1]));
    let view = members.view();
    if view.installs.is_empty() {
        return Err(Failed::new(
            Exit::NothingCanRun,
            "no agent answers; start one beside each Ollama: tropa-agent",
        ));
    }
    let [a, b] = [named(view, names[0]).map_err(usage)?, named(view, names[1]).map_err(usage)?];
    let trial = Trial::of(view, a, b, true).map_err(usage)?;
    members.examine(&trial).await;
    let (view, live) = members.view_and_tests();
    let [one, other] = trial.agents;
    let label =
        |agent: AgentId| view.install(agent).map_or_else(|| agent.short(), |install| install.label.clone());
    let why = view.fusion.as_ref().and_then(|fusion| fusion.why(one, other));
    Ok(PairReport {
        schema: "tropa.live-tests/1",
        agents: [one.short(), other.short()],
        labels: [label(one), label(other)],
        tests: live.of(one, other).to_vec(),
        // One of the two has just left: nothing is known any more.
        relation: why.as_ref().map_or_else(|| "unknown".to_owned(), |why| why.relation.kind.to_string()),
        confidence: why.as_ref().map_or_else(|| "low".to_owned(), |why| why.relation.confidence.to_string()),
        reasons: why.map_or_else(Vec::new, |why| why.reasons.iter().map(ToString::to_string).collect()),
    })
}

/// What was tested about a pair, or why it is never tested, in lines for `--why`.
#[must_use]
pub fn notes(view: &View, live: &LiveTests, a: &Install, b: &Install) -> Vec<String> {
    let tests = live.of(a.agent, b.agent);
    if !tests.is_empty() {
        return tests.iter().map(ToString::to_string).collect();
    }
    let whose = match (is_declared(a), is_declared(b)) {
        (true, true) => Some("both"),
        (true, false) => Some(a.label.as_str()),
        (false, true) => Some(b.label.as_str()),
        (false, false) => None,
    };
    if let Some(whose) = whose {
        return vec![format!("not tested live: the hardware of {whose} is declared")];
    }
    let proposed = view.fusion.iter().flat_map(|fusion| fusion.tests_to_run());
    let asked = pair(a.agent, b.agent);
    if proposed.into_iter().any(|test| [test.a, test.b] == asked) {
        vec![format!(
            "live tests may settle it: tropa machines --test {} {}",
            a.agent.short(),
            b.agent.short()
        )]
    } else {
        Vec::new()
    }
}

impl PairReport {
    /// Writes the report for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let [a, b] = [0, 1].map(|at| format!("{} ({})", escaped(&self.labels[at]), self.agents[at]));
        let _ = writeln!(text, "A is {a}, B is {b}\n");
        let mut table = Table::new(["TEST", "OUTCOME", "SEEN"]);
        for tested in &self.tests {
            table.row([tested.test, tested.outcome.text(), &tested.detail]);
        }
        let _ = writeln!(text, "{table}");
        let reasons = self.reasons.join(", ");
        let _ = writeln!(text, "\n{} ({}): {}", self.relation, self.confidence, escaped(&reasons));
        text
    }
}

impl Outcome {
    /// The word for it.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Undecided => "undecided",
        }
    }
}

impl std::fmt::Display for Tested {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} ({})", self.test, self.outcome.text(), self.detail)
    }
}

/// Finds an agent by its label, else by the beginning of its id, with or without `a-`.
pub(super) fn named(view: &View, name: &str) -> Result<AgentId, String> {
    let by_label: Vec<&Install> = view.installs.iter().filter(|install| install.label == name).collect();
    let digits = name.strip_prefix("a-").unwrap_or(name).to_lowercase();
    let by_id = || view.installs.iter().filter(|install| hex(&install.agent.0).starts_with(&digits));
    let found = if by_label.is_empty() && !digits.is_empty() { by_id().collect() } else { by_label };
    match found.as_slice() {
        [one] => Ok(one.agent),
        [] => Err(format!(
            "no agent is called {name}; there are {}",
            list(&view.installs.iter().collect::<Vec<_>>())
        )),
        several => Err(format!("{name} may be {}; say more of the id", list(several))),
    }
}

fn list(installs: &[&Install]) -> String {
    // As many digits as the short form has are not enough where it is ambiguous.
    let names =
        installs.iter().map(|install| format!("{} (a-{})", install.label, &hex(&install.agent.0)[..8]));
    names.collect::<Vec<_>>().join(", ")
}
