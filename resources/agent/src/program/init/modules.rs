//! The kernel's modules of an initial RAM disk: `/modules/order` names the files in `/modules`, each after those that it needs.

use std::fs::{self, File};
use std::path::Path;

use crate::{note, sys};

const DIR: &str = "/modules";

/// Load them all, and give their memory back. One that does not load may not be needed.
pub fn load() {
    let dir = Path::new(DIR);
    let order = fs::read_to_string(dir.join("order")).unwrap_or_default();
    for name in names(&order) {
        match File::open(dir.join(name)).and_then(|file| sys::load_module(&file)) {
            // Another one has needed it before.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => note(format_args!("the module {name} does not load: {error}")),
            Ok(()) => {}
        }
    }
    for name in names(&order) {
        let _ = fs::remove_file(dir.join(name));
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
