//! The agent: the small static program that skiff runs inside a guest.

fn main() {}
