//! Independent items: the job of `tropa run`. Reads an input twice, first to check and measure it, then to make
//! chunks of it.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufReader, BufWriter, Read, Write as _},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tropa_proto::{id::hex, message::Endpoint, system};

use super::{
    DEFAULT_MAX_TOKENS, Error, Format, InputError, JobOptions, Origin, Think,
    classes::Contexts,
    item::{Item, LOAD_OPTIONS, full_name},
    items::{Ids, Items, detect},
    prefix::Prefixes,
};
use crate::journal::NewChunk;

/// Models that one job may name: each is pinned, looked up on every install and shown in the plan.
const MAX_MODELS: usize = 64;

/// Where an input comes from.
pub enum Input<'a> {
    /// A file; what is no regular file, such as a pipe, is copied like a stream.
    File(&'a Path),
    /// Stdin, or anything else that can be read once.
    Stream(&'a mut dyn Read),
}

/// An input that has been read once: it is whole, every item is fine, and what the job needs is known.
#[derive(Debug)]
pub struct Prepared {
    file: PathBuf,
    /// Whether the file is our copy, to be removed at the end.
    copied: bool,
    options: JobOptions,
    items: u32,
    blank: u64,
    /// The contexts of its classes, rising.
    contexts: Vec<u32>,
    prefixes: Prefixes,
    load: Map<String, Value>,
    models: BTreeSet<String>,
    unnamed: u32,
    generates: u32,
    prompt_tokens: u64,
    output_tokens: u64,
    longest: u32,
    sha256: [u8; 32],
    bytes: u64,
}

/// The chunks of an input, made as they are asked for.
pub struct Chunks<'a> {
    job: &'a Prepared,
    items: Items<BufReader<File>>,
    model: String,
    made: u32,
    over: bool,
}

/// Reads an input, checks every item and finds out what the job needs. `copy` is where to keep an input that can
/// be read only once, for this user alone; it is removed with the [`Prepared`].
///
/// # Errors
/// [`Error::Input`] for the first item that cannot be used, an empty input, or two items of one `custom_id`;
/// [`Error::Option`] for options that do not fit the input; [`Error::Io`].
pub fn prepare(input: Input<'_>, copy: &Path, options: JobOptions) -> Result<Prepared, Error> {
    let (file, copied, suffix) = match input {
        Input::Stream(stream) => (keep(stream, copy, "-".as_ref())?, true, None),
        Input::File(path) => {
            let suffix = path.extension().and_then(|suffix| suffix.to_str()).map(str::to_ascii_lowercase);
            let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
            let kind = file.metadata().map_err(|e| Error::io("look at", path, e))?.file_type();
            if kind.is_dir() {
                return Err(InputError::at(0, "a directory", "name a file").into());
            }
            if !kind.is_file() {
                (keep(&mut file, copy, path)?, true, suffix)
            } else {
                (path.to_owned(), false, suffix)
            }
        }
    };
    let mut prepared = Prepared {
        file,
        copied,
        options,
        items: 0,
        blank: 0,
        contexts: Vec::new(),
        prefixes: Prefixes::default(),
        load: Map::new(),
        models: BTreeSet::new(),
        unnamed: 0,
        generates: 0,
        prompt_tokens: 0,
        output_tokens: 0,
        longest: 0,
        sha256: [0; 32],
        bytes: 0,
    };
    if prepared.options.format == Format::Auto {
        prepared.options.format = detect(&prepared.file, suffix.as_deref())?;
    }
    prepared.measure()?;
    Ok(prepared)
}

/// Gives the SHA-256 of a file as [`Prepared::sha256`] gives it, to compare an input with that of a job.
///
/// # Errors
/// When the file cannot be read.
pub fn file_sha256(path: &Path) -> Result<[u8; 32], Error> {
    let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut hash = Sha256::new();
    let mut buffer = [0; 64 << 10];
    loop {
        match file.read(&mut buffer).map_err(|e| Error::io("read", path, e))? {
            0 => return Ok(hash.finalize().into()),
            count => hash.update(&buffer[..count]),
        }
    }
}

impl Prepared {
    /// How many items there are; at least 1.
    #[must_use]
    pub fn items(&self) -> u32 {
        self.items
    }

    /// How many blank lines were skipped.
    #[must_use]
    pub fn blank_lines(&self) -> u64 {
        self.blank
    }

    /// How the input looks; never [`Format::Auto`].
    #[must_use]
    pub fn format(&self) -> Format {
        self.options.format
    }

