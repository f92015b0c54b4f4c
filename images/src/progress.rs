//! How far something is that takes longer than a moment.

/// Told of the steps of long work, in order. A step ends where the next begins.
pub trait Progress {
    /// Now this is done, such as `fetching linux-image-cloud-amd64`.
    fn step(&mut self, what: &str);

    /// So much of the step is done, of so much if that is known, in bytes.
    fn advance(&mut self, done: u64, total: Option<u64>);

    /// The same of what is not counted in bytes.
    fn share(&mut self, _done: u64, _total: u64) {}
}

/// For those who do not want to know.
impl Progress for () {
    fn step(&mut self, _: &str) {}

    fn advance(&mut self, _: u64, _: Option<u64>) {}
}
