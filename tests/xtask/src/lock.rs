//! A lock that keeps two tasks from making the same thing at once.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};

use crate::progress::Step;

/// Held while this lives; the file itself stays.
pub struct Lock {
    _file: File,
}

/// Takes the lock, waiting for whoever has it.
///
/// # Errors
/// When the file cannot be made or locked.
pub fn hold(path: &Path) -> Result<Lock> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    if file.try_lock().is_err() {
        let _step = Step::fleeting("waiting for another task that makes the same files");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(Lock { _file: file })
}
