//! Lines of text: the bytes of an input one bounded line at a time, prompts that are lines, and templates.

use std::{collections::BTreeSet, io::BufRead};

use sha2::{Digest as _, Sha256};
use tropa_proto::message::MAX_BODY;

use super::{Error, InputError, item::Item};

/// The longest line that is read: a body at its limit, all of it written as `\uXXXX`, with room for the keys.
const MAX_LINE: usize = 7 * MAX_BODY;

/// Gives the lines of an input with their numbers, without line ends and without a byte order mark.
pub(super) struct Lines<R> {
    reader: R,
    /// The number of the last line given.
    number: u64,
    hash: Sha256,
    /// A line that was looked at and not taken.
    peeked: Option<String>,
    /// Blank lines dropped so far.
    blank: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, number: 0, hash: Sha256::new(), peeked: None, blank: 0 }
    }

    /// Gives the next line and its number, or `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u64, String)>, Error> {
        if let Some(line) = self.peeked.take() {
            return Ok(Some((self.number, line)));
        }
        let mut bytes = Vec::new();
        let number = self.number + 1;
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(Error::Io { doing: "read", path: "the input".into(), source }),
            };
            let end = available.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(available.len(), |end| end + 1);
            if taken == 0 {
                break;
            }
            bytes.extend_from_slice(&available[..taken]);
            self.hash.update(&available[..taken]);
            self.reader.consume(taken);
            if bytes.len() > MAX_LINE {
                let what = format!("longer than {MAX_LINE} bytes");
                return Err(
                    InputError::at(number, what, "split it, or use `tropa map` for a long document").into()
                );
            }
            if end.is_some() {
                break;
            }
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        self.number = number;
        while matches!(bytes.last(), Some(b'\n' | b'\r')) {
            bytes.pop();
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let what = format!("not UTF-8 from byte {} of the line on", error.utf8_error().valid_up_to() + 1);
            InputError::at(number, what, "convert the file, for example with `iconv -t UTF-8`")
        })?;
        let text = match text.strip_prefix('\u{feff}') {
            Some(rest) if number == 1 => rest.to_owned(),
            Some(_) | None => text,
        };
        Ok(Some((number, text)))
    }

    /// Gives the next line that is not blank, and leaves it to be given again; blank ones before it are dropped.
    pub(super) fn peek(&mut self) -> Result<Option<&str>, Error> {
        while self.peeked.is_none() {
            match self.next()? {
                Some((_, line)) if line.trim().is_empty() => self.blank += 1,
                Some((_, line)) => self.peeked = Some(line),
                None => return Ok(None),
            }
        }
        Ok(self.peeked.as_deref())
    }

    /// Gives the next line that is not blank, with its number.
    pub(super) fn next_full(&mut self) -> Result<Option<(u64, String)>, Error> {
        if self.peek()?.is_none() {
            return Ok(None);
        }
        self.next()
    }

    /// How many blank lines were dropped.
    pub(super) fn blank(&self) -> u64 {
        self.blank
    }

    /// Gives the SHA-256 of all bytes read so far.
    pub(super) fn sha256(&self) -> [u8; 32] {
        self.hash.clone().finalize().into()
    }
}

/// Makes the item of one line of text.
pub(super) fn item(line: u64, text: String, template: Option<&Template>) -> Item {
    let prompt = match template {
        Some(template) => template.fill(|_| Some(&text)),
        None => text,
    };
    Item::prompt(line, line.to_string(), prompt)
}

/// A prompt with holes, written `{{name}}` and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Hole(String),
}

impl Template {
    /// Reads a template; blanks around a name do not count.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((name, after)) = after.split_once("}}") else {
                return Err(Error::Option("--template: `{{` without `}}`".to_owned()));
            };
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            pieces.push(Piece::Hole(name.trim().to_owned()));
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        let template = Self { pieces };
        if template.names().is_empty() {
            return Err(Error::Option(
                "--template has no `{{name}}`, so all prompts would be equal".to_owned(),
            ));
        }
        Ok(template)
    }

    /// Gives the names of the holes, sorted.
    pub(super) fn names(&self) -> BTreeSet<&str> {
        self.pieces
            .iter()
            .filter_map(|piece| match piece {
                Piece::Hole(name) => Some(name.as_str()),
                Piece::Text(_) => None,
            })
            .collect()
    }

    /// Fills the holes; one without a value stays empty. What is filled in is not read as a template again.
    pub(super) fn fill<'a>(&self, value: impl Fn(&str) -> Option<&'a String>) -> String {
        self.pieces.iter().fold(String::new(), |mut text, piece| {
            match piece {
                Piece::Text(literal) => text.push_str(literal),
                Piece::Hole(name) => text.push_str(value(name).map_or("", String::as_str)),
            }
            text
        })
    }
}
