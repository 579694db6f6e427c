//! Looking at the journal of a job from outside, beside a coordinator that may be at work.

use std::path::Path;

use super::{Error, directory, read, schema};

/// Opens the journal of a job for reading and walks all its pages, however large it is: a gigabyte takes some seconds.
///
/// # Errors
/// As [`super::Journal::open_read_only`].
pub fn examine(dir: &Path) -> Result<(), Error> {
    let conn = schema::open_read_only(&directory::database(dir))?;
    schema::check(&conn)?;
    read::job(&conn)?.map(drop).ok_or(Error::Incomplete)
}

/// What the coordinator that holds a job has written about itself: its process, and since when it runs in ticks of the
/// kernel. `None` where nobody holds it.
#[must_use]
pub fn holder(dir: &Path) -> Option<String> {
    directory::Lock::holder(dir)
}
