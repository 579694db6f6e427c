//! Vectors on their way out: a batch as one line per item, or all of a job as one file of numbers.

use std::{
    io::{self, Write},
    path::Path,
};

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::{Error, line};
use crate::{
    job::{BatchOrigin, Part},
    journal::{Decided, Item, Job, Journal},
};

/// What `/api/embed` returns, as far as it goes out; the numbers stay as they were written.
#[derive(Deserialize)]
struct Reply<'a> {
    #[serde(borrow)]
    embeddings: Vec<&'a RawValue>,
}

/// Takes a batch: how many texts it has, and its vectors where it is done.
type Take<'a> = dyn FnMut(u64, Option<&[Vec<f32>]>) -> Result<(), Error> + 'a;

/// Failed rows that are named; more are only counted.
const NAMED: usize = 100;

/// Makes the lines of one finished batch, one for each of its items; `None` for an item that is no batch.
pub(super) fn lines(job: &Job, item: &Item) -> Option<Vec<String>> {
    let batch: BatchOrigin = serde_json::from_str(&item.origin).ok()?;
    let whole: Value = serde_json::from_str(&line(job, item)).ok()?;
    let texts: usize = batch.parts.iter().map(|part| part.texts as usize).sum();
    let vectors = match &item.decided {
        Decided::Done(done) => read(&done.body).filter(|vectors| vectors.len() == texts),
        Decided::Failed(_) => None,
    };
    let mut vectors = vectors.map(Vec::into_iter);
    let lines = batch.parts.iter().map(|part| {
        let own: Option<Vec<&RawValue>> =
            vectors.as_mut().map(|vectors| vectors.by_ref().take(part.texts as usize).collect());
        one(part, own, &whole, texts)
    });
    Some(lines.collect())
}

fn read(body: &[u8]) -> Option<Vec<&RawValue>> {
    serde_json::from_slice::<Reply<'_>>(body).ok().map(|reply| reply.embeddings)
}

fn one(part: &Part, vectors: Option<Vec<&RawValue>>, whole: &Value, texts: usize) -> String {
    let mut tropa = whole["tropa"].clone();
    tropa["index"] = part.index.into();
    // Tokens and times are those of the whole request.
    tropa["request_texts"] = texts.into();
    let error = match (&vectors, &whole["error"]) {
        (None, Value::Null) => json!({"code": "engine_error", "reason": "garbled",
            "message": "the result has not as many vectors as there were texts"}),
        (_, error) => error.clone(),
    };
    let mut line = json!({ "id": part.id });
    line["embeddings"] = vectors.map_or(Value::Null, |vectors| json!(vectors));
    line["error"] = error;
    line["metadata"] = part.metadata.clone().into();
    line["tropa"] = tropa;
    line.to_string()
}

/// How many numbers the first vector of a result has, without reading the others: those of one result are of one
/// length, which the agent has checked. `None` for what is no such result.
pub(crate) fn width(body: &[u8]) -> Option<usize> {
    const HEAD: &[u8] = b"\"embeddings\":[[";
    let begin = body.windows(HEAD.len()).position(|piece| piece == HEAD)? + HEAD.len();
    let vector = body[begin..].split(|byte| *byte == b']').next()?;
    let numbers = vector.split(|byte| *byte == b',');
    (!vector.is_empty()).then(|| numbers.count())
}

/// Writes all vectors of a finished job as one array of `float32` in NumPy's format, one row for each text in the
/// order of the input, into a file that appears as a whole or not at all. Rows of failed items are NaN.
///
/// Returns the rows that failed, from 0: the first hundred, and how many there are.
///
/// # Errors
/// When the file cannot be written or the journal not be read.
pub(super) fn npy(journal: &Journal, path: &Path) -> Result<(Vec<u64>, u64), Error> {
    let (mut rows, mut columns) = (0, 0);
    each(journal, &mut |texts, vectors| {
        rows += texts;
        columns = columns.max(vectors.and_then(|vectors| vectors.first()).map_or(0, Vec::len));
        Ok(())
    })?;
    let (mut failed, mut count, mut row) = (Vec::new(), 0, 0);
    super::replace(journal, path, |stream, beside| {
        stream.write_all(&head(rows, columns)).map_err(|e| Error::io("write", beside, e))?;
        each(journal, &mut |texts, vectors| {
            for at in 0..texts {
                let vector = vectors.and_then(|vectors| vectors.get(usize::try_from(at).ok()?));
                match vector.filter(|vector| vector.len() == columns) {
                    Some(vector) => {
                        put(stream, vector.iter().copied()).map_err(|e| Error::io("write", beside, e))?
                    }
                    None => {
                        put(stream, std::iter::repeat_n(f32::NAN, columns))
                            .map_err(|e| Error::io("write", beside, e))?;
                        count += 1;
                        if failed.len() < NAMED {
                            failed.push(row);
                        }
                    }
                }
                row += 1;
            }
            Ok(())
        })
    })?;
    Ok((failed, count))
}

/// Gives every batch of a job in order: how many texts it has, and its vectors where it is done.
fn each(journal: &Journal, take: &mut Take<'_>) -> Result<(), Error> {
    for index in 0..journal.job().chunks {
        let Some(item) = journal.item(index)? else { continue };
        let batch: Option<BatchOrigin> = serde_json::from_str(&item.origin).ok();
        let texts: u64 = batch.map_or(1, |batch| batch.parts.iter().map(|part| u64::from(part.texts)).sum());
        let vectors = match &item.decided {
            Decided::Done(done) => floats(&done.body).filter(|vectors| vectors.len() as u64 == texts),
            Decided::Failed(_) => None,
        };
        take(texts, vectors.as_deref())?;
    }
    Ok(())
}

fn floats(body: &[u8]) -> Option<Vec<Vec<f32>>> {
    #[derive(Deserialize)]
    struct Numbers {
        embeddings: Vec<Vec<f32>>,
    }
    serde_json::from_slice::<Numbers>(body).ok().map(|reply| reply.embeddings)
}

fn put(to: &mut impl Write, numbers: impl Iterator<Item = f32>) -> io::Result<()> {
    for number in numbers {
        to.write_all(&number.to_le_bytes())?;
    }
    Ok(())
}

/// The head of version 1.0 of the format: the data begins at a multiple of 64 bytes.
fn head(rows: u64, columns: usize) -> Vec<u8> {
    let mut text =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}").into_bytes();
    let whole = (10 + text.len() + 1).next_multiple_of(64);
    text.resize(whole - 11, b' ');
    text.push(b'\n');
    let mut head = b"\x93NUMPY\x01\x00".to_vec();
    head.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
    head.extend(text);
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_at_a_multiple_of_64_bytes_and_names_the_shape() {
        for rows in [0, 7, 123_456_789] {
            let head = head(rows, 384);
            assert_eq!((head.len() % 64, head.last()), (0, Some(&b'\n')));
            let text = String::from_utf8_lossy(&head[10..]);
            assert!(text.contains(&format!("'shape': ({rows}, 384), }}")), "{text}");
            assert_eq!(usize::from(u16::from_le_bytes([head[8], head[9]])) + 10, head.len());
        }
    }

    #[test]
    fn the_width_of_a_vector_is_read_off_the_first_one() {
        assert_eq!(width(br#"{"model":"m","embeddings":[[0.1,-2e-3,3],[1,2,3]]}"#), Some(3));
        assert_eq!(width(br#"{"embeddings":[[7]]}"#), Some(1));
        for none in [&b"{}"[..], b"", br#"{"embeddings":[]}"#, br#"{"embeddings":[[]]}"#] {
            assert_eq!(width(none), None);
        }
    }
}
