//! The items of an input one after the other, whatever it looks like.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{
    Error, Format, InputError, JobOptions,
    csv::Table,
    item::Item,
    jsonl,
    lines::{self, Lines, Template},
    openai,
};

/// The items of an input, in order.
pub(super) struct Items<R> {
    pub(super) lines: Lines<R>,
    kind: Kind,
}

enum Kind {
    Lines(Option<Template>),
    Jsonl,
    Batch,
    Table(Box<Table>),
}

impl<R: BufRead> Items<R> {
    pub(super) fn open(reader: R, options: &JobOptions) -> Result<Self, Error> {
        let mut lines = Lines::new(reader);
        let template = options.template.as_deref().map(Template::parse).transpose()?;
        let id = options.id_column.as_deref();
        let kind = match options.format {
            Format::Csv => Kind::Table(Box::new(Table::open(&mut lines, ',', template.as_ref(), id)?)),
            Format::Tsv => Kind::Table(Box::new(Table::open(&mut lines, '\t', template.as_ref(), id)?)),
            Format::Lines => {
                let names = template.as_ref().map(Template::names).unwrap_or_default();
                if let Some(name) = names.iter().find(|name| **name != "line") {
                    let name = name.escape_debug();
                    return Err(Error::Option(format!(
                        "--template: `{{{{{name}}}}}`, and lines have only `{{{{line}}}}`"
                    )));
                }
                Kind::Lines(template)
            }
            Format::Batch if options.embed => {
                return Err(Error::Option(
                    "`tropa embed` batches by itself; OpenAI Batch lines with /v1/embeddings run with `tropa run`"
                        .to_owned(),
                ));
            }
            Format::Jsonl | Format::Batch | Format::Auto if template.is_some() => {
                return Err(Error::Option(
                    "--template is for lines and tables; these items hold whole prompts".to_owned(),
                ));
            }
            Format::Jsonl | Format::Auto => Kind::Jsonl,
            Format::Batch => Kind::Batch,
        };
        if id.is_some() && !matches!(kind, Kind::Table(_)) {
            return Err(Error::Option("--id-column is for tables".to_owned()));
        }
        Ok(Self { lines, kind })
    }

    /// Reads, completes and checks the next item.
    pub(super) fn next(&mut self, options: &JobOptions) -> Result<Option<Item>, Error> {
        let item = match &self.kind {
            Kind::Table(table) => table.next(&mut self.lines)?,
            kind @ (Kind::Lines(_) | Kind::Jsonl | Kind::Batch) => match self.lines.next_full()? {
                None => None,
                Some((line, text)) => Some(match kind {
                    Kind::Lines(template) => lines::item(line, text, template.as_ref()),
                    Kind::Batch => {
                        openai::item(line, jsonl::object(line, &text)?, options.endpoint.as_deref())?
                    }
                    Kind::Jsonl | Kind::Table(_) => jsonl::item(line, jsonl::object(line, &text)?)?,
                }),
            },
        };
        let Some(mut item) = item else { return Ok(None) };
        if options.embed {
            item = item.into_embedding(options.dimensions)?;
        }
        item.complete(options)?;
        Ok(Some(item))
    }
}

/// The ids of all items at sixteen bytes each, to find one that comes twice.
#[derive(Default)]
pub(super) struct Ids(Vec<(u64, u32)>);

impl Ids {
    pub(super) fn insert(&mut self, id: &str, line: u64) {
        let mut short = [0; 8];
        short.copy_from_slice(&Sha256::digest(id)[..8]);
        self.0.push((u64::from_le_bytes(short), u32::try_from(line).unwrap_or(u32::MAX)));
    }

    pub(super) fn check(mut self) -> Result<(), InputError> {
        self.0.sort_unstable();
        let twice =
            self.0.windows(2).filter(|pair| pair[0].0 == pair[1].0).map(|pair| (pair[1].1, pair[0].1)).min();
        match twice {
            None => Ok(()),
            Some((second, first)) => {
                let what = format!("the `custom_id` of line {first} again");
                Err(InputError::at(second.into(), what, "give each line its own"))
            }
        }
    }
}

/// Tells how an input looks by its suffix, else by its first item.
pub(super) fn detect(file: &Path, suffix: Option<&str>) -> Result<Format, Error> {
    let objects = match suffix {
        Some("csv") => return Ok(Format::Csv),
        Some("tsv") => return Ok(Format::Tsv),
        Some("txt") => return Ok(Format::Lines),
        Some("jsonl" | "ndjson") => true,
        Some(_) | None => false,
    };
    let reader = BufReader::new(File::open(file).map_err(|e| Error::io("open", file, e))?);
    let mut lines = Lines::new(reader);
    let first = lines.peek()?.map(serde_json::from_str::<Map<String, Value>>);
    Ok(match first {
        Some(Ok(object)) if object.contains_key("body") => Format::Batch,
        Some(Ok(_)) => Format::Jsonl,
        Some(Err(_)) | None if objects => Format::Jsonl,
        Some(Err(_)) | None => Format::Lines,
    })
}
