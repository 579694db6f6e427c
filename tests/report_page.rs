//! `tropa report --html`, looked at in a real browser: the page shows something, and the browser has nothing to say.

use std::{fs, path::Path, process::Command};

use serde_json::Value;
use tropa_tests::{
    harness::{Hardware, World},
    skipped,
};

use crate::jobs::{said, world};

/// Names of the browser, by what Debian and others call it.
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// Says that no data leaves the machine, and that nobody is asked: no sandbox within containers, no network.
const FLAGS: [&str; 12] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1200,1400",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",
];

/// What a browser made of a page: the picture's bytes, and what it wrote to its console.
struct Seen {
    picture: u64,
    console: Vec<String>,
}

fn browser() -> Option<&'static str> {
    BROWSERS.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok())
}

fn look(browser: &str, world: &World, page: &Path) -> Seen {
    let stem = page.file_stem().unwrap().to_str().unwrap();
    let (picture, profile) = (world.path(&format!("{stem}.png")), world.path(&format!("{stem}.profile")));
    let mut command = Command::new(browser);
    command.args(FLAGS).env("HOME", world.path("home"));
    command.arg(format!("--user-data-dir={}", profile.display()));
    command.arg(format!("--screenshot={}", picture.display()));
    let output = command.arg(format!("file://{}", page.display())).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let size = fs::metadata(&picture).unwrap_or_else(|error| panic!("no picture: {error}: {said}")).len();
    let console = said.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    Seen { picture: size, console }
}

#[test]
fn the_page_of_a_job_shows_in_a_browser_without_a_complaint() {
    let Some(browser) = browser() else { return skipped("no chromium on PATH") };
    let world = world();
    let doubles = ["one", "two"].map(|device| world.double(device, &["--first-ms", "30"]).unwrap());
    let _one = world.agent("den", doubles[0].address, Hardware::Declared(1), &[]).unwrap();
    let _two = world.agent("attic", doubles[1].address, Hardware::Declared(2), &[]).unwrap();
    let marker = "MARKER-7f3c90-of-a-prompt";
    let lines: String = (0..12)
        .map(|n| match n {
            5 => format!("{{\"id\":\"bad\",\"prompt\":\"{marker}\",\"options\":{{\"top_k\":\"x\"}}}}\n"),
            n => format!("{{\"prompt\":\"{marker} {n}\"}}\n"),
        })
        .collect();
    let input = world.file("items.jsonl", &lines).unwrap();
    let ran = world.run(&["run", input.to_str().unwrap(), "--allow-declared"]).unwrap();
    assert_eq!(ran.status.code(), Some(2), "{}", said(&ran));
    let listed: Value = serde_json::from_slice(&world.run(&["jobs", "--json"]).unwrap().stdout).unwrap();
    let id = listed["jobs"][0]["id"].as_str().unwrap();

    let page = world.path("report.html");
    let made = world.run(&["report", id, "--html", "-o", page.to_str().unwrap()]).unwrap();
    assert_eq!(made.status.code(), Some(0), "{}", said(&made));
    let text = fs::read_to_string(&page).unwrap();
    for named in ["den", "attic", "bad_request", "class=\"won\"", "class=\"failed\""] {
        assert!(text.contains(named), "{named} is not on the page");
    }
    assert!(!text.contains("MARKER-7f3c90"), "a prompt is on the page");
    let told = world.run(&["report", id]).unwrap();
    for named in ["den", "attic", "11 of 12 items done, 1 failed (1 bad_request)", "tokens/s"] {
        assert!(said(&told).contains(named), "{named} is not told: {}", said(&told));
    }

    let seen = look(browser, &world, &page);
    assert_eq!(seen.console, Vec::<String>::new());
    // The same browser shows how small the picture of nothing is, and that it does complain where there is reason.
    let blank =
        world.file("blank.html", "<!DOCTYPE html><title>blank</title><script>nothing()</script>").unwrap();
    let nothing = look(browser, &world, &blank);
    assert!(!nothing.console.is_empty(), "the browser's console is not seen");
    assert!(
        seen.picture > 4 * nothing.picture,
        "{} bytes, and {} for nothing",
        seen.picture,
        nothing.picture
    );
}