    /// The largest context of the job, in tokens: that of `--num-ctx` or of the items' own options, else the largest
    /// need (prompt estimate × 1.15 + limit of the answer + 64) rounded up to 1024.
    #[must_use]
    pub fn num_ctx(&self) -> u32 {
        self.contexts.last().copied().unwrap_or_default()
    }

    /// The contexts of the job's classes, rising; one unless items are of very unequal size and nobody said a value.
    #[must_use]
    pub fn contexts(&self) -> &[u32] {
        &self.contexts
    }

    /// The models that items name, with their tags, sorted.
    #[must_use]
    pub fn models(&self) -> &BTreeSet<String> {
        &self.models
    }

    /// How many items name no model, so that [`Prepared::chunks`] needs one.
    #[must_use]
    pub fn without_model(&self) -> u32 {
        self.unnamed
    }

    /// Says whether the job asks for embeddings and nothing else.
    #[must_use]
    pub fn embeds(&self) -> bool {
        self.generates == 0
    }

    /// Estimated tokens of all prompts together.
    #[must_use]
    pub fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens
    }

    /// Tokens of all answers together, at most.
    #[must_use]
    pub fn output_tokens(&self) -> u64 {
        self.output_tokens
    }

    /// Tokens of the longest answer that an item asks for.
    #[must_use]
    pub fn longest(&self) -> u32 {
        self.longest
    }

    /// Bytes that the journal may need: the input and twice the output, at four bytes a token and with the
    /// journal's own rows.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        /// Of an embedding: 768 numbers at 12 bytes each, twice.
        const VECTOR: u64 = 18 << 10;
        const PLAIN: u64 = 2048;
        let row = if self.embeds() { VECTOR } else { PLAIN };
        self.bytes + 2 * (self.output_tokens.saturating_mul(4)) + u64::from(self.items) * row
    }

    /// SHA-256 of the input's bytes.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// Writes what was asked for as canonical JSON, for the journal.
    #[must_use]
    pub fn spec(&self, model: &str) -> Vec<u8> {
        let options = &self.options;
        json!({
            "schema": "tropa.job/1", "input": options.format.name(), "input_sha256": hex(&self.sha256),
            "items": self.items, "model": full_name(model), "num_ctx": self.num_ctx(), "contexts": self.contexts,
            "max_tokens": options.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS),
            "think": options.think.unwrap_or(Think::Off).value(), "seed": options.seed,
            "temperature": options.temperature, "system": options.system, "template": options.template,
            "id_column": options.id_column, "endpoint": options.endpoint,
            "dimensions": options.dimensions,
        })
        .to_string()
        .into_bytes()
    }

    /// Reads the input again and makes its chunks, one at a time. `model` stands in where an item names none.
    ///
    /// The last item is an error if the input is not what was measured.
    ///
    /// # Errors
    /// When the input cannot be opened again.
    pub fn chunks(&self, model: &str) -> Result<Chunks<'_>, Error> {
        Ok(Chunks { job: self, items: self.open()?, model: model.to_owned(), made: 0, over: false })
    }

    fn open(&self) -> Result<Items<BufReader<File>>, Error> {
        let file = File::open(&self.file).map_err(|e| Error::io("open", &self.file, e))?;
        Items::open(BufReader::with_capacity(64 << 10, file), &self.options)
    }

    fn measure(&mut self) -> Result<(), Error> {
        let mut items = self.open()?;
        let mut needs = Contexts::default();
        let mut ids = Ids::default();
        while let Some(item) = items.next(&self.options)? {
            self.items = self.items.checked_add(1).ok_or_else(|| {
                InputError::at(item.line, format!("more than {} items", u32::MAX), "split the input")
            })?;
            if self.options.format == Format::Batch {
                ids.insert(&item.id, item.line);
            }
            self.check_load_options(&item)?;
            match &item.model {
                Some(model) => _ = self.models.insert(full_name(model)),
                None => self.unnamed += 1,
            }
            if self.models.len() > MAX_MODELS {
                let what = format!("more than {MAX_MODELS} models in one job");
                return Err(InputError::at(item.line, what, "split the input by model").into());
            }
            self.generates += u32::from(item.endpoint != Endpoint::Embed);
            needs.add(item.context());
            let (system, asked) = item.beginning();
            self.prefixes.add(system, asked);
            self.prompt_tokens += item.prompt_tokens();
            self.output_tokens += u64::from(item.num_predict());
            self.longest = self.longest.max(item.num_predict());
        }
        if self.items == 0 {
            return Err(InputError::at(0, "the input holds no item", "add one").into());
        }
        ids.check()?;
        self.blank = items.lines.blank();
        self.sha256 = items.lines.sha256();
        self.bytes = std::fs::metadata(&self.file).map_err(|e| Error::io("look at", &self.file, e))?.len();
        let own =
            self.load.get("num_ctx").and_then(Value::as_u64).and_then(|tokens| u32::try_from(tokens).ok());
        self.contexts = self.options.num_ctx.or(own).map_or_else(|| needs.classes(), |said| vec![said]);
        Ok(())
    }

    /// Sees to it that all items load the model in the same way: another way is a reload for every change.
    fn check_load_options(&mut self, item: &Item) -> Result<(), InputError> {
        let load: Map<_, _> = LOAD_OPTIONS
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), item.options.get(*key)?.clone())))
            .collect();
        if self.items == 1 {
            self.load = load;
        } else if self.load != load {
            let what = format!(
                "options that load the model ({}) differ from those of the first item",
                LOAD_OPTIONS.join(", ")
            );
            return Err(InputError::at(item.line, what, "give all items the same ones, or use --num-ctx"));
        }
        Ok(())
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if self.copied {
            // Best effort: it lies in the directory of the job and goes with it at the latest.
            let _ = std::fs::remove_file(&self.file);
        }
    }
}

