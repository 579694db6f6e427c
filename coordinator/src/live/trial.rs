//! Asks two agents, step by step, and has the answers judged.

use std::time::Duration;

use tokio::time::timeout;
use tropa_proto::{
    id::{AgentId, Incarnation},
    mesh::Mesh,
    message::{Answer, Counters, LiveFinding, LiveStep, Question},
};

use super::{Exchange, Findings, Outcome, Round, Tested, Trial, clocks, judge::best, sandwich};
use crate::clock::Clock;

/// How long one step may take: an agent answers within milliseconds, or its machine has no time for tests.
const STEP_LIMIT: Duration = Duration::from_secs(5);

/// Rounds of the sandwich (`identity.md` §9).
const ROUNDS: usize = 3;

/// Exchanges of a run, of which the best counts, and runs (`identity.md` §9).
const EXCHANGES: usize = 8;
const RUNS: usize = 2;

impl Trial {
    /// Runs the tests: the rendezvous, and the sandwich where it did not prove anything; a thorough trial runs both
    /// and the clocks. Takes milliseconds on a local network, and 5 s for every step that is not answered.
    pub async fn run(&self, mesh: &Mesh) -> Findings {
        let mut findings = Findings::default();
        let met = self.rendezvous(mesh).await;
        findings.facts.rendezvous = met.outcome == Outcome::Passed;
        findings.tests.push(met);
        if self.thorough {
            let (tested, clock) = match self.exchanges(mesh).await {
                Ok(runs) => clocks(&runs),
                Err(why) => (Tested::new("clock offset", Outcome::Undecided, why), None),
            };
            findings.facts.clock = clock;
            findings.tests.push(tested);
        }
        if self.thorough || !findings.facts.rendezvous {
            let (tested, verdict) = match self.rounds(mesh).await {
                Ok(rounds) => sandwich(&rounds),
                Err(why) => (Tested::new("counter sandwich", Outcome::Undecided, why), None),
            };
            findings.facts.sandwich = verdict;
            findings.tests.push(tested);
        }
        findings
    }

    async fn rendezvous(&self, mesh: &Mesh) -> Tested {
        let undecided = |why: String| Tested::new("rendezvous", Outcome::Undecided, why);
        let (mut place, mut nonce) = ([0; 16], [0; 32]);
        if getrandom::fill(&mut place).and_then(|()| getrandom::fill(&mut nonce)).is_err() {
            return undecided("the system has no random bytes".to_owned());
        }
        match self.step(mesh, 0, LiveStep::Offer { place, nonce }).await {
            Ok(LiveFinding::Offered) => {}
            Ok(other) => return undecided(unexpected(&other)),
            Err(why) => return undecided(why),
        }
        match self.step(mesh, 1, LiveStep::Meet { place }).await {
            Ok(LiveFinding::Met(brought)) if brought == nonce => {
                Tested::new("rendezvous", Outcome::Passed, "B met A at a name that only their kernel has")
            }
            Ok(LiveFinding::Met(_)) => undecided("B met somebody else at that name".to_owned()),
            // Another kernel, or another network namespace of this one.
            Ok(other) => undecided(unexpected(&other)),
            Err(why) => undecided(why),
        }
    }

