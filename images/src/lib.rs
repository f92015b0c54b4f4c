//! Guest operating systems by name: the store of images, and how images come to be in it.
//!
//! An image is a [`manifest::Manifest`], which names its files by their content. Everything that comes from elsewhere (archives, disks,
//! registries) is hostile: it is parsed once into owned values and checked, and no file of it is ever written outside the place that is
//! its own. No threads but where a module says so; VMs are not known here.

mod child;
pub mod compress;
pub mod debian;
pub mod digest;
pub mod disk;
pub mod ext4;
pub mod file;
pub mod initrd;
pub mod kernel;
pub mod manifest;
pub mod name;
pub mod oci;
mod os_release;
pub mod progress;
pub mod registry;
pub mod rootfs;
pub mod rootless;
pub mod seed;
pub mod store;
pub mod tree;
pub mod unfinished;
