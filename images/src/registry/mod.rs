//! Registries of images, by the OCI distribution specification 1.1.

mod reference;

pub use reference::{Reference, ReferenceError};
