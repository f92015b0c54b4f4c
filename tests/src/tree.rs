//! A tree that is as large as the sources of a kernel, the same every time.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::pattern;

/// Files of the tree, and in how many directories they are.
pub const FILES: usize = 75_000;
const DIRECTORIES: usize = 4800;
/// How large a kernel's files are: so many of a hundred are no larger than so many bytes.
const SIZES: [(usize, usize); 7] =
    [(10, 400), (30, 1600), (50, 4200), (70, 10_000), (90, 30_000), (98, 90_000), (100, 300_000)];

/// Make it at `tree`, which is not there yet, and say how many bytes its files have.
///
/// # Errors
/// If it cannot be written.
pub fn make(tree: &Path) -> io::Result<u64> {
    let noise = pattern::random(0, 1 << 20);
    let mut bytes = 0;
    for number in 0..FILES {
        let directory = number % DIRECTORIES;
        let below = tree.join(format!("{}/{}/{directory}", directory % 20, directory % 300));
        if number < DIRECTORIES {
            fs::create_dir_all(&below)?;
        }
        let mixed = number.wrapping_mul(0x9e37_79b9) >> 7;
        let size = size_of_file(mixed % 100, mixed / 100 % 1000);
        let from = number * 37 % (noise.len() - size);
        fs::write(below.join(number.to_string()), &noise[from..from + size])?;
        bytes += size as u64;
    }
    symlink("0/0/0", tree.join("link"))?;
    Ok(bytes)
}

/// The size of a file that is larger than `percent` of all, and than so many thousandths of those in its class.
fn size_of_file(percent: usize, thousandths: usize) -> usize {
    let class = SIZES.iter().position(|(below, _)| percent < *below).unwrap_or(SIZES.len() - 1);
    let least = if class == 0 { 0 } else { SIZES[class - 1].1 };
    least + (SIZES[class].1 - least) * thousandths / 1000
}
