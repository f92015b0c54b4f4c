//! The load of the guest `ioguest`, put on a file by the host itself with io_uring.
//!
//! `host-io FILE JOB MILLIS [direct]`, where a job is `randread:4096:32`: what, bytes a request, requests at a time. It prints the
//! guest's own line: `result randread bs 4096 depth 32 ios N nanos T iops I kib-per-second K`.
//!
//! One thread hands over what is ready and sleeps until something is done, as any program that does nothing else.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode, types};

/// What to do.
struct Job {
    name: String,
    write: bool,
    random: bool,
    bytes: usize,
    depth: usize,
}

fn main() -> Result<()> {
    let usage = "usage: host-io FILE JOB MILLIS [direct]";
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (path, job, millis, direct) = match arguments.as_slice() {
        [path, job, millis] => (path, job, millis, false),
        [path, job, millis, word] if word == "direct" => (path, job, millis, true),
        _ => bail!("{usage}"),
    };
    let job = parse(job).context(usage)?;
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    let file = file.with_context(|| format!("cannot open {path}"))?;
    let time = Duration::from_millis(millis.parse().context(usage)?);
    let (ios, took) = work(&file, &job, time)?;
    let rate = |what: u64| what as f64 / took.as_secs_f64();
    let Job { name, bytes, depth, .. } = &job;
    println!(
        "result {name} bs {bytes} depth {depth} ios {ios} nanos {} iops {:.0} kib-per-second {:.0}",
        took.as_nanos(),
        rate(ios),
        rate(ios * *bytes as u64 / 1024)
    );
    Ok(())
}

fn parse(text: &str) -> Option<Job> {
    let mut parts = text.split(':');
    let name = parts.next()?.to_owned();
    let (random, write) = match name.as_str() {
        "randread" => (true, false),
        "randwrite" => (true, true),
        "seqread" => (false, false),
        "seqwrite" => (false, true),
        _ => return None,
    };
    Some(Job { name, write, random, bytes: parts.next()?.parse().ok()?, depth: parts.next()?.parse().ok()? })
}

/// A ring with the best flags that this kernel knows.
fn ring(depth: usize) -> std::io::Result<IoUring> {
    let entries = depth.next_power_of_two() as u32;
    let best = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries);
    best.or_else(|_| IoUring::new(entries))
}

/// Requests one after the other until the time is over, then waits for the last. Returns how many there were.
fn work(file: &File, job: &Job, time: Duration) -> Result<(u64, Duration)> {
    let places = file.metadata()?.len() / job.bytes as u64;
    ensure!(places > 0 && job.bytes > 0 && job.depth > 0, "the file is smaller than a request");
    let mut ring = ring(job.depth)?;
    ring.submitter().register_files(&[file.as_raw_fd()])?;
    let buffers = Buffers::new(job)?;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64 ^ u64::from(std::process::id());
    let mut turn = 0;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        turn += 1;
        (if job.random { random } else { turn - 1 }) % places * job.bytes as u64
    };
    let start = Instant::now();
    for slot in 0..job.depth {
        push(&mut ring, &buffers.entry(job, slot, next()))?;
    }
    let (mut done, mut under_way) = (0, job.depth);
    while under_way > 0 {
        ring.submit_and_wait(1)?;
        while let Some(completion) = next_completion(&mut ring) {
            let result = usize::try_from(completion.result());
            ensure!(result == Ok(job.bytes), "a request ended with {}", completion.result());
            done += 1;
            if start.elapsed() < time {
                push(&mut ring, &buffers.entry(job, completion.user_data() as usize, next()))?;
            } else {
                under_way -= 1;
            }
        }
    }
    Ok((done, start.elapsed()))
}

fn next_completion(ring: &mut IoUring) -> Option<io_uring::cqueue::Entry> {
    ring.completion().next()
}

fn push(ring: &mut IoUring, entry: &Entry) -> Result<()> {
    // SAFETY: the entry's buffer is never freed, and used by one request at a time.
    unsafe { ring.submission().push(entry) }.context("the ring is full")
}

/// Page-aligned memory for all requests, kept to the process's end.
struct Buffers(*mut u8);

impl Buffers {
    fn new(job: &Job) -> Result<Self> {
        let (len, flags) =
            (job.bytes * job.depth, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes it touches none of ours.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, -1, 0) };
        ensure!(at != libc::MAP_FAILED, "no memory: {}", std::io::Error::last_os_error());
        Ok(Self(at.cast()))
    }

    fn entry(&self, job: &Job, slot: usize, offset: u64) -> Entry {
        let (file, len) = (types::Fixed(0), job.bytes as u32);
        let buffer = self.0.wrapping_add(slot * job.bytes);
        let entry = if job.write {
            opcode::Write::new(file, buffer, len).offset(offset).build()
        } else {
            opcode::Read::new(file, buffer, len).offset(offset).build()
        };
        entry.flags(Flags::empty()).user_data(slot as u64)
    }
}
