//! Waiting for several descriptors at once.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Waits until one of `sources` is ready or `deadline` has come, and returns what each is ready for, in
/// the same order. A source that is `None`, or waited on for nothing, is passed over.
///
/// # Errors
/// The kernel's refusal. A signal's arrival is none: nothing is ready then.
pub fn ready<const N: usize>(
    sources: [(Option<BorrowedFd<'_>>, PollFlags); N],
    deadline: Option<Instant>,
) -> io::Result<[PollFlags; N]> {
    let used = |source: &&(Option<BorrowedFd<'_>>, PollFlags)| source.0.is_some() && !source.1.is_empty();
    let mut list: Vec<PollFd<'_>> = Vec::new();
    for (fd, flags) in sources.iter().filter(used) {
        list.extend(fd.map(|fd| PollFd::from_borrowed_fd(fd, *flags)));
    }
    let left = deadline.map(|at| timespec(at.saturating_duration_since(Instant::now())));
    match poll(&mut list, left.as_ref()) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok([PollFlags::empty(); N]),
        Err(error) => return Err(error.into()),
    }
    let mut results = list.iter().map(PollFd::revents);
    Ok(sources.each_ref().map(|source| {
        if used(&source) { results.next().unwrap_or(PollFlags::empty()) } else { PollFlags::empty() }
    }))
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}
