//! CSV and TSV (RFC 4180): a header, then rows, each filled into the template.

use std::io::BufRead;

use tropa_proto::message::MAX_BODY;

use super::{
    Error, InputError,
    item::Item,
    lines::{Lines, Template},
};

/// The columns of a table and which of them are used.
pub(super) struct Table {
    separator: char,
    names: Vec<String>,
    id: Option<usize>,
    template: Template,
}

impl Table {
    /// Reads the header and checks that the template and `--id-column` name columns that are there.
    pub(super) fn open<R: BufRead>(
        lines: &mut Lines<R>,
        separator: char,
        template: Option<&Template>,
        id_column: Option<&str>,
    ) -> Result<Self, Error> {
        let Some(template) = template else {
            return Err(Error::Option(
                "a table needs --template, for example 'Summarise: {{text}}'".to_owned(),
            ));
        };
        let Some((line, names)) = record(lines, separator)? else {
            return Err(InputError::at(0, "nothing in it", "begin with a line of column names").into());
        };
        for (place, name) in names.iter().enumerate() {
            if names[..place].contains(name) {
                let what = format!("column `{}` twice", name.escape_debug());
                return Err(InputError::at(line, what, "give each column its own name").into());
            }
        }
        let unknown =
            template.names().into_iter().chain(id_column).find(|name| !names.iter().any(|n| n == name));
        if let Some(name) = unknown {
            let known =
                names.iter().map(|name| name.escape_debug().to_string()).collect::<Vec<_>>().join("`, `");
            let what = format!("no column `{}`", name.escape_debug());
            return Err(InputError::at(line, what, format!("the columns are `{known}`")).into());
        }
        let id = id_column.and_then(|id| names.iter().position(|name| name == id));
        Ok(Self { separator, names, id, template: template.clone() })
    }

    /// Reads the next row; the columns that the prompt does not use become metadata.
    pub(super) fn next<R: BufRead>(&self, lines: &mut Lines<R>) -> Result<Option<Item>, Error> {
        let Some((line, fields)) = record(lines, self.separator)? else { return Ok(None) };
        if fields.len() != self.names.len() {
            let what = format!("{} fields, and the header has {}", fields.len(), self.names.len());
            return Err(InputError::at(line, what, "quote fields that hold the separator").into());
        }
        let place = |name: &str| self.names.iter().position(|known| known == name);
        let prompt = self.template.fill(|name| place(name).and_then(|place| fields.get(place)));
        let id = self.id.and_then(|place| fields.get(place)).cloned().unwrap_or_else(|| line.to_string());
        let used = self.template.names();
        let mut item = Item::prompt(line, id, prompt);
        for (place, (name, field)) in self.names.iter().zip(fields).enumerate() {
            if !used.contains(name.as_str()) && self.id != Some(place) {
                item.metadata.insert(name.clone(), field.into());
            }
        }
        Ok(Some(item))
    }
}

/// Reads one record, which may go over several lines; blank lines between records do not count.
fn record<R: BufRead>(lines: &mut Lines<R>, separator: char) -> Result<Option<(u64, Vec<String>)>, Error> {
    let Some((first, mut text)) = lines.next_full()? else { return Ok(None) };
    loop {
        match fields(&text, separator) {
            Ok(fields) => return Ok(Some((first, fields))),
            Err(Broken::Open) => {
                // Inside quotes only a line with an odd number of them ends the record.
                let mut closing = false;
                while !closing {
                    let Some((_, more)) = lines.next()? else {
                        return Err(InputError::at(
                            first,
                            "a quote is never closed",
                            "close it, or double it",
                        )
                        .into());
                    };
                    closing = more.matches('"').count() % 2 == 1;
                    text.push('\n');
                    text.push_str(&more);
                    if text.len() > MAX_BODY {
                        let what = format!("a row of more than {MAX_BODY} bytes");
                        return Err(
                            InputError::at(first, what, "look for a quote that is never closed").into()
                        );
                    }
                }
            }
            Err(Broken::Stray) => {
                let what = "text after a closing quote";
                return Err(InputError::at(first, what, "double the quotes inside a quoted field").into());
            }
        }
    }
}

enum Broken {
    /// The text ends inside quotes: the record goes on in the next line.
    Open,
    Stray,
}

fn fields(text: &str, separator: char) -> Result<Vec<String>, Broken> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = rest.find(separator).unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        fields.push(field);
        match after.strip_prefix(separator) {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => return Err(Broken::Stray),
        }
    }
}

/// Reads up to the closing quote; two quotes are one.
fn unquote(text: &str) -> Result<(String, &str), Broken> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once('"').ok_or(Broken::Open)?;
        field.push_str(before);
        match after.strip_prefix('"') {
            Some(next) => {
                field.push('"');
                rest = next;
            }
            None => return Ok((field, after)),
        }
    }
}
