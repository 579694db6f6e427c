//! How the lines of a stream leave: one chunk each, or in one of the legal but awkward ways, or broken.

use std::io;
use std::time::Duration;

use super::faults::{Fault, Mode};
use super::http::Out;

/// A stream of JSON lines. Nothing leaves before the first one: headers come with it.
#[derive(Debug)]
pub(crate) struct Lines<'a> {
    out: &'a mut Out,
    fault: Option<Fault>,
    held: Vec<u8>,
}

impl<'a> Lines<'a> {
    pub(crate) fn begin(out: &'a mut Out, fault: Option<Fault>) -> Self {
        out.begin(200, "application/x-ndjson");
        if let Some(fault) = fault.as_ref().filter(|fault| fault.mode == Mode::Drip) {
            out.drip = Some(Duration::from_millis(fault.number("ms").unsigned_abs()));
        }
        Self { out, fault, held: Vec::new() }
    }

    /// One line that is not the last; the bytes come without a line end.
    pub(crate) async fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let bytes = self.dressed(line);
        match self.mode() {
            Some(Mode::OnePacket) => self.held.extend_from_slice(&bytes),
            Some(Mode::Split | Mode::SplitUtf8) => {
                for part in self.parts(&bytes) {
                    self.out.chunk(part).await?;
                    // Lets the other side read this part before the next one leaves.
                    tokio::task::yield_now().await;
                }
            }
            Some(_) | None => self.out.chunk(&bytes).await?,
        }
        Ok(())
    }

    /// The last line and the clean end.
    pub(crate) async fn last(&mut self, line: &[u8]) -> io::Result<()> {
        let mut bytes = self.dressed(line);
        match self.mode() {
            Some(Mode::NoLastNewline) => {
                bytes.pop();
                self.out.end(&bytes).await
            }
            Some(Mode::AfterDone) => {
                self.out.chunk(&bytes).await?;
                self.out.end(b"{\"error\":\"late\"}\nnoise\n").await
            }
            Some(Mode::Split | Mode::SplitUtf8) => {
                self.line(line).await?;
                self.out.end(b"").await
            }
            Some(Mode::OnePacket) => {
                self.held.extend_from_slice(&bytes);
                self.out.end(&self.held).await
            }
            Some(_) | None => self.out.end(&bytes).await,
        }
    }

    /// The clean end, without another line.
    pub(crate) async fn end(&mut self) -> io::Result<()> {
        self.out.end(&self.held).await
    }

    /// The connection ends inside the chunk of this line.
    pub(crate) async fn cut(&mut self, line: &[u8]) -> io::Result<()> {
        self.out.cut(line).await
    }

    /// The connection ends with a reset.
    pub(crate) fn reset(&mut self) {
        self.out.reset();
    }

    /// Gives up the stream before anything left, for a whole reply.
    pub(crate) fn into_out(self) -> &'a mut Out {
        self.out
    }

    fn mode(&self) -> Option<Mode> {
        self.fault.as_ref().map(|fault| fault.mode)
    }

    fn dressed(&self, line: &[u8]) -> Vec<u8> {
        let (before, after): (&[u8], &[u8]) = match self.mode() {
            Some(Mode::Crlf) => (b"", b"\r\n"),
            Some(Mode::BlankLines) => (b"\n", b"\n\r\n\n"),
            Some(_) | None => (b"", b"\n"),
        };
        [before, line, after].concat()
    }

    /// The line in parts: of so many bytes, or cut inside every character that can be cut.
    fn parts<'b>(&self, bytes: &'b [u8]) -> Vec<&'b [u8]> {
        if let Some(fault) = self.fault.as_ref().filter(|fault| fault.mode == Mode::Split) {
            let size = usize::try_from(fault.number("bytes")).unwrap_or(1).max(1);
            return bytes.chunks(size).collect();
        }
        // A byte from 0xC0 up begins a character of several bytes: it ends its part.
        bytes.split_inclusive(|byte| *byte >= 0xC0).collect()
    }
}
