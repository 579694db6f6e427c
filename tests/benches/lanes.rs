//! How long jobs take over the least time in which these lanes could do them, with the real programs: coordinator,
//! agents, journal and connections, beside doubles that only wait. `makespan` asks the same of the scheduler alone.
//!
//! `cargo bench -p tropa-tests --bench lanes [-- quick]`. A lane is a declared machine with a double of its own, all on
//! this box: where it has fewer cores than programs that want one, what they wait for each other is in the figures. The
//! lower bound is the better of all work by all speed and the longest chunk on the fastest lane, of the tokens that were
//! really written; the makespan lies between the first start and the last end that the doubles saw.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use tropa_tests::harness::{Hardware, Programs, Running, World, results};

/// A token on a lane of speed 1, the fastest that there is, in seconds: an answer of the double, 16 to 63 tokens, takes
/// 0.4 s there. Shorter ones would measure the processors of this box, which all lanes share.
const TOKEN_S: f64 = 0.01;

/// What a token of a prompt takes, as a share of one of an answer: engines read much faster than they write.
const READS: f64 = 0.01;

/// How much slower a straggler becomes.
const SLOWER: f64 = 10.0;

/// Lanes of these speeds, none above 1, with so many chunks for each.
struct Set<'a> {
    name: &'a str,
    speeds: &'a [f64],
    each: usize,
    aim: &'a str,
    /// The second lane becomes [`SLOWER`] after so many chunks.
    slows_after: Option<usize>,
}

/// How one job went.
struct Went {
    seconds: f64,
    bound: f64,
    /// Attempts at engines beyond one for each chunk.
    extra: usize,
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|arg| arg == "quick");
    say("makespan over the lower bound, real programs with doubles\n");
    say(&row(["lanes", "chunks", "aim", "unknown", "known"].map(str::to_owned)));
    let equal: &[usize] = if quick { &[2] } else { &[2, 4, 8, 16] };
    for lanes in equal {
        for (each, aim) in if quick { &[(3, "-")][..] } else { &[(30, "1.03"), (3, "-")] } {
            let name = format!("{lanes} equal");
            compare(&Set { name: &name, speeds: &vec![1.0; *lanes], each: *each, aim, slows_after: None })?;
        }
    }
    for (each, aim) in if quick { &[(3, "-")][..] } else { &[(30, "1.05"), (3, "-")] } {
        compare(&Set { name: "8:4:1", speeds: &[1.0, 0.5, 0.125], each: *each, aim, slows_after: None })?;
    }
    say(&format!("\none of four equal lanes becomes {SLOWER} times slower (aim 1.25)\n"));
    say(&row(["slow after", "chunks", "backups", "without", "extra runs"].map(str::to_owned)));
    for each in if quick { &[3][..] } else { &[30, 10, 3] } {
        for after in [0, each / 2] {
            straggler(*each, after)?;
        }
    }
    Ok(())
}

/// Runs the job twice on one mesh: with speeds that nobody knows, and with those that the first has learned.
fn compare(set: &Set<'_>) -> Result<()> {
    let (world, _mesh) = set.mesh()?;
    let (unknown, known) = (set.run(&world, &[])?, set.run(&world, &[])?);
    say(&row([
        set.name.to_owned(),
        set.chunks().to_string(),
        set.aim.to_owned(),
        format!("{:.3}", unknown.over()),
        format!("{:.3}", known.over()),
    ]));
    Ok(())
}

/// Four lanes of which one becomes slow, with backup attempts and without; each on a mesh of its own.
fn straggler(each: usize, after: usize) -> Result<()> {
    let set = Set { name: "", speeds: &[1.0; 4], each, aim: "1.25", slows_after: Some(after) };
    let went = [&[][..], &["--no-backups"]].map(|more| {
        let (world, _mesh) = set.mesh()?;
        set.run(&world, more)
    });
    let [with, without] = went;
    let (with, without) = (with?, without?);
    say(&row([
        format!("{after} of its chunks"),
        set.chunks().to_string(),
        format!("{:.3}", with.over()),
        format!("{:.3}", without.over()),
        with.extra.to_string(),
    ]));
    Ok(())
}

