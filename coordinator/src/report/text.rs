//! A job's results as one text for people.

use std::fmt::Write as _;

use serde_json::Value;

use crate::{
    job::Origin,
    journal::{Decided, Error, Journal, Kind},
    recipe,
    terminal::escaped,
};

/// An item of the output, as a text shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// What the job noted about it: its name, its stage, its metadata.
    pub origin: Origin,
    /// What the model wrote; the class of the failure where it brought nothing usable.
    pub text: Result<String, String>,
}

/// Makes the text of a job: what kind it is decides how. `None` where nothing succeeded.
///
/// # Errors
/// When the journal cannot be read.
pub(super) fn text(journal: &Journal) -> Result<Option<String>, Error> {
    let answers = answers(journal)?;
    if answers.iter().all(|answer| answer.text.is_err()) {
        return Ok(None);
    }
    Ok(match journal.job().kind {
        Kind::Map => Some(format!("{}{}", sections(&answers), parts(&answers))),
        Kind::Run | Kind::Embed => Some(sections(&answers)),
        Kind::Write | Kind::Panel => super::long::text(journal)?,
    })
}

/// Reads all items of a job that is done, in the order of the output.
///
/// # Errors
/// When the journal cannot be read, or a result is not what was committed.
pub fn answers(journal: &Journal) -> Result<Vec<Answer>, Error> {
    let mut answers = Vec::new();
    for index in 0..journal.job().items {
        let Some(item) = journal.item(index)? else { continue };
        let text = match item.decided {
            Decided::Done(done) => recipe::answer(&done.body).ok_or_else(|| "engine_error".to_owned()),
            Decided::Failed(failed) => Err(failed.class),
        };
        let origin = serde_json::from_str(&item.origin).unwrap_or_else(|_| super::line::unknown(index));
        answers.push(Answer { origin, text });
    }
    Ok(answers)
}

/// One answer stands alone; several get their names as headings. A failure has a heading and says what it is.
fn sections(answers: &[Answer]) -> String {
    if let [Answer { text: Ok(text), .. }] = answers {
        return format!("{}\n", text.trim());
    }
    let mut all = String::new();
    for answer in answers {
        let gap = if all.is_empty() { "" } else { "\n" };
        let _ = match &answer.text {
            Ok(text) => writeln!(all, "{gap}# {}\n\n{}", answer.origin.id, text.trim()),
            Err(class) => writeln!(all, "{gap}# {}\n\n*(failed: {class})*", answer.origin.id),
        };
    }
    all
}

/// Says which lines the marks of parts mean; nothing where no document was cut.
fn parts(answers: &[Answer]) -> String {
    let mut list = String::new();
    for answer in answers {
        let parts =
            answer.origin.metadata.get("parts").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for part in parts.iter().filter(|_| parts.len() > 1) {
            let document = part["document"].as_str().unwrap_or_default();
            let _ = write!(
                list,
                "* [part {}] {document}, lines {} to {}",
                part["part"], part["lines"][0], part["lines"][1]
            );
            let heading = part["heading"].as_str().filter(|heading| !heading.is_empty());
            let _ = writeln!(list, "{}", heading.map_or_else(String::new, |heading| format!(": {heading}")));
        }
    }
    if list.is_empty() { list } else { format!("\n---\n\n{list}") }
}

/// The text as a terminal may show it: line by line, without effect on the terminal.
pub(super) fn escaped_lines(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", escaped(line))).collect()
}
