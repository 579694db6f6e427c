//! Bytes into lines: network chunks end anywhere, also inside a character; a line is handed out when complete.

use bytes::{Bytes, BytesMut};

/// Bytes of one line, where Ollama's own client and its inner reader stop (`ollama-api.md` §1).
pub(super) const MAX_LINE: usize = 8 << 20;

/// Splits a stream of bytes at `\n`, drops `\r` before it and skips blank lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: BytesMut,
    /// So many bytes at the start of `buffer` hold no `\n`, so a long line is searched once.
    searched: usize,
}

/// Says that a line is above [`MAX_LINE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LineTooLong;

impl Lines {
    /// Adds what arrived.
    pub(super) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// Takes the next complete line that is not blank, without its end.
    ///
    /// # Errors
    /// When the line, complete or not, is above [`MAX_LINE`].
    pub(super) fn next_line(&mut self) -> Result<Option<Bytes>, LineTooLong> {
        loop {
            let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.buffer.len();
                return if self.searched > MAX_LINE { Err(LineTooLong) } else { Ok(None) };
            };
            let line = self.buffer.split_to(self.searched + at + 1).freeze();
            self.searched = 0;
            if let Some(line) = trimmed(line)? {
                return Ok(Some(line));
            }
        }
    }

    /// Takes what stands after the last `\n`, at a clean end: it counts as a line.
    ///
    /// # Errors
    /// When it is above [`MAX_LINE`].
    pub(super) fn finish(&mut self) -> Result<Option<Bytes>, LineTooLong> {
        self.searched = 0;
        trimmed(self.buffer.split().freeze())
    }
}

fn trimmed(line: Bytes) -> Result<Option<Bytes>, LineTooLong> {
    let mut end = line.len();
    if line[..end].ends_with(b"\n") {
        end -= 1;
    }
    if line[..end].ends_with(b"\r") {
        end -= 1;
    }
    if end > MAX_LINE {
        return Err(LineTooLong);
    }
    let line = line.slice(..end);
    Ok(if line.iter().all(u8::is_ascii_whitespace) { None } else { Some(line) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(stream: &[u8], size: usize) -> Vec<Vec<u8>> {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        for chunk in stream.chunks(size) {
            lines.push(chunk);
            while let Some(line) = lines.next_line().unwrap() {
                out.push(line.to_vec());
            }
        }
        out.extend(lines.finish().unwrap().map(|line| line.to_vec()));
        out
    }

    #[test]
    fn lines_do_not_depend_on_where_the_network_cuts() {
        let stream = "{\"a\":\"é🦙\"}\r\n\n  \n{}\r\n\r\n{\"last\":1}".as_bytes();
        let whole = split(stream, stream.len());
        assert_eq!(whole, ["{\"a\":\"é🦙\"}".as_bytes(), b"{}", b"{\"last\":1}"]);
        for size in 1..=stream.len() {
            assert_eq!(split(stream, size), whole, "chunks of {size}");
        }
    }

    #[test]
    fn any_bytes_split_as_a_plain_split_would() {
        // A small generator is enough here: the alphabet is what matters, so every byte is one of five.
        for seed in 0_u64..2_000 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut next = move || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state
            };
            let len = usize::try_from(next() % 60).unwrap();
            let stream: Vec<u8> =
                (0..len).map(|_| b"\n\r a\xf0"[usize::try_from(next() % 5).unwrap()]).collect();
            let expected: Vec<Vec<u8>> = stream
                .split(|byte| *byte == b'\n')
                .map(|line| line.strip_suffix(b"\r").unwrap_or(line).to_vec())
                .filter(|line| !line.iter().all(u8::is_ascii_whitespace))
                .collect();
            for size in 1..=7 {
                assert_eq!(split(&stream, size), expected, "seed {seed}, chunks of {size}");
            }
        }
    }

    #[test]
    fn a_line_may_have_eight_mebibytes_and_not_one_byte_more() {
        let mut lines = Lines::default();
        lines.push(&vec![b'a'; MAX_LINE]);
        assert_eq!(lines.next_line(), Ok(None));
        lines.push(b"\n");
        assert_eq!(lines.next_line().unwrap().unwrap().len(), MAX_LINE);
        lines.push(&vec![b'a'; MAX_LINE + 1]);
        assert_eq!(lines.next_line(), Err(LineTooLong));
    }
}