impl Iterator for Chunks<'_> {
    type Item = Result<NewChunk, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.next_item()?.map(|item| self.chunk(item)))
    }
}

impl Chunks<'_> {
    /// The model that stands in where an item names none.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// The largest context of the job, for requests that are made of several items.
    pub(super) fn num_ctx(&self) -> u32 {
        self.job.num_ctx()
    }

    /// Gives the next item; the last one is an error if the input is not what was measured.
    pub(super) fn next_item(&mut self) -> Option<Result<Item, Error>> {
        if self.over {
            return None;
        }
        match self.items.next(&self.job.options) {
            Ok(Some(item)) if self.made < self.job.items => {
                self.made += 1;
                Some(Ok(item))
            }
            Ok(None) if self.made == self.job.items && self.items.lines.sha256() == self.job.sha256 => None,
            Ok(_) => {
                self.over = true;
                Some(Err(InputError::at(0, "the input changed while it was read", "run it again").into()))
            }
            Err(error) => {
                self.over = true;
                Some(Err(error))
            }
        }
    }

    fn chunk(&self, item: Item) -> NewChunk {
        // The smallest class that fits it; with a value that was said there is but one.
        let need = item.context();
        let fits = self.job.contexts.iter().copied().find(|context| u64::from(*context) >= need);
        let num_ctx = fits.unwrap_or(self.job.num_ctx());
        let body = item.body(&self.model, num_ctx);
        let (system, asked) = item.beginning();
        let prefix = self.job.prefixes.of(system, asked);
        let origin = Origin {
            line: item.line,
            stage: None,
            shape: item.shape,
            num_ctx,
            seed: item.options.get("seed").and_then(Value::as_i64),
            num_predict: item.num_predict(),
            prompt_tokens: u32::try_from(item.prompt_tokens()).unwrap_or(u32::MAX),
            prefix,
            id: item.id,
            metadata: item.metadata,
        };
        NewChunk {
            endpoint: item.endpoint,
            model: full_name(item.model.as_deref().unwrap_or(&self.model)),
            body,
            needs: BTreeSet::new(),
            shown: true,
            origin: json!(origin).to_string(),
        }
    }
}

/// Copies what can be read only once.
fn keep(stream: &mut dyn Read, copy: &Path, from: &Path) -> Result<PathBuf, Error> {
    let mut options = system::files(0o600);
    let options = options.write(true).create(true).truncate(true);
    let file = options.open(copy).map_err(|e| Error::io("create", copy, e))?;
    let mut writer = BufWriter::new(file);
    let mut buffer = [0; 64 << 10];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io("read", from, error)),
        };
        writer.write_all(&buffer[..count]).map_err(|e| Error::io("write", copy, e))?;
    }
    writer.flush().map_err(|e| Error::io("write", copy, e))?;
    Ok(copy.to_owned())
}

impl std::fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

impl std::fmt::Debug for Chunks<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chunks").field("made", &self.made).finish_non_exhaustive()
    }
}
