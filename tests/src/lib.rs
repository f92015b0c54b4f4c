//! What the whole-machine tests share.
