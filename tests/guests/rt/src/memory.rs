//! The heap, pages for devices, and memory above 4 GiB.
//!
//! Nothing is freed piece by piece: a test is short and RAM is at least 64 MiB. One that needs much, again and again,
//! gives all back at once ([`release`]).

use core::alloc::{GlobalAlloc, Layout};
use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use virtio_drivers::{BufferDirection, Hal, PhysAddr};

const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;

unsafe extern "C" {
    static image_end: u8;
    static mut page_directories: [u64; 512];
}

static NEXT: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// Find the RAM behind the image.
pub(crate) fn init() {
    let from = &raw const image_end as u64;
    let is_ours =
        |range: &&crate::pvh::Range| range.kind == 1 && range.start <= from && from < range.start + range.len;
    let end = crate::pvh::memory_map().iter().find(is_ours).map_or(from, |range| range.start + range.len);
    NEXT.store(from, Ordering::SeqCst);
    END.store(end, Ordering::SeqCst);
}

fn take(len: u64, align: u64) -> u64 {
    let mut at = 0;
    let grow = |next: u64| {
        at = next.next_multiple_of(align);
        (at + len <= END.load(Ordering::SeqCst)).then_some(at + len)
    };
    match NEXT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, grow) {
        Ok(_) => at,
        Err(_) => 0,
    }
}

/// The first byte that nothing has taken yet, and the end of that RAM.
pub fn free() -> (u64, u64) {
    (NEXT.load(Ordering::SeqCst).next_multiple_of(PAGE), END.load(Ordering::SeqCst))
}

/// Give back everything that was taken since [`free`] returned `to` as its first value.
///
/// # Safety
/// No device and no value may still use it.
pub unsafe fn release(to: u64) {
    NEXT.store(to, Ordering::SeqCst);
}

/// `count` pages of zeroes. Their guest-physical address is the pointer's.
///
/// # Panics
/// If RAM is used up.
pub fn pages(count: u64) -> *mut u8 {
    let at = take(count * PAGE, PAGE);
    assert!(at != 0, "out of memory");
    // SAFETY: RAM of nobody's, mapped. Not zero after a reset in place.
    unsafe { core::ptr::write_bytes(at as *mut u8, 0, (count * PAGE) as usize) };
    at as *mut u8
}

/// Map the gigabyte that holds `address`, at its own address. Those below 4 GiB are mapped from the start.
pub fn map(address: u64) {
    let gib = (address / GIB) as usize;
    assert!(gib < 512, "{address:#x} is beyond this guest's page tables");
    // SAFETY: the tables are data of ours, and an entry that was not present is in no TLB.
    unsafe {
        let entry = (&raw mut page_directories).cast::<u64>().add(gib);
        if entry.read_volatile() == 0 {
            let directory = pages(1).cast::<u64>();
            for index in 0..512_u64 {
                directory.add(index as usize).write_volatile(gib as u64 * GIB + (index << 21) + 0x87);
            }
            entry.write_volatile(directory as u64 + 7);
        }
    }
}

struct Heap;

// SAFETY: every allocation is a fresh piece of RAM.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size() as u64, layout.align() as u64) as *mut u8
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static HEAP: Heap = Heap;

/// This machine to the `virtio-drivers` crate: no IOMMU, everything at its own address.
pub struct Machine;

// SAFETY: pages are fresh, zeroed and never given to anyone else.
unsafe impl Hal for Machine {
    fn dma_alloc(count: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let at = NonNull::new(pages(count as u64)).unwrap_or(NonNull::dangling());
        (at.as_ptr() as u64, at)
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(at: PhysAddr, _: usize) -> NonNull<u8> {
        map(at);
        NonNull::new(at as *mut u8).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as u64
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

// What compiled code calls by these names. They must not call themselves, as a copying loop in Rust would.

/// C's memcpy.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both.
    unsafe { asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _) };
    to
}

/// C's memmove.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: forwards is right for these.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: the caller vouches for both; backwards, the direction flag is put back.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") len => _,
             inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
             inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _);
    }
    to
}

/// C's memset.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for it.
    unsafe { asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") value as u8) };
    to
}

/// C's memcmp.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, len: usize) -> i32 {
    for index in 0..len {
        // SAFETY: the caller vouches for both.
        let (a, b) = unsafe { (one.add(index).read_volatile(), other.add(index).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// BSD's bcmp.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, len: usize) -> i32 {
    // SAFETY: passed on.
    unsafe { memcmp(one, other, len) }
}

/// C's strlen.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut len = 0;
    // SAFETY: the caller vouches for the terminating zero.
    while unsafe { text.add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}
