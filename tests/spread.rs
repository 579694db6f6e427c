//! Baselines: the same prompts sent as tools send them that know addresses only.
//!
//! Each counts machines in its own way, and sends at most one request at a time to each that it counts:
//!
//! * *by address*: every port is a machine; the prompts are dealt out beforehand, one share each. What a load
//!   balancer or a round robin over a list does.
//! * *unique addresses*: the rule of SOLLOL's locality check, written anew from its description: host names are
//!   resolved, and installs with one IP address are one machine. Where that leaves one machine, the prompts go to
//!   the first install one after the other; else to all installs, as by address.
//! * *slots*: what GNU parallel does with `-jN` and a list: N requests at once, the next prompt to the slot that is
//!   free, the n-th slot to the n-th install, round robin. It counts every entry of its list. [`gnu_parallel`] is GNU
//!   parallel itself, with curl; `Way::Slots` is the rule without the start of a process for every prompt.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

/// How to spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Every address and port is a machine.
    ByAddress,
    /// Every IP address is a machine.
    UniqueAddresses,
    /// So many requests at once, whoever is free.
    Slots(usize),
}

/// How many machines this way counts in these installs, given as address and port.
#[must_use]
pub fn counted(way: Way, installs: &[SocketAddr]) -> usize {
    match way {
        Way::ByAddress | Way::Slots(_) => installs.iter().collect::<BTreeSet<_>>().len(),
        Way::UniqueAddresses => installs.iter().map(SocketAddr::ip).collect::<BTreeSet<IpAddr>>().len(),
    }
}

/// Finds the address of `HOST:PORT`; the first where it has several.
///
/// # Errors
/// When it has none.
pub fn resolve(install: &str) -> Result<SocketAddr> {
    let mut found = install.to_socket_addrs().with_context(|| format!("resolving {install}"))?;
    found.next().with_context(|| format!("{install} has no address"))
}

