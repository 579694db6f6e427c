//! Results on their way to the user: one line per item, in input order unless asked otherwise.
//!
//! The journal is the truth and an output only an export of it, so nothing is kept here but which items are
//! finished: a line is made from its row when its turn has come. A file is complete or not there at all: it is
//! written beside its place, synced and renamed when the job is done. On stdout lines appear in order as results
//! are committed, so that a reader can begin at once.

mod batch;
mod line;
mod long;
mod summary;
mod text;
mod vectors;

use std::{
    fmt,
    fs::File,
    io::{self, BufWriter, IsTerminal as _, Write},
    path::{Path, PathBuf},
};

use tropa_proto::{
    id::ChunkIndex,
    proof::{Bug, planted},
    system,
};

use crate::journal::{self, Finished, Journal};

pub use line::line;
pub use long::Remarks;
pub use summary::Summary;
pub(crate) use summary::duration;
pub use text::{Answer, answers};
pub(crate) use vectors::width as vector_width;

/// Lines that one commit may release. An item that was slow holds back all behind it; they are not to hold up
/// the loop in one piece. The rest comes with the next commits and at the end.
const LINES_PER_COMMIT: u32 = 256;

/// Where results go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To stdout.
    Stdout,
    /// Into a file, with failures once more in `<file>.errors.jsonl`.
    File(PathBuf),
    /// Nowhere: whoever runs the job reads its journal.
    Nowhere,
}

/// How results look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One line of JSON for every item.
    Lines,
    /// One text for people, Markdown, when all is done.
    Text,
    /// The vectors of a job of embeddings as one NumPy array, when all is done; failed rows are named on stderr.
    Array,
}

/// The output of one job.
pub struct Output {
    destination: Destination,
    form: Form,
    /// The open stream; `None` for what is written at the end.
    stream: Option<BufWriter<Box<dyn Write + Send>>>,
    as_completed: bool,
    /// Which chunks are finished.
    finished: Finished,
    /// The chunks that are items, in order; `None` where all are.
    shown: Option<Vec<ChunkIndex>>,
    /// The first item that has not been written.
    next: u32,
    items: u32,
}

/// Why results cannot be written; exit code 74.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or stdout did not take them.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// The operation.
        doing: &'static str,
        /// The file, or the word `stdout`.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The journal cannot be read.
    #[error("cannot read a result")]
    Journal(#[from] journal::Error),
}

impl Output {
    /// Opens the output of a job and writes what is finished already, as far as the order allows.
    ///
    /// `as_completed` gives up the order: each line is written when its result is committed, and a file is then
    /// written in place.
    ///
    /// A text and an array appear when all is done, whatever `as_completed` says.
    ///
    /// # Errors
    /// When the file cannot be written, which is tried now and not after hours of work.
    pub fn open(
        journal: &Journal,
        destination: Destination,
        form: Form,
        as_completed: bool,
    ) -> Result<Self, Error> {
        let as_completed = as_completed && form == Form::Lines;
        let destination = match destination {
            // What is behind a link is meant, not the link.
            Destination::File(path) => Destination::File(path.canonicalize().unwrap_or(path)),
            Destination::Stdout | Destination::Nowhere => destination,
        };
        let stream: Option<Box<dyn Write + Send>> = match &destination {
            Destination::Nowhere => None,
            Destination::Stdout if form != Form::Lines => None,
            Destination::File(path) if form != Form::Lines && is_special(path) => None,
            Destination::Stdout => Some(Box::new(io::stdout())),
            Destination::File(path) if as_completed || is_special(path) => {
                Some(Box::new(File::create(path).map_err(|e| Error::io("create", path, e))?))
            }
            Destination::File(path) => {
                let beside = beside(path, journal);
                File::create(&beside).map_err(|e| Error::io("create", &beside, e))?;
                std::fs::remove_file(&beside).map_err(|e| Error::io("remove", &beside, e))?;
                None
            }
        };
        Self::with(journal, destination, form, stream, as_completed)
    }

