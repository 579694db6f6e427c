//! Text of others on the way to a terminal. Models, peers and engines may send escape sequences that move the
//! cursor, retitle the window or paste into the shell, and marks that turn the reading direction around.

use std::fmt::{self, Write as _};

/// Shows a text of others so that it can only be read: on one line, without effect on the terminal.
///
/// Control characters, line and paragraph separators, marks of reading direction, invisible characters and tags
/// come out as `\n`, `\t`, `\r` or `\u{…}`, and a backslash as it is. All other characters stay, emoji included.
/// Made for people; a file or a pipe of data gets the text itself.
#[must_use]
pub fn escaped(text: &str) -> Escaped<'_> {
    Escaped(text)
}

/// A text that is shown escaped; see [`escaped`].
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                c if acts(c) => write!(f, "\\u{{{:x}}}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Says whether a character does something to a terminal or to its neighbours instead of being seen. The joiner
/// U+200D stays: families of emoji need it, and it turns nothing around.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(u32::from(c),
            0xad | 0x61c | 0x180e
            | 0x200b | 0x200c | 0x200e | 0x200f
            | 0x2028..=0x202e
            | 0x2060..=0x206f
            | 0xfeff | 0xfff9..=0xfffb
            | 0xe0000..=0xe007f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_shown_and_not_done() {
        for (text, shown) in [
            ("\u{1b}[2J\u{1b}]0;title\u{7}", "\\u{1b}[2J\\u{1b}]0;title\\u{7}"),
            ("\u{9b}31mred", "\\u{9b}31mred"),
            ("a\r\nb\tc\0", "a\\r\\nb\\tc\\u{0}"),
            ("user\u{202e}txt.exe", "user\\u{202e}txt.exe"),
            ("\u{2066}x\u{2069}\u{200f}\u{61c}", "\\u{2066}x\\u{2069}\\u{200f}\\u{61c}"),
            ("\u{e0041}\u{feff}\u{200b}", "\\u{e0041}\\u{feff}\\u{200b}"),
        ] {
            assert_eq!(escaped(text).to_string(), shown);
        }
    }

    #[test]
    fn what_is_only_seen_stays() {
        for text in ["", "llama3.2:3b", "Grüße, 世界, שלום, مرحبا", "👩‍👩‍👧 🏳️‍🌈", "C:\\dir \"quoted\""]
        {
            assert_eq!(escaped(text).to_string(), text);
        }
    }
}
