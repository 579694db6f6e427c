//! Documents as they are read: text and Markdown as they are, PDF through `pdftotext` where it is installed.
//!
//! Everything that is wrong with a document is said before any work starts, with the place and the remedy.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    process::{Command, Stdio},
};

use sha2::{Digest as _, Sha256};

use super::{Error, InputError};

/// The largest document that is taken: sixteen times the Bible. Larger is a heap of documents, or no document.
pub const MAX_DOCUMENT: u64 = 64 << 20;

/// How a text is marked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Markup {
    /// Not at all.
    Plain,
    /// With Markdown.
    Markdown,
}

/// A document as it is worked on.
#[derive(Clone, PartialEq, Eq)]
pub struct Document {
    /// What the user called it: the path as typed, or `stdin`.
    pub name: String,
    /// Its words, without BOM and `\r`.
    pub text: String,
    /// How they are marked up.
    pub markup: Markup,
    /// The size of what was read.
    pub bytes: u64,
    /// SHA-256 of what was read.
    pub sha256: [u8; 32],
}

impl Document {
    /// Reads a document: `-` is stdin; what begins as a PDF is turned into text by `pdftotext`; `.md` and `.markdown`
    /// are Markdown; everything else is plain text in UTF-8.
    ///
    /// # Errors
    /// [`Error::Input`] for what is not text, is empty or too large, and for a PDF where there is no `pdftotext`;
    /// [`Error::Io`] for what cannot be read.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let stdin = path.as_os_str() == "-";
        let name = if stdin { "stdin".to_owned() } else { path.display().to_string() };
        let named = |error: InputError| InputError { what: format!("{name}: {}", error.what), ..error };
        let raw = if stdin {
            take(&mut io::stdin().lock()).map_err(|e| Error::io("read", path, e))?
        } else {
            let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
            if file.metadata().map_err(|e| Error::io("look at", path, e))?.is_dir() {
                return Err(named(InputError::at(0, "a directory", "name its files")).into());
            }
            take(&mut &file).map_err(|e| Error::io("read", path, e))?
        };
        let (bytes, sha256) = (raw.len() as u64, Sha256::digest(&raw).into());
        if bytes > MAX_DOCUMENT {
            let what = format!("larger than {} MiB", MAX_DOCUMENT >> 20);
            return Err(named(InputError::at(0, what, "split it")).into());
        }
        let (raw, markup) = if raw.starts_with(b"%PDF-") {
            (pdf(path, stdin).map_err(named)?, Markup::Plain)
        } else {
            let suffix = path.extension().and_then(|suffix| suffix.to_str()).map(str::to_ascii_lowercase);
            let markdown = matches!(suffix.as_deref(), Some("md" | "markdown"));
            (raw, if markdown { Markup::Markdown } else { Markup::Plain })
        };
        let text = text(raw).map_err(named)?;
        if text.trim().is_empty() {
            let remedy = if text.contains('\u{c}') {
                "a PDF of pictures has no words: read it with an OCR program first"
            } else {
                "name another, or leave it out"
            };
            return Err(named(InputError::at(0, "there is no text in it", remedy)).into());
        }
        Ok(Self { name, text, markup, bytes, sha256 })
    }
}

/// Reads one byte more than a document may have, at most.
fn take(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut raw = Vec::new();
    from.take(MAX_DOCUMENT + 1).read_to_end(&mut raw)?;
    Ok(raw)
}

/// Checks that it is text in UTF-8, and drops the BOM and every `\r`.
fn text(raw: Vec<u8>) -> Result<String, InputError> {
    if raw.starts_with(&[0xff, 0xfe]) || raw.starts_with(&[0xfe, 0xff]) {
        return Err(InputError::at(1, "UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"));
    }
    let line = |at: usize| raw[..at].iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
    if let Some(at) = raw.iter().position(|byte| *byte == 0) {
        return Err(InputError::at(
            line(at),
            format!("not text: byte {at} is 0"),
            "name a text, Markdown or PDF file",
        ));
    }
    if let Err(error) = std::str::from_utf8(&raw) {
        let at = error.valid_up_to();
        let what = format!("not UTF-8: byte {at} is 0x{:02x}", raw[at]);
        return Err(InputError::at(
            line(at),
            what,
            "convert it: iconv -f LATIN1 -t UTF-8, or name a text file",
        ));
    }
    let text = String::from_utf8(raw).unwrap_or_default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Ok(text.replace('\r', ""))
}