    async fn rounds(&self, mesh: &Mesh) -> Result<Vec<Round>, String> {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            rounds.push(Round {
                before: self.counters(mesh, 0).await?,
                between: self.counters(mesh, 1).await?,
                after: self.counters(mesh, 0).await?,
            });
        }
        Ok(rounds)
    }

    async fn counters(&self, mesh: &Mesh, which: usize) -> Result<Counters, String> {
        let found = self.step(mesh, which, LiveStep::Counters).await?;
        let otherwise = unexpected(&found);
        if let LiveFinding::Counters(counters) = found { Ok(counters) } else { Err(otherwise) }
    }

    /// Both agents in turn, so that a clock of ours that is stepped spoils one run and not both.
    async fn exchanges(&self, mesh: &Mesh) -> Result<Vec<[Vec<Exchange>; 2]>, String> {
        let mut runs = Vec::new();
        for _ in 0..RUNS {
            let mut run = [Vec::new(), Vec::new()];
            for _ in 0..EXCHANGES {
                for (which, exchanges) in run.iter_mut().enumerate() {
                    let asked_ns = Clock::wall_ns();
                    let found = self.step(mesh, which, LiveStep::Clock).await?;
                    let answered_ns = Clock::wall_ns();
                    let LiveFinding::Clock { received_ns, sent_ns } = found else {
                        return Err(unexpected(&found));
                    };
                    exchanges.push(Exchange { asked_ns, received_ns, sent_ns, answered_ns });
                }
            }
            runs.push(run);
        }
        Ok(runs)
    }

    async fn step(&self, mesh: &Mesh, which: usize, step: LiveStep) -> Result<LiveFinding, String> {
        let (agent, run) = (self.agents[which], self.incarnations[which]);
        let name = ["A", "B"][which];
        match timeout(STEP_LIMIT, ask(mesh, agent, run, step)).await {
            Ok(answered) => answered.map_err(|why| format!("{name} {why}")),
            Err(_elapsed) => Err(format!("{name} did not answer in time")),
        }
    }
}

/// Asks one run of an agent whose traffic arrives through its machine itself; nothing where it does not say.
pub async fn ask_neighbours(mesh: &Mesh, agent: AgentId, run: Incarnation) -> Option<Vec<AgentId>> {
    match timeout(STEP_LIMIT, ask(mesh, agent, run, LiveStep::Neighbours)).await {
        Ok(Ok(LiveFinding::Neighbours(agents))) => Some(agents.into_vec()),
        Ok(Ok(other)) => {
            tracing::debug!(
                agent = agent.short(),
                why = unexpected(&other),
                "an agent does not name neighbours"
            );
            None
        }
        Ok(Err(why)) => {
            tracing::debug!(agent = agent.short(), why, "an agent does not name neighbours");
            None
        }
        Err(_elapsed) => None,
    }
}

/// How far the clock of an agent is ahead of this machine's, in nanoseconds, give or take half of the time that the
/// question took; `None` where it does not tell.
pub async fn ask_clock(mesh: &Mesh, agent: AgentId, run: Incarnation) -> Option<i128> {
    let asked_ns = Clock::wall_ns();
    let found = timeout(STEP_LIMIT, ask(mesh, agent, run, LiveStep::Clock)).await.ok()?.ok()?;
    let answered_ns = Clock::wall_ns();
    let LiveFinding::Clock { received_ns, sent_ns } = found else { return None };
    best(&[Exchange { asked_ns, received_ns, sent_ns, answered_ns }]).map(|(offset, _)| offset)
}

async fn ask(mesh: &Mesh, agent: AgentId, run: Incarnation, step: LiveStep) -> Result<LiveFinding, String> {
    let asked = getrandom::u64().map_err(|error| error.to_string())?;
    match mesh.ask(agent, Question::LiveTest { id: asked, step }).await {
        Ok(Answer::LiveTest { id, incarnation, finding }) if id == asked => {
            if incarnation == run {
                Ok(finding)
            } else {
                Err("has been restarted meanwhile".to_owned())
            }
        }
        Ok(Answer::LiveTest { .. } | Answer::Roster { .. } | Answer::Description(_)) => {
            Err("answered another question".to_owned())
        }
        Ok(Answer::Nothing) => Err("takes no live tests".to_owned()),
        Err(error) => Err(format!("could not be asked: {error}")),
    }
}

fn unexpected(finding: &LiveFinding) -> String {
    match finding {
        LiveFinding::Cannot(why) => why.to_string(),
        LiveFinding::Offered
        | LiveFinding::Met(_)
        | LiveFinding::Clock { .. }
        | LiveFinding::Counters(_)
        | LiveFinding::Neighbours(_) => "an answer to another question".to_owned(),
    }
}
