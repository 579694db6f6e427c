//! A document in parts: as long as fits, and cut where its own structure allows.

use text_splitter::{ChunkConfig, ChunkSizer, MarkdownSplitter, TextSplitter};

use super::document::{Document, Markup};

/// A heading is shown up to so many characters: what is longer is no heading that anybody reads.
const SHOWN_HEADING: usize = 80;

/// A part of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The words, byte for byte as they stand in the document.
    pub text: String,
    /// The first and last line of it, from 1.
    pub lines: (usize, usize),
    /// The last heading at its beginning or before it; empty where there is none.
    pub heading: String,
}

/// Splits a document into parts of at most so many bytes, in order: at headings first, then at paragraphs, sentences
/// and words, and inside a word only where it is longer than a part. Together the parts are the whole document, but
/// for white space at their ends; a part of white space alone is left out.
///
/// A capacity below four bytes, the longest character, counts as four.
#[must_use]
pub fn split(document: &Document, bytes: usize) -> Vec<Part> {
    let text = document.text.as_str();
    let config = || ChunkConfig::new(bytes.max(4)).with_sizer(Bytes).with_trim(false);
    let pieces: Vec<(usize, &str)> = match document.markup {
        Markup::Markdown => MarkdownSplitter::new(config()).chunk_indices(text).collect(),
        Markup::Plain => TextSplitter::new(config()).chunk_indices(text).collect(),
    };
    let (mut line, mut seen, mut heading) = (1, 0, String::new());
    let mut parts = Vec::new();
    for (at, piece) in pieces {
        line += newlines(&text[seen..at]);
        seen = at;
        let words = piece.trim_end();
        if words.trim_start().is_empty() {
            continue;
        }
        let lead = piece.len() - piece.trim_start().len();
        let first = line + newlines(&piece[..lead]);
        let last = line + newlines(words);
        let mut headings = words.lines().filter_map(|line| heading_of(line, document.markup));
        let own = words.trim_start().lines().next().and_then(|line| heading_of(line, document.markup));
        let shown = own.clone().unwrap_or_else(|| heading.clone());
        if let Some(last) = headings.next_back() {
            heading = last;
        }
        parts.push(Part { text: words[lead..].to_owned(), lines: (first, last), heading: shown });
    }
    parts
}

/// Measures text in bytes.
struct Bytes;

impl ChunkSizer for Bytes {
    fn size(&self, chunk: &str) -> usize {
        chunk.len()
    }
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

/// The words of a heading, if the line is one.
fn heading_of(line: &str, markup: Markup) -> Option<String> {
    let words = match markup {
        Markup::Plain => return None,
        Markup::Markdown => line.trim_start_matches('#'),
    };
    let level = line.len() - words.len();
    let is_heading = (1..=6).contains(&level) && words.starts_with(' ');
    is_heading.then(|| words.trim().trim_end_matches('#').trim_end().chars().take(SHOWN_HEADING).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn document(text: &str, markup: Markup) -> Document {
        Document {
            name: "d".to_owned(),
            text: text.to_owned(),
            markup,
            bytes: text.len() as u64,
            sha256: [0; 32],
        }
    }

    #[test]
    fn markdown_is_cut_at_headings_and_each_part_knows_its_lines_and_heading() {
        let text = "# One\n\nalpha beta gamma\n\n## Two\n\ndelta epsilon\n\nzeta eta theta iota\n";
        let parts = split(&document(text, Markup::Markdown), 30);
        let seen: Vec<_> =
            parts.iter().map(|part| (part.text.as_str(), part.lines, part.heading.as_str())).collect();
        assert_eq!(
            seen,
            [
                ("# One\n\nalpha beta gamma", (1, 3), "One"),
                ("## Two\n\ndelta epsilon", (5, 7), "Two"),
                ("zeta eta theta iota", (9, 9), "Two"),
            ]
        );
    }

    #[test]
    fn a_word_longer_than_a_part_is_cut_between_characters() {
        let parts = split(&document("日本語のながいことば", Markup::Plain), 7);
        assert!(parts.iter().all(|part| part.text.len() <= 7), "{parts:?}");
        assert_eq!(parts.iter().map(|part| part.text.as_str()).collect::<String>(), "日本語のながいことば");
    }

    proptest! {
        #[test]
        fn parts_fit_and_together_are_the_whole_document(
            text in "([a-zäß日 #*`>.\n-]{0,12}( |\n|\n\n)){0,60}",
            bytes in 4usize..200,
            markdown in any::<bool>(),
        ) {
            let markup = if markdown { Markup::Markdown } else { Markup::Plain };
            let parts = split(&document(&text, markup), bytes);
            let words = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(words(&text), parts.iter().map(|part| words(&part.text)).collect::<String>());
            let lines: Vec<&str> = text.split('\n').collect();
            for part in &parts {
                prop_assert!(part.text.len() <= bytes);
                let (first, last) = part.lines;
                prop_assert!(first <= last && last <= lines.len());
                prop_assert!(lines[first - 1..last].join("\n").contains(&part.text));
            }
        }
    }
}