/// Has `pdftotext` turn a PDF into text. Only the path is in its arguments.
fn pdf(path: &Path, stdin: bool) -> Result<Vec<u8>, InputError> {
    if stdin {
        return Err(InputError::at(0, "a PDF on stdin", "name the file"));
    }
    // An absolute path cannot be taken for an option.
    let path = std::path::absolute(path).map_err(|error| {
        InputError::at(0, format!("its path cannot be made absolute ({error})"), "name it in full")
    })?;
    let mut command = Command::new("pdftotext");
    command.args(["-q", "-enc", "UTF-8"]).arg(&path).arg("-");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = child.map_err(|error| {
        let remedy =
            "install poppler (apt install poppler-utils, brew install poppler), or convert the file to text";
        let what = if error.kind() == io::ErrorKind::NotFound {
            "a PDF, and there is no pdftotext here to read it".to_owned()
        } else {
            format!("a PDF, and pdftotext cannot be started ({error})")
        };
        InputError::at(0, what, remedy)
    })?;
    let read = child.stdout.take().map(|mut stdout| take(&mut stdout)).transpose();
    if read.as_ref().is_ok_and(|text| text.as_ref().is_some_and(|text| text.len() as u64 > MAX_DOCUMENT)) {
        // It would wait for ever for somebody to read on.
        let _ = child.kill();
    }
    let ended = child.wait();
    let broken = |what: String| InputError::at(0, what, "convert it to text by other means");
    let text =
        read.map_err(|error| broken(format!("pdftotext cannot be read ({error})")))?.unwrap_or_default();
    if text.len() as u64 > MAX_DOCUMENT {
        return Err(broken(format!("a PDF with more than {} MiB of text", MAX_DOCUMENT >> 20)));
    }
    match ended {
        Ok(status) if status.success() => Ok(text),
        Ok(status) => Err(broken(format!("a PDF that pdftotext cannot read ({status})"))),
        Err(error) => Err(broken(format!("pdftotext was lost ({error})"))),
    }
}

impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Document")
            .field("name", &self.name)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, content: &[u8]) -> Result<Document, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        Document::read(&path).map_err(|error| {
            assert_eq!(error.exit_code(), 65, "{error}");
            error.to_string()
        })
    }

    #[test]
    fn what_is_no_text_is_refused_with_its_line_and_a_remedy() {
        for (content, line, what) in [
            (&b"one\ntwo\0three"[..], "line 2: ", "byte 7 is 0"),
            (b"one\n\xe9t\xe9", "line 2: ", "not UTF-8: byte 4 is 0xe9"),
            (b"\xff\xfea\0", "line 1: ", "UTF-16"),
            (b"", "", "there is no text in it"),
            (b" \n\t\r\n", "", "there is no text in it"),
        ] {
            let error = read("d.txt", content).unwrap_err();
            assert!(error.starts_with(line) && error.contains(what) && error.contains("; "), "{error}");
        }
    }

    #[test]
    fn a_bom_and_carriage_returns_are_dropped_and_the_hash_is_of_what_was_read() {
        let document = read("d.MD", b"\xef\xbb\xbf# One\r\n\r\ntext\r\n").unwrap();
        assert_eq!((document.text.as_str(), document.markup), ("# One\n\ntext\n", Markup::Markdown));
        assert_eq!(document.bytes, 18);
        assert_eq!(read("d.txt", b"# One").unwrap().markup, Markup::Plain);
    }

    #[test]
    fn a_broken_pdf_is_refused_whether_or_not_it_could_be_read() {
        let error = read("d.txt", b"%PDF-1.7\nnothing of the kind").unwrap_err();
        assert!(error.contains("PDF") && error.contains("; "), "{error}");
    }

    #[test]
    fn what_is_not_there_or_a_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Document::read(dir.path()).unwrap_err();
        assert!(error.to_string().contains("a directory; name its files"), "{error}");
        assert_eq!(Document::read(&dir.path().join("none")).unwrap_err().exit_code(), 65);
    }
}
