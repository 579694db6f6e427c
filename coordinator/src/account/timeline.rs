//! The drawing of who worked when: one row per device, as SVG that needs no script.
//!
//! A row has as many tracks as attempts ran on it at once. An attempt is a bar from its beginning to its end, with
//! the time of loading and of reading the prompt darker in front; a thin line before it is the time from its record
//! to its beginning. Where there are too many attempts, a row shows how busy the device was.

use std::fmt::Write as _;

use super::{Account, DeviceRow, How, PIECES, Span, page::escape, span_of};

/// Width of the drawing in units of its own.
const WIDTH: u64 = 1000;

/// Where the bars begin: left of it stand the names.
const LEFT: u64 = 170;

/// Height of one track.
const TRACK: usize = 16;

/// Tracks of one row; attempts beyond share the last. An install holds at most a few chunks at once.
const MAX_TRACKS: usize = 12;

/// Marks of the time below the rows, about.
const MARKS: u64 = 6;

/// Draws the devices of an account.
pub(super) fn svg(account: &Account) -> String {
    let total = account.last_ms.saturating_sub(account.first_ms).max(1);
    let scale = Scale { total };
    let mut body = String::new();
    let mut y = 6;
    for row in &account.devices {
        let tracks = tracks(&row.spans);
        let height = (tracks.iter().max().map_or(1, |track| track + 1)) * TRACK;
        let _ = write!(
            body,
            "<text class=\"name\" x=\"{}\" y=\"{}\">{}</text>\n<rect class=\"row\" x=\"{LEFT}\" y=\"{y}\" \
             width=\"{}\" height=\"{height}\"/>\n",
            LEFT - 8,
            y + TRACK - 4,
            escape(&short(&format!("{} {}", row.machine_name, row.device))),
            WIDTH - LEFT,
        );
        if row.pieces.is_empty() {
            for (span, track) in row.spans.iter().zip(&tracks) {
                wait(&mut body, &scale, span, y + track * TRACK);
            }
            for (span, track) in row.spans.iter().zip(&tracks) {
                bar(&mut body, &scale, span, y + track * TRACK);
            }
        } else {
            pieces(&mut body, row, total, y);
        }
        y += height + 6;
    }
    let bottom = y;
    axis(&mut body, &scale, bottom);
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"timeline of the devices\">\n{body}</svg>",
        bottom + 26
    )
}

struct Scale {
    /// Milliseconds from edge to edge.
    total: u64,
}

impl Scale {
    fn x(&self, ms: u64) -> f64 {
        LEFT as f64 + (WIDTH - LEFT) as f64 * ms.min(self.total) as f64 / self.total as f64
    }
}

/// Gives every span the first track that is free when it begins.
fn tracks(spans: &[Span]) -> Vec<usize> {
    let mut free: Vec<u64> = Vec::new();
    let mut tracks = Vec::with_capacity(spans.len());
    for span in spans {
        let at = free.iter().position(|until| *until <= span.start).unwrap_or(free.len());
        let at = at.min(MAX_TRACKS - 1);
        match free.get_mut(at) {
            Some(until) => *until = span.end.max(*until),
            None => free.push(span.end),
        }
        tracks.push(at);
    }
    tracks
}

/// The line from the record to the beginning: drawn first, so that it lies below the bars that it waited for.
fn wait(body: &mut String, scale: &Scale, span: &Span, y: usize) {
    let (from, start, middle) = (scale.x(span.recorded), scale.x(span.start), y + TRACK / 2);
    if start - from > 0.5 {
        let _ = writeln!(
            body,
            "<line class=\"wait\" x1=\"{from:.1}\" y1=\"{middle}\" x2=\"{start:.1}\" y2=\"{middle}\"/>"
        );
    }
}

fn bar(body: &mut String, scale: &Scale, span: &Span, y: usize) {
    let (start, end) = (scale.x(span.start), scale.x(span.end));
    let class = match span.outcome {
        How::Won => "won",
        How::Failed => "failed",
        How::Dropped => "dropped",
        How::Open => "open",
    };
    let mut title = format!("chunk {}, attempt {}, {}: {}", span.chunk, span.no, span.agent, span.class);
    let _ = write!(title, ", {}", span_of(span.end - span.start));
    let waited = span.start.saturating_sub(span.recorded);
    for (ms, what) in [(waited, "before"), (span.load, "loading"), (span.prompt, "reading the prompt")] {
        if ms > 0 {
            let _ = write!(title, ", {} {what}", span_of(ms));
        }
    }
    if span.tokens > 0 {
        let _ = write!(title, ", {} tokens", span.tokens);
    }
    let _ = write!(body, "<g><title>{}</title>", escape(&title));
    let _ = write!(
        body,
        "<rect class=\"{class}\" x=\"{start:.1}\" y=\"{}\" width=\"{:.1}\" height=\"{}\"/>",
        y + 2,
        (end - start).max(1.0),
        TRACK - 4
    );
    let mut at = span.start;
    for (ms, class) in [(span.load, "load"), (span.prompt, "prompt")] {
        let to = at.saturating_add(ms).min(span.end);
        let (left, right) = (scale.x(at), scale.x(to));
        if right - left > 0.3 {
            let _ = write!(
                body,
                "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{}\" width=\"{:.1}\" height=\"{}\"/>",
                y + 2,
                right - left,
                TRACK - 4
            );
        }
        at = to;
    }
    body.push_str("</g>\n");
}

/// How busy the device was in each piece of the time: five strengths.
fn pieces(body: &mut String, row: &DeviceRow, total: u64, y: usize) {
    let width = total.div_ceil(PIECES).max(1);
    let unit = (WIDTH - LEFT) as f64 * width as f64 / total as f64;
    for (at, busy) in row.pieces.iter().enumerate().filter(|(_, busy)| **busy > 0) {
        let share = *busy as f64 / width as f64;
        let strength = (share * 5.0).ceil().clamp(1.0, 5.0) / 5.0;
        let _ = writeln!(
            body,
            "<rect class=\"won\" opacity=\"{strength:.1}\" x=\"{:.1}\" y=\"{}\" width=\"{unit:.2}\" height=\"{}\"/>",
            LEFT as f64 + at as f64 * unit,
            y + 2,
            TRACK - 4
        );
    }
}

/// Marks at round times.
fn axis(body: &mut String, scale: &Scale, y: usize) {
    const STEPS: [u64; 20] = [
        1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 300_000, 900_000,
        3_600_000, 14_400_000, 86_400_000,
    ];
    let wanted = scale.total / MARKS;
    let largest = wanted.max(1).next_multiple_of(86_400_000);
    let step = STEPS.into_iter().find(|step| *step >= wanted).unwrap_or(largest);
    let _ = writeln!(body, "<line class=\"axis\" x1=\"{LEFT}\" y1=\"{y}\" x2=\"{WIDTH}\" y2=\"{y}\"/>");
    let mut at = 0;
    while at <= scale.total {
        let x = scale.x(at);
        let anchor = if x > WIDTH as f64 - 30.0 { "end" } else { "middle" };
        let _ = writeln!(
            body,
            "<line class=\"axis\" x1=\"{x:.1}\" y1=\"{y}\" x2=\"{x:.1}\" y2=\"{}\"/>\
             <text class=\"mark\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{}\">{}</text>",
            y + 5,
            y + 18,
            span_of(at)
        );
        at += step;
    }
}

/// A name that fits beside its row.
fn short(name: &str) -> String {
    const FITS: usize = 24;
    if name.chars().count() <= FITS {
        return name.to_owned();
    }
    let head: String = name.chars().take(FITS - 1).collect();
    format!("{head}…")
}