    fn with(
        journal: &Journal,
        destination: Destination,
        form: Form,
        stream: Option<Box<dyn Write + Send>>,
        as_completed: bool,
    ) -> Result<Self, Error> {
        let as_completed = as_completed || planted(Bug::OutputByCompletion);
        let finished = journal.load()?.finished;
        let stream = stream.map(|stream| BufWriter::with_capacity(64 << 10, stream));
        let (shown, items) = (journal.shown()?, journal.job().items);
        let mut output = Self { destination, form, stream, as_completed, finished, shown, next: 0, items };
        if as_completed {
            for index in 0..items {
                if output.finished.contains(output.chunk_of(index)) {
                    output.write(journal, index)?;
                }
            }
            output.flush()?;
        } else {
            output.release(journal, LINES_PER_COMMIT)?;
        }
        Ok(output)
    }

    /// How many chunks have a result, and how many failed.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.finished.done().into(), self.finished.failed().into())
    }

    /// Takes note that a chunk is finished in the journal, and writes what is due. Stdout that is not read makes
    /// this wait.
    ///
    /// # Errors
    /// When the output does not take it or the journal does not give it.
    pub fn committed(&mut self, journal: &Journal, chunk: ChunkIndex) -> Result<(), Error> {
        if self.finished.contains(chunk) {
            return Ok(());
        }
        let done = !journal.is_failed(chunk)?;
        self.finished.insert(chunk, done);
        if self.as_completed {
            if let Some(item) = self.item_of(chunk) {
                self.write(journal, item)?;
            }
            return self.flush();
        }
        self.release(journal, LINES_PER_COMMIT)
    }

    /// Writes what is left: on a stream all lines that are due, into a file all of it if every item is finished.
    ///
    /// Returns whether the output is complete.
    ///
    /// # Errors
    /// As [`Output::committed`]. A file of an earlier run is then still there as it was.
    pub fn finish(mut self, journal: &Journal) -> Result<bool, Error> {
        self.release(journal, u32::MAX)?;
        let complete = self.finished.done() + self.finished.failed() == journal.job().chunks;
        if complete && self.form == Form::Text {
            self.write_text(journal)?;
        }
        let Destination::File(path) = self.destination.clone() else { return Ok(complete) };
        if self.form == Form::Array {
            if complete {
                let (failed, count) = vectors::npy(journal, &path)?;
                say_failed(&failed, count);
            }
            return Ok(complete);
        }
        if is_special(&path) {
            return Ok(complete);
        }
        if self.form == Form::Text {
            // It is there.
        } else if self.stream.is_some() {
            self.flush()?;
            File::open(&path).and_then(|file| file.sync_all()).map_err(|e| Error::io("sync", &path, e))?;
        } else if complete {
            export(journal, &path, 0..self.items)?;
        }
        if complete {
            let errors = errors_file(&path);
            let failed = |index: &u32| self.finished.is_failed(self.chunk_of(*index));
            if (0..self.items).any(|index| failed(&index)) {
                export(journal, &errors, (0..self.items).filter(failed))?;
            } else if let Err(error) = std::fs::remove_file(&errors)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(Error::io("remove", &errors, error));
            }
        }
        Ok(complete)
    }

    /// Writes the text of a job that is done: to where it is written to, else into a file that is replaced in one
    /// step. Where nothing succeeded there is no text.
    fn write_text(&self, journal: &Journal) -> Result<(), Error> {
        let Some(text) = text::text(journal)? else { return Ok(()) };
        match &self.destination {
            Destination::Nowhere => Ok(()),
            Destination::Stdout => {
                let mut stdout = io::stdout().lock();
                let shown = if stdout.is_terminal() { text::escaped_lines(&text) } else { text };
                let written = stdout.write_all(shown.as_bytes()).and_then(|()| stdout.flush());
                written.map_err(|e| Error::io("write", Path::new("stdout"), e))
            }
            Destination::File(path) if is_special(path) => File::create(path)
                .and_then(|mut file| file.write_all(text.as_bytes()))
                .map_err(|e| Error::io("write", path, e)),
            Destination::File(path) => replace(journal, path, |stream, beside| {
                stream.write_all(text.as_bytes()).map_err(|e| Error::io("write", beside, e))
            }),
        }
    }

    fn release(&mut self, journal: &Journal, limit: u32) -> Result<(), Error> {
        if self.as_completed || self.stream.is_none() {
            return Ok(());
        }
        let end = self.next.saturating_add(limit);
        while self.next < end.min(self.items) && self.finished.contains(self.chunk_of(self.next)) {
            self.write(journal, self.next)?;
            self.next += 1;
        }
        self.flush()
    }

    /// The chunk of an item; one that is never finished for an item that there is not.
    fn chunk_of(&self, item: u32) -> ChunkIndex {
        let Some(shown) = &self.shown else { return ChunkIndex(item) };
        shown.get(item as usize).copied().unwrap_or(ChunkIndex(u32::MAX))
    }

    /// The item that a chunk is, if it is one.
    fn item_of(&self, chunk: ChunkIndex) -> Option<u32> {
        let Some(shown) = &self.shown else { return Some(chunk.0) };
        shown.binary_search(&chunk).ok().and_then(|item| u32::try_from(item).ok())
    }

    fn write(&mut self, journal: &Journal, index: u32) -> Result<(), Error> {
        let path = self.path();
        let Some(stream) = &mut self.stream else { return Ok(()) };
        put(journal, index, stream, &path)
    }

    fn flush(&mut self) -> Result<(), Error> {
        let path = self.path();
        let Some(stream) = &mut self.stream else { return Ok(()) };
        stream.flush().map_err(|e| Error::io("write", &path, e))
    }

    fn path(&self) -> PathBuf {
        match &self.destination {
            Destination::Stdout | Destination::Nowhere => PathBuf::from("stdout"),
            Destination::File(path) => path.clone(),
        }
    }
}

