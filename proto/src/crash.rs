//! What a program leaves behind when it crashes: neither a core nor a message may hold a prompt or a key
//! (`security.md` §7.4).

use std::{
    any::Any,
    panic::{self, Location},
};

/// Makes a crash of this process tell nothing of what it worked on: it writes no core, and the message of a panic is
/// where it happened and what the code says there, without the values of that moment. For the start of a program: it
/// holds for the whole process and for what that starts.
///
/// Where the system refuses the limit, the program runs on: what the system writes is then up to its own settings.
pub fn tells_nothing() {
    crate::system::no_core();
    panic::set_hook(Box::new(|panic| {
        use std::io::Write as _;
        // A closed stderr is no reason for a second panic.
        let _ = writeln!(std::io::stderr(), "{}", message(panic.payload(), panic.location()));
    }));
}

/// The text of a panic. Words that were made while the program ran may quote what it worked on (a slice of a text
/// does), so they are left out; those of the source are the same in every run.
fn message(payload: &(dyn Any + Send), location: Option<&Location<'_>>) -> String {
    let place = location.map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let words = payload.downcast_ref::<&'static str>();
    let words = words.copied().unwrap_or("what it says may quote a prompt and is left out");
    format!("a bug in tropa: panicked at {place}: {words}; please report it with this line")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_says_where_it_is_and_nothing_of_the_text_that_it_met() {
        let prompt = "café".to_owned();
        let sliced = panic::catch_unwind(|| prompt[..4].len()).unwrap_err();
        let quoted = sliced.downcast_ref::<String>().expect("words of the moment");
        assert!(quoted.contains("caf"), "the standard library quotes the text: {quoted}");
        let here = Location::caller();
        let text = message(sliced.as_ref(), Some(here));
        assert!(!text.contains("caf") && text.contains("crash.rs"), "{text}");
    }

    #[test]
    fn words_of_the_source_are_told() {
        let payload: &(dyn Any + Send) = &"the plan overlaps";
        assert!(message(payload, None).contains("the plan overlaps"));
    }
}