impl Set<'_> {
    fn chunks(&self) -> usize {
        self.speeds.len() * self.each
    }

    /// A mesh of declared machines, each with a double as fast as its lane.
    fn mesh(&self) -> Result<(World, Vec<Running>)> {
        let world = World::new(Programs {
            tropa: env!("CARGO_BIN_EXE_tropa-under-test").into(),
            agent: env!("CARGO_BIN_EXE_tropa-agent-under-test").into(),
            double: env!("CARGO_BIN_EXE_ollama-double").into(),
        })?;
        let mut running = Vec::new();
        for (number, speed) in (1..).zip(self.speeds) {
            let micros = |seconds: f64| format!("{:.0}", seconds * 1e6 / speed);
            let (decode, prefill) = (micros(TOKEN_S), micros(TOKEN_S * READS));
            let mut manners = vec!["--decode-us".to_owned(), decode, "--prefill-us".to_owned(), prefill];
            if let Some(after) = self.slows_after.filter(|_| number == 2) {
                // A rule that changes nothing, until it is used up.
                let sound = (after > 0).then(|| format!("no_reason*{after}"));
                for rule in sound.into_iter().chain([format!("slow:factor={SLOWER}")]) {
                    manners.extend(["--fault".to_owned(), rule]);
                }
            }
            let manners: Vec<&str> = manners.iter().map(String::as_str).collect();
            let double = world.double(&format!("lane{number}"), &manners)?;
            let label = format!("m{number}");
            running.push(world.agent(
                &label,
                double.address,
                Hardware::Declared(number),
                &["--width", "1"],
            )?);
            running.push(double);
        }
        Ok((world, running))
    }

    fn run(&self, world: &World, more: &[&str]) -> Result<Went> {
        let text: Vec<String> = (0..self.chunks()).map(|n| format!("prompt {n} about a llama")).collect();
        let input = world.file("prompts.txt", &text.join("\n"))?;
        let before = world.witness()?.timeline().len();
        let mut command = world.tropa(&["run", "-m", "tiny", "--max-tokens", "64", "--allow-declared"]);
        let output = command.args(more).arg(input).stderr(Stdio::piped()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the job failed: {said}");
        let rows = results(&String::from_utf8_lossy(&output.stdout))?;
        ensure!(rows.len() == self.chunks(), "{} results of {}: {said}", rows.len(), self.chunks());
        let tokens = |row: &serde_json::Value, key: &str| row["tropa"][key].as_f64().context("a count");
        let mut work = Vec::new();
        for row in &rows {
            work.push(TOKEN_S * (tokens(row, "output_tokens")? + READS * tokens(row, "prompt_tokens")?));
        }
        let witness = world.witness()?;
        let seen = witness.timeline().get(before..).context("the doubles forget nothing")?;
        let first = seen.iter().map(|work| work.start_ns).min().context("nothing ran")?;
        let last = seen.iter().map(|work| work.end_ns).max().context("nothing ran")?;
        let seconds = (last - first) as f64 / 1e9;
        Ok(Went { seconds, bound: self.bound(&work), extra: seen.len().saturating_sub(rows.len()) })
    }

    /// The least time for chunks of so much work, in seconds on a lane of speed 1.
    fn bound(&self, work: &[f64]) -> f64 {
        let speed: f64 = self.speeds.iter().sum();
        let fastest = self.speeds.iter().copied().fold(0.0, f64::max);
        let longest = work.iter().copied().fold(0.0, f64::max) / fastest;
        let all: f64 = work.iter().sum();
        let Some(after) = self.slows_after else { return (all / speed).max(longest) };
        // All of them until the straggler has done so many of the usual size, then the others and what is left of it.
        let sound = all / work.len() as f64 * after as f64;
        let slow = speed - 1.0 + 1.0 / SLOWER;
        (sound + (all - speed * sound).max(0.0) / slow).max(longest)
    }
}

impl Went {
    fn over(&self) -> f64 {
        self.seconds / self.bound
    }
}

fn row(cells: [String; 5]) -> String {
    let [name, rest @ ..] = cells;
    rest.iter().fold(format!("{name:<20}"), |line, cell| format!("{line}{cell:>12}"))
}

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn say(line: &str) {
    println!("{line}");
}
