//! What the whole-machine tests share.

pub mod machine;
pub mod pattern;
pub mod stream;
pub mod tap;
pub mod tree;
pub mod user;
