//! What containers' images need to be VMs' images, wherever they come from.

use images::oci::{Container, Failure, Kernel};
use images::progress::Progress;
use images::store::Store as Images;

use crate::agent::PROGRAM;

/// Do `work` with a machine for containers' images whose kernel is that of the image `from`, or the default one.
pub fn with_machine<T>(from: Option<&str>, work: impl FnOnce(&mut Container<'_>) -> T) -> T {
    let mut kernel = |images: &Images, progress: &mut dyn Progress| find(images, from, progress);
    work(&mut Container { agent: PROGRAM, kernel: &mut kernel })
}

fn find(images: &Images, from: Option<&str>, progress: &mut dyn Progress) -> Result<Kernel, Failure> {
    let Some(from) = from else {
        return default(images, progress);
    };
    let image = images.hold(from)?;
    let none = || format!("{from} does not have its kernel's modules apart: take the kernel of an image that skiff image build made");
    Ok(Kernel::of(&image.manifest).ok_or_else(none)?)
}

/// The kernel of Debian's cloud images.
fn default(_: &Images, _: &mut dyn Progress) -> Result<Kernel, Failure> {
    Err("there is no default kernel yet: name an image that has one with --kernel-from".into())
}
