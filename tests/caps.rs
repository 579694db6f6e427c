//! Every cap of `security.md` §6, one below, at, and one above it (or just before, at and after, where it is a time).
//!
//! One table of rows whose input can be built, and one of rows that are held by the test that the row names: those need
//! a private part, or a clock that only the part's own tests have.

mod live;
mod pure;

use std::{fmt, fs, path::Path};

/// What becomes of an input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is taken as it is.
    Taken,
    /// It is refused, and nothing of it is kept.
    Refused,
    /// As much as fits is taken, and that is said.
    Cut,
    /// It is to be tried again.
    Busy,
    /// It is to be tried elsewhere.
    Draining,
    /// It is not looked at; the others are as they were.
    Ignored,
    /// It waits until another is gone.
    Waits,
}

use Fate::{Busy, Cut, Draining, Ignored, Refused, Taken, Waits};

/// One cap.
struct Row {
    object: &'static str,
    /// In the units of the input: bytes, entries, seconds.
    cap: usize,
    /// One below, at, one above.
    fates: [Fate; 3],
    /// Gives the fate of an input of this size, or of the last of so many.
    input: fn(usize) -> Fate,
}

/// A row whose last good size is its cap.
const fn row(object: &'static str, cap: usize, beyond: Fate, input: fn(usize) -> Fate) -> Row {
    Row { object, cap, fates: [Taken, Taken, beyond], input }
}

/// A row about a time: what is still good just before it is not at it.
const fn time(object: &'static str, cap: usize, over: Fate, input: fn(usize) -> Fate) -> Row {
    Row { object, cap, fates: [Taken, over, over], input }
}

/// Rows that are held elsewhere: object, cap, and the test that has it below, at and above.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    (
        "places kept for known members",
        "8 of 256 / 1,100",
        "tropa-proto mesh::door::tests::the_last_eight_places_are_for_members_and_guests",
    ),
    (
        "process memory",
        "96 / 512 MiB",
        "tropa-proto mesh::door::tests::above_the_limit_of_memory_only_guests_come_in_and_what_is_kept_for_them_does_not_count",
    ),
    (
        "offences",
        "3 within 10 min, ban 10 min",
        "tropa-proto mesh::offences::tests::the_third_offence_within_ten_minutes_shuts_out_for_ten",
    ),
    (
        "frames that break the rules, from a whole program",
        "closed; third time ban",
        "fault_f23_frames_that_break_the_rules_shut_their_sender_out_and_nobody_else",
    ),
    (
        "messages of one source by gossip",
        "4 a second, burst 20",
        "tropa-proto mesh::gossip::tests::a_source_that_talks_too_much_is_not_listened_to_for_a_while",
    ),
    (
        "a flood of one source",
        "60 s, ban 10 min",
        "tropa-proto mesh::gossip::tests::who_floods_for_a_minute_is_to_be_shut_out_and_nobody_is_listened_to_who_brings_his_words",
    ),
    (
        "work streams of one connection at the agent",
        "64, as many wait",
        "tropa-proto mesh::intruder::sixty_four_streams_of_a_connection_are_served_as_many_wait_and_more_are_reset",
    ),
    (
        "attempts remembered",
        "65,536, 10 min after `Ack`",
        "tropa-agent admission::tests::results_that_wait_are_never_forgotten_and_at_the_cap_new_work_is_refused",
    ),
    (
        "time to a valid `Hello`",
        "5 s",
        "tropa-proto chunk_stream::tests::a_hello_has_five_seconds_on_both_sides_however_it_comes",
    ),
    (
        "time to a whole frame",
        "30 s",
        "tropa-proto chunk_stream::tests::a_frame_has_thirty_seconds_from_its_first_byte_to_its_last",
    ),
    (
        "display text that is queued",
        "16 KiB an attempt, so 1 MiB of 64",
        "tropa-agent execute::progress::tests::text_that_finds_no_room_is_not_shown_and_its_tokens_are_counted",
    ),
    (
        "a line of an answer",
        "8 MiB",
        "tropa-agent ollama::lines::tests::a_line_may_have_eight_mebibytes_and_not_one_byte_more",
    ),
    ("whole text of an answer", "8 MiB", "fault_f25_an_answer_above_its_cap_is_cut_and_the_lane_goes_on"),
    (
        "error body and control reply of Ollama",
        "64 KiB; 4 MiB",
        "tropa-agent ollama::client::tests::an_error_body_and_a_control_reply_are_read_to_their_caps_and_not_one_byte_further",
    ),
    (
        "connections established, and per peer",
        "256 / 1,100; 3",
        "tropa-proto mesh::swarm::tests::as_many_connections_are_taken_as_the_caps_say_and_not_one_more",
    ),
    (
        "attempts per chunk",
        "12",
        "tropa-coordinator schedule::budget::tests::a_mix_of_classes_ends_within_twelve_attempts",
    ),
];

impl fmt::Debug for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Taken => "taken",
            Refused => "refused",
            Cut => "cut",
            Busy => "busy",
            Draining => "draining",
            Ignored => "ignored",
            Waits => "waits",
        })
    }
}

#[expect(clippy::print_stdout, reason = "the table")]
fn hold(rows: &[Row]) {
    let mut wrong = Vec::new();
    for Row { object, cap, fates, input } in rows {
        let found = [cap - 1, *cap, cap + 1].map(input);
        println!("{object}: {cap}: {found:?}");
        if found != *fates {
            wrong.push(format!("{object} at {cap}: expected {fates:?}, found {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_cap_holds_one_below_at_and_one_above() {
    hold(&pure::rows());
    for (object, cap, test) in ELSEWHERE {
        println!("{object}: {cap}: {test}");
    }
}

#[test]
fn every_cap_of_connections_holds_one_below_at_and_one_above() {
    hold(&live::rows());
}

#[test]
fn the_tests_that_hold_the_other_caps_exist() {
    let sources = sources(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
    for (object, _, test) in ELSEWHERE {
        let name = test.rsplit([':', ' ']).next().unwrap();
        let function = format!("fn {name}()");
        assert!(sources.iter().any(|source| source.contains(&function)), "{object}: there is no {name}");
    }
}

/// The Rust files below a directory, but for what was built.
fn sources(directory: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            all.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            all.extend(fs::read_to_string(&path));
        }
    }
    all
}
