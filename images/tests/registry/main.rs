//! Images to and from a real registry, Debian's `docker-registry`, on this machine, and from registries that lie.
//!
//! Where a test says that it is skipped, the program that it names is not installed; `cargo xtask setup` installs it.

mod hostile;
mod made;
mod real;
mod server;
mod stub;
mod tls;
mod umoci;