/// Sends all prompts and waits for all answers of at most `tokens` tokens.
///
/// # Errors
/// When there is no install, or one prompt has no answer.
pub async fn send(
    way: Way,
    installs: &[SocketAddr],
    model: &str,
    tokens: u32,
    prompts: &[String],
) -> Result<()> {
    ensure!(!installs.is_empty(), "no install to send to");
    let (installs, ahead) = match way {
        Way::UniqueAddresses if counted(way, installs) == 1 => (&installs[..1], true),
        Way::ByAddress | Way::UniqueAddresses => (installs, true),
        Way::Slots(_) => (installs, false),
    };
    let senders = match way {
        Way::Slots(slots) => slots.max(1),
        Way::ByAddress | Way::UniqueAddresses => installs.len(),
    };
    let next = Arc::new(AtomicUsize::new(0));
    let prompts: Arc<[String]> = prompts.into();
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    for sender in 0..senders {
        let install = installs[sender % installs.len()];
        let (next, prompts, model) = (Arc::clone(&next), Arc::clone(&prompts), model.to_owned());
        tasks.spawn(async move {
            let mut mine = sender;
            loop {
                let at = if ahead { mine } else { next.fetch_add(1, Ordering::Relaxed) };
                let Some(prompt) = prompts.get(at) else { return Ok(()) };
                ask(install, &model, tokens, prompt).await?;
                mine += senders;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a sender panicked")??;
    }
    Ok(())
}

/// The version of GNU parallel on this machine; `None` where it or curl is missing.
#[must_use]
pub fn gnu_parallel_version() -> Option<String> {
    let says = |program: &str| {
        let said = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
        String::from_utf8_lossy(&said.stdout).lines().next().map(str::to_owned)
    };
    says("curl").and_then(|_| says("parallel")).filter(|version| version.starts_with("GNU parallel"))
}

/// Has GNU parallel send all prompts with curl, as many at once as there are `slots`: the n-th slot asks the n-th
/// install of that list, and the next prompt goes to the slot that is free.
///
/// # Errors
/// When it or curl is missing, or one prompt has no answer.
pub fn gnu_parallel(slots: &[SocketAddr], model: &str, tokens: u32, prompts: &[String]) -> Result<()> {
    let dir = tempfile::tempdir().context("making a directory for GNU parallel")?;
    let list: Vec<String> = slots.iter().map(SocketAddr::to_string).collect();
    fs::write(dir.path().join("slots"), list.join("\n") + "\n")?;
    let names: Vec<String> = (0..prompts.len()).map(|at| format!("{at:04}.json")).collect();
    for (name, prompt) in names.iter().zip(prompts) {
        fs::write(dir.path().join(name), body(model, tokens, prompt))?;
    }
    let ask = "curl -sS --noproxy '*' -d @{} http://$(sed -n {%}p slots)/api/chat && echo";
    let mut command = Command::new("parallel");
    command.args(["--will-cite", "-j", &slots.len().to_string(), "--halt", "now,fail=1", ask, ":::"]);
    // It keeps notes in the home directory.
    command.args(names).current_dir(dir.path()).env("HOME", dir.path()).stdin(Stdio::null());
    let said = command.output().context("running GNU parallel")?;
    let whole = String::from_utf8_lossy(&said.stdout).matches("\"done\":true").count();
    let complaint = String::from_utf8_lossy(&said.stderr);
    ensure!(whole == prompts.len(), "GNU parallel got {whole} of {} answers: {complaint}", prompts.len());
    Ok(())
}

/// One request as the agent would send it, without any tool.
///
/// # Errors
/// When the answer is not whole.
pub async fn ask(install: SocketAddr, model: &str, tokens: u32, prompt: &str) -> Result<()> {
    let body = body(model, tokens, prompt);
    let request = format!(
        "POST /api/chat HTTP/1.1\r\nHost: {install}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(install).await.with_context(|| format!("connecting to {install}"))?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"done\":true"), "no answer: {answer}");
    Ok(())
}

/// The body of that request; every tool sends the same.
#[must_use]
pub fn body(model: &str, tokens: u32, prompt: &str) -> String {
    json!({
        "model": model, "messages": [{"role": "user", "content": prompt}], "stream": false,
        "options": {"num_ctx": 1024, "num_predict": tokens}, "truncate": false, "shift": false, "think": false,
        "keep_alive": "600s",
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ollama_double::Double;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn two_ports_of_one_address_are_two_machines_by_address_and_one_by_unique_addresses() {
        let installs = [at("10.0.0.1:11434"), at("10.0.0.1:11435")];
        assert_eq!(counted(Way::ByAddress, &installs), 2);
        assert_eq!(counted(Way::UniqueAddresses, &installs), 1);
        assert_eq!(counted(Way::Slots(4), &installs), 2);
        // One host with two network cards is two machines to all of them.
        let installs = [at("10.0.0.1:11434"), at("10.1.0.1:11434")];
        assert_eq!(counted(Way::UniqueAddresses, &installs), 2);
    }

    #[tokio::test]
    async fn every_way_sends_each_prompt_once_and_no_more_at_once_than_it_counts() {
        let prompts: Vec<String> = (0..8).map(|n| format!("prompt {n}")).collect();
        for (way, expected) in [
            (Way::ByAddress, [(4, 1), (4, 1)]),
            // Both are on loopback, so the first gets all, one after the other.
            (Way::UniqueAddresses, [(8, 1), (0, 0)]),
            (Way::Slots(2), [(4, 1), (4, 1)]),
        ] {
            let double =
                || Double::builder().model("tiny:latest").tokens(4).decode_us(4_000).lenient().start();
            let (one, two) = (double().await, double().await);
            send(way, &[one.addr(), two.addr()], "tiny:latest", 4, &prompts).await.unwrap();
            let seen = [&one, &two].map(|double| (double.requests().len(), double.max_in_flight()));
            if matches!(way, Way::Slots(_)) {
                assert_eq!(seen[0].0 + seen[1].0, 8);
                assert!(seen.iter().all(|(_, at_once)| *at_once == 1), "{seen:?}");
            } else {
                assert_eq!(seen, expected, "{way:?}");
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn gnu_parallel_asks_each_install_of_its_list_one_at_a_time_and_sends_each_prompt_once() {
        if gnu_parallel_version().is_none() {
            crate::skipped("no GNU parallel, or no curl");
            return;
        }
        let double = || Double::builder().model("tiny:latest").tokens(4).decode_us(25_000).lenient().start();
        let (one, two) = (double().await, double().await);
        let prompts: Vec<String> = (0..8).map(|n| format!("it's prompt {n}")).collect();
        let slots = [one.addr(), two.addr()];
        let sent = prompts.clone();
        tokio::task::spawn_blocking(move || gnu_parallel(&slots, "tiny:latest", 4, &sent))
            .await
            .unwrap()
            .unwrap();
        let asked = |double: &Double| {
            let all = double.requests();
            all.iter()
                .map(|r| r.json()["messages"][0]["content"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let mut all = asked(&one);
        all.extend(asked(&two));
        all.sort();
        assert_eq!(all, prompts);
        for double in [&one, &two] {
            assert!(!asked(double).is_empty() && double.max_in_flight() == 1, "{:?}", asked(double));
        }
    }
}
