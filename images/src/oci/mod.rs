//! Containers' images: OCI layouts and docker archives, in and out.

pub mod spec;