/// Writes the lines of these items into a file that appears with all of them or not at all.
///
/// # Errors
/// When a step fails; a file that was there before is then still there as it was.
fn export(journal: &Journal, path: &Path, items: impl Iterator<Item = u32>) -> Result<(), Error> {
    replace(journal, path, |stream, beside| {
        for index in items {
            put(journal, index, stream, beside)?;
        }
        Ok(())
    })
}

/// Writes a file that appears whole or not at all: beside its place, synced, renamed.
fn replace(
    journal: &Journal,
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>, &Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let beside = beside(path, journal);
    let file = File::create(&beside).map_err(|e| Error::io("create", &beside, e))?;
    let mut stream = BufWriter::with_capacity(64 << 10, file);
    write(&mut stream, &beside)?;
    let file = stream.into_inner().map_err(|e| Error::io("write", &beside, e.into_error()))?;
    file.sync_all().map_err(|e| Error::io("sync", &beside, e))?;
    std::fs::rename(&beside, path).map_err(|e| Error::io("rename to", path, e))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    system::sync_directory(dir).map_err(|e| Error::io("sync", dir, e))
}

fn put(journal: &Journal, index: u32, to: &mut impl Write, path: &Path) -> Result<(), Error> {
    if let Some(item) = journal.item(index)? {
        let batch =
            (journal.job().kind == journal::Kind::Embed).then(|| vectors::lines(journal.job(), &item));
        let lines = batch.flatten().unwrap_or_else(|| vec![line(journal.job(), &item)]);
        for line in lines {
            writeln!(to, "{line}").map_err(|e| Error::io("write", path, e))?;
        }
    }
    Ok(())
}

/// Names the rows of an array that have no vector.
#[expect(clippy::print_stderr, reason = "messages go to stderr")]
fn say_failed(failed: &[u64], count: u64) {
    if count > 0 {
        let rows: Vec<String> = failed.iter().map(ToString::to_string).collect();
        let more = if count > failed.len() as u64 { " and more" } else { "" };
        eprintln!("{count} rows failed and are NaN, counted from 0: {}{more}", rows.join(", "));
    }
}

/// Says whether a path is a device, a pipe or the like, which is written to and never replaced.
fn is_special(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| !meta.is_file())
}

/// Names the file in which an output grows: beside its place, so that renaming it is one step, and by the job, so
/// that the next run of a job that was killed here takes it over.
fn beside(path: &Path, journal: &Journal) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", journal.job().id.short()));
    PathBuf::from(name)
}

/// Names the file of failures beside an output.
#[must_use]
pub fn errors_file(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".errors.jsonl");
    PathBuf::from(name)
}

impl Error {
    fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), source }
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("destination", &self.destination)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
