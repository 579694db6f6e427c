//! Small turns of phrase that texts for people share.

use std::{error::Error, fmt::Display};

/// `1 machine`, `2 machines`.
pub(crate) fn count<N: Display + PartialEq + From<u8>>(n: N, word: &str) -> String {
    format!("{n} {word}{}", if n == N::from(1) { "" } else { "s" })
}

/// An error, and behind a colon what it comes from.
pub(crate) fn with_source(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

#[cfg(test)]
mod tests {
    use std::{io, path::Path};

    use super::*;
    use crate::journal;

    #[test]
    fn one_of_a_thing_is_told_from_several() {
        assert_eq!([0, 1, 2].map(|n| count(n, "chunk")), ["0 chunks", "1 chunk", "2 chunks"]);
    }

    #[test]
    fn an_error_is_told_with_what_it_comes_from() {
        assert_eq!(with_source(&io::Error::other("full")), "full");
        let error = journal::list(Path::new("\0")).unwrap_err();
        let told = with_source(&error);
        assert!(
            told.starts_with(&format!("{error}: ")) && told.len() > error.to_string().len() + 2,
            "{told}"
        );
    }
}
