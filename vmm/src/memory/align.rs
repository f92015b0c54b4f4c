//! A place in the address space where huge pages fit.

/// What a page table's second level maps at once.
pub(super) const HUGE_PAGE: usize = 2 << 20;

/// Run `map`, which maps `len` bytes anywhere, so that they are likely to start at a multiple of [`HUGE_PAGE`].
///
/// Linux before 6.7 does not align anonymous memory, and KVM maps huge pages only where host and guest addresses agree
/// below 2 MiB. Linux takes the highest hole that is large enough, so one of just the right length and place is
/// made for as long as it takes. If the mapping goes elsewhere, memory is slower and nothing else.
pub(super) fn with_aligned_place<T>(len: usize, map: impl FnOnce() -> T) -> T {
    let hole = Hole::make(len);
    let mapped = map();
    drop(hole);
    mapped
}

/// A hole in the address space at a multiple of [`HUGE_PAGE`], kept open by what is reserved on both sides of it.
struct Hole {
    below: (usize, usize),
    above: (usize, usize),
}

impl Hole {
    fn make(len: usize) -> Option<Self> {
        let whole = len.checked_add(HUGE_PAGE)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        let start = start as usize;
        let hole = start.next_multiple_of(HUGE_PAGE);
        unmap(hole, len);
        let above = hole + len;
        Some(Self { below: (start, hole - start), above: (above, start + whole - above) })
    }
}

impl Drop for Hole {
    fn drop(&mut self) {
        for (start, len) in [self.below, self.above] {
            unmap(start, len);
        }
    }
}

/// Give back a part of what [`Hole::make`] reserved.
fn unmap(start: usize, len: usize) {
    if len > 0 {
        // SAFETY: a part of a mapping that is ours alone, that nothing points into, and that is unmapped once.
        unsafe { libc::munmap(start as *mut libc::c_void, len) };
    }
}
