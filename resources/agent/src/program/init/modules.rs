//! The kernel's modules of an initial RAM disk: `/modules/order` names the files in `/modules`, each after those that it needs.

use std::fs::{self, File};
use std::path::Path;

use crate::{note, sys};

const DIR: &str = "/modules";

/// Load them all, and give their memory back. One that does not load may not be needed.
pub fn load() {
    let dir = Path::new(DIR);
    let order = fs::read_to_string(dir.join("order")).unwrap_or_default();
    let mut left: Vec<&str> = names(&order).collect();
    loop {
        let before = left.len();
        left.retain(|name| !loaded(dir, name));
        // Those that an order in disorder names too early find now what they need.
        if left.is_empty() || left.len() == before {
            break;
        }
    }
    for name in left {
        note(format_args!("the module {name} does not load: something that it needs is not there"));
    }
    for name in names(&order) {
        let _ = fs::remove_file(dir.join(name));
    }
}

/// Load one. Says whether there is no use in trying again.
fn loaded(dir: &Path, name: &str) -> bool {
    match File::open(dir.join(name)).map(|file| sys::load_module(&file)) {
        // A symbol is not known (yet).
        Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOENT) => false,
        // Another one has needed it before.
        Ok(Err(error)) if error.raw_os_error() == Some(libc::EEXIST) => true,
        Ok(Err(error)) | Err(error) => {
            note(format_args!("the module {name} does not load: {error}"));
            true
        }
        Ok(Ok(())) => true,
    }
}

/// One a line. A name is no path.
fn names(order: &str) -> impl Iterator<Item = &str> {
    order
        .lines()
        .map(str::trim)
        .filter(|name| !name.is_empty() && !name.contains('/') && !name.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_one_name_a_line() {
        let order = "# first\nvirtio.ko\n\n virtio_blk.ko \n../x.ko\next4.ko";
        assert_eq!(names(order).collect::<Vec<_>>(), ["virtio.ko", "virtio_blk.ko", "ext4.ko"]);
    }
}
