//! How many parts a text has and how long each is, from what was asked for and the kind of text.

use super::Wish;

/// Parts of one text, at most: at the length that a part has, a short book. More is a slip of the keyboard.
pub const LARGEST_PARTS: u32 = 64;

/// Words of one text, at most: [`LARGEST_PARTS`] parts as long as a model writes in one piece.
pub const LARGEST_WORDS: u32 = 200_000;

/// A question of at most so many bytes is answered in one part where nothing else was asked for: a line. Bytes and not
/// letters, since scripts that say more with one letter take more bytes for it.
const SHORT_QUESTION: usize = 64;

/// The marks that end a question, in the scripts that have one: Latin and Cyrillic, full width, Arabic, Greek,
/// Armenian, Ethiopic, reversed.
const QUESTION_MARKS: [char; 7] = ['?', '？', '؟', '\u{37e}', '՞', '፧', '⸮'];

/// Tokens that ten words take: 13 in English, up to 20 where words are long.
const TOKENS_PER_TEN_WORDS: u32 = 15;

/// Tokens beyond the words of a part, so that one that runs a little long, or has long words, is not cut.
const SPARE_TOKENS: u32 = 256;

/// How long a text is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Length {
    /// Words of all parts together; absent: as the kind of text has it.
    pub words: Option<u32>,
    /// Parts; absent: as many as the words need.
    pub parts: Option<u32>,
}

/// What a wish comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Measure {
    pub(super) parts: u32,
    pub(super) words_per_part: u32,
    /// What the user is told about it.
    pub(super) note: Option<String>,
}

impl Measure {
    /// Room for the words of a part.
    pub(super) fn tokens_per_part(&self) -> u32 {
        self.words_per_part.saturating_mul(TOKENS_PER_TEN_WORDS) / 10 + SPARE_TOKENS
    }
}

/// Room for a line of an outline for each part.
pub(super) fn outline_tokens(parts: u32) -> u32 {
    128 + 64 * parts
}

/// Measures a text: parts as asked for, else as many as its words need at the length that this kind of text has, else
/// one for a short question without any wish, else as this kind of text has it.
pub(super) fn measure(topic: &str, wish: &Wish) -> Measure {
    let content = wish.content.unwrap_or_default();
    let usual = content.words_per_part();
    let wished = wish.content.is_some() || wish.outline;
    let (parts, note) = match (wish.length.parts, wish.length.words) {
        (Some(parts), _) => (parts, None),
        (None, Some(words)) => (words.div_ceil(usual), None),
        (None, None) if !wished && is_short_question(topic) => {
            let note = "one part: a short question, and no length or --type was asked for";
            (1, Some(note.to_owned()))
        }
        (None, None) => (content.usual_parts(), None),
    };
    let parts = parts.clamp(1, LARGEST_PARTS);
    let words_per_part = wish.length.words.map_or(usual, |words| words.div_ceil(parts));
    Measure { parts, words_per_part: words_per_part.clamp(1, LARGEST_WORDS), note }
}

fn is_short_question(topic: &str) -> bool {
    topic.len() <= SHORT_QUESTION && !topic.contains('\n') && topic.ends_with(QUESTION_MARKS)
}

#[cfg(test)]
mod tests {
    use super::{super::Content, *};

    fn parts(topic: &str, content: Option<Content>, words: Option<u32>, parts: Option<u32>) -> (u32, u32) {
        let wish = Wish { content, length: Length { words, parts }, ..Wish::default() };
        let measure = measure(topic, &wish);
        (measure.parts, measure.words_per_part)
    }

    #[test]
    fn a_short_question_is_one_part_in_any_script() {
        for topic in ["What is 2+2?", "¿Cuánto es 2+2?", "二加二等于几？", "ما هو حاصل ٢+٢؟"]
        {
            assert_eq!(parts(topic, None, None, None).0, 1, "{topic}");
            assert!(parts(topic, None, Some(2000), None).0 > 1, "{topic}: a length is a wish");
            assert!(parts(topic, Some(Content::Explanation), None, None).0 > 1, "{topic}: a kind is a wish");
        }
        for topic in ["Llamas", "A question?\nAnd a second line?", &format!("{}?", "why ".repeat(20))] {
            assert_eq!(parts(topic, None, None, None).0, Content::General.usual_parts(), "{topic}");
        }
    }

    #[test]
    fn the_number_of_parts_follows_the_words_and_is_overridden() {
        assert_eq!(parts("Llamas", None, Some(1), None), (1, 1));
        assert_eq!(parts("Llamas", Some(Content::Research), Some(2500), None), (5, 500));
        assert_eq!(parts("Llamas", Some(Content::Research), Some(2501), None), (6, 417));
        assert_eq!(parts("Llamas", None, Some(3000), Some(2)), (2, 1500));
        assert_eq!(parts("Llamas", None, None, Some(2)), (2, Content::General.words_per_part()));
        assert_eq!(parts("Llamas", None, Some(LARGEST_WORDS), None), (LARGEST_PARTS, 3125));
    }
}
