//! HTTP/1.1 by hand, server side: as much as the engine's clients use, and every byte of the framing in reach.
//! A request has a `Content-Length` or no body; a reply is whole or chunked. A reset, a chunk that is cut in the
//! middle and a dripping body are ordinary operations here, which is why no HTTP library stands in between.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::clock::{self, Calendar};

/// Longest request head: ten times what any client of ours sends.
const MAX_HEAD: usize = 64 * 1024;

/// Longest request body: a prompt of the largest context with room for images.
const MAX_BODY: usize = 64 * 1024 * 1024;

/// Bytes that a client may send ahead of its answer before they are left in the kernel.
const MAX_AHEAD: usize = 64 * 1024;

/// A request, whole.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) head: Bytes,
    pub(crate) body: Bytes,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

/// The first header of this name in a request head, without white space around it.
pub(crate) fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    let lines = head.split(|byte| *byte == b'\n').skip(1);
    lines
        .filter_map(|line| std::str::from_utf8(line).ok()?.split_once(':'))
        .find_map(|(key, value)| key.trim().eq_ignore_ascii_case(name).then(|| value.trim()))
}

/// The reading side of a connection.
#[derive(Debug)]
pub(crate) struct Reader {
    half: OwnedReadHalf,
    buffer: BytesMut,
}

impl Reader {
    /// The next request; `None` when the client left between requests.
    pub(crate) async fn next(&mut self, out: &mut Out) -> io::Result<Option<Request>> {
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "request head too long"));
            }
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        };
        let head = self.buffer.split_to(end).freeze();
        let bad = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let first = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let mut words = std::str::from_utf8(first).map_err(|_| bad("request line"))?.split(' ');
        let (Some(method), Some(path)) = (words.next(), words.next()) else {
            return Err(bad("request line"));
        };
        let (method, path) = (method.to_owned(), path.to_owned());
        let length = header(&head, "content-length").unwrap_or("0").parse().ok();
        let length: usize =
            length.filter(|length| *length <= MAX_BODY).ok_or_else(|| bad("content length"))?;
        if header(&head, "transfer-encoding").is_some() {
            return Err(bad("chunked request"));
        }
        out.close = header(&head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        if header(&head, "expect").is_some() && self.buffer.len() < length {
            out.raw(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        while self.buffer.len() < length {
            self.buffer.reserve(length - self.buffer.len());
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
        let body = self.buffer.split_to(length).freeze();
        Ok(Some(Request { method, path, head, body }))
    }

    /// Returns when the client has hung up. Safe to drop at any await.
    pub(crate) async fn gone(&mut self) {
        loop {
            if self.buffer.len() > MAX_AHEAD {
                std::future::pending::<()>().await;
            }
            match self.half.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}

/// The writing side of a connection.
#[derive(Debug)]
pub(crate) struct Out {
    /// Absent after a reset.
    half: Option<OwnedWriteHalf>,
    calendar: Calendar,
    /// Head of a chunked reply that waits for its first chunk: both leave in one packet.
    head: Vec<u8>,
    pub(crate) close: bool,
    /// Writes one byte at a time with this pause.
    pub(crate) drip: Option<Duration>,
}

impl Out {
    /// Splits a connection.
    pub(crate) fn split(stream: TcpStream, calendar: Calendar) -> (Reader, Self) {
        let (read, write) = stream.into_split();
        let reader = Reader { half: read, buffer: BytesMut::with_capacity(4096) };
        (reader, Self { half: Some(write), calendar, head: Vec::new(), close: false, drip: None })
    }

    /// A whole reply; `extra` are header lines with their line ends.
    pub(crate) async fn whole(
        &mut self,
        status: u16,
        kind: Option<&str>,
        extra: &str,
        body: &[u8],
    ) -> io::Result<()> {
        self.head.clear();
        let mut bytes = self.head_of(status, kind);
        bytes.extend_from_slice(extra.as_bytes());
        bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
        bytes.extend_from_slice(body);
        self.raw(&bytes).await
    }

    /// Begins a chunked reply; nothing leaves before the first chunk.
    pub(crate) fn begin(&mut self, status: u16, kind: &str) {
        self.head = self.head_of(status, Some(kind));
        self.head.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
    }

    /// One chunk.
    pub(crate) async fn chunk(&mut self, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let mut bytes = std::mem::take(&mut self.head);
        bytes.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
        bytes.extend_from_slice(data);
        bytes.extend_from_slice(b"\r\n");
        self.raw(&bytes).await
    }

    /// A last chunk, if there is data, and the clean end of a chunked reply in one packet.
    pub(crate) async fn end(&mut self, data: &[u8]) -> io::Result<()> {
        let mut bytes = std::mem::take(&mut self.head);
        if !data.is_empty() {
            bytes.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
            bytes.extend_from_slice(data);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        self.raw(&bytes).await
    }

    /// Announces a chunk, sends half of it, and ends the connection.
    pub(crate) async fn cut(&mut self, data: &[u8]) -> io::Result<()> {
        let mut bytes = std::mem::take(&mut self.head);
        bytes.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
        bytes.extend_from_slice(&data[..data.len() / 2]);
        self.close = true;
        self.raw(&bytes).await
    }

    /// Makes the end of this connection a TCP reset instead of a clean one.
    pub(crate) fn reset(&mut self) {
        self.close = true;
        if let Some(half) = self.half.take() {
            // Where it fails the client sees a clean end, and the test of the mode says so.
            let _ = half.as_ref().set_zero_linger();
            // Dropped, it would send the clean end first.
            half.forget();
        }
    }

    /// Bytes as they are.
    pub(crate) async fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let half = self.half.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let Some(pause) = self.drip else { return half.write_all(bytes).await };
        for byte in bytes.chunks(1) {
            half.write_all(byte).await?;
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    fn head_of(&self, status: u16, kind: Option<&str>) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {status} {}\r\n", phrase(status));
        if let Some(kind) = kind {
            head.push_str(&format!("Content-Type: {kind}\r\n"));
        }
        let date = clock::http_date(self.calendar.since_1970(clock::now()));
        head.push_str(&format!("Date: {date}\r\n"));
        if self.close {
            head.push_str("Connection: close\r\n");
        }
        head.into_bytes()
    }
}

fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "Unknown",
    }
}
