//! Reads a kernel file and puts it into guest memory, ready to be entered.
//!
//! | file | protocol |
//! | --- | --- |
//! | bzImage | unpacked here, entered by Linux's 64-bit protocol |
//! | ELF with a PVH note | PVH |
//! | ELF without (vmlinux) | Linux's 64-bit protocol |
//!
//! [`Kernel::parse`] does what depends on the file alone, so that a caller can cache an unpacked kernel
//! ([`Kernel::elf_file`], [`Kernel::setup_header`], [`Kernel::from_parts`]); [`load`] does the rest. Kernel
//! files and initrds are untrusted: any bytes give a kernel or an error.

mod bytes;
mod bzimage;
mod decompress;
mod describe;
mod elf;
mod initrd;
mod linux;
mod pvh;
mod reset;

use std::borrow::Cow;

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryRegion, ReadVolatile};

pub use bzimage::{BzImageError, SetupHeader};
pub use decompress::DecompressError;
pub use elf::{Elf, ElfError, Segment};
pub use initrd::{Initrd, Placed};

use crate::layout::{self, Range};
use crate::memory::GuestRam;
use crate::regs;

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux's 64-bit boot protocol: long mode, RSI points to the zero page.
    Linux64,
    /// PVH: 32-bit protected mode, EBX points to the start info.
    Pvh,
}

/// Where and how the first vCPU starts. [`regs`] makes registers of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The protocol.
    pub protocol: Protocol,
    /// The address of the first instruction.
    pub address: u64,
    /// The address of the zero page or the start info.
    pub info: u64,
}

/// A file is no kernel that can be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Neither a bzImage nor ELF; the field says what it looks like.
    #[error("not a Linux kernel: expected an x86_64 bzImage or an ELF vmlinux, but {0}")]
    NotAKernel(&'static str),
    /// A bzImage with a bad header.
    #[error(transparent)]
    BzImage(#[from] BzImageError),
    /// A bzImage whose payload cannot be unpacked.
    #[error(transparent)]
    Decompress(#[from] DecompressError),
    /// A bad ELF file, or a bzImage with one in it.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// A bzImage that unpacks to something else than ELF.
    #[error("the kernel's payload is not an ELF file")]
    PayloadNotElf,
}

/// A kernel could not be put into guest memory.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A segment lies outside of RAM.
    #[error(
        "the kernel needs memory up to {end:#x} and from {start:#x}, which is not within the VM's RAM \
         from {:#x} to {ram_end:#x}; raise --memory if it is too small",
        layout::KERNEL_START
    )]
    OutsideRam {
        /// First address of the segment.
        start: u64,
        /// The address behind it.
        end: u64,
        /// End of the RAM below 4 GiB.
        ram_end: u64,
    },
    /// Two segments overlap.
    #[error("the kernel's segments overlap at {0:#x}; the file is damaged")]
    Overlap(u64),
    /// The entry point is in none of the segments.
    #[error("the kernel's entry point {0:#x} lies outside of it; the file is damaged")]
    BadEntry(u64),
    /// The command line is too long.
    #[error("the kernel's command line has {len} bytes; this kernel takes at most {max}")]
    CmdlineTooLong {
        /// Its length.
        len: usize,
        /// The most that fits.
        max: usize,
    },
    /// The command line holds a zero byte.
    #[error("the kernel's command line holds a zero byte")]
    CmdlineNul,
    /// The initrd does not fit.
    #[error("the initrd has {len} bytes, but only {room} are free beside the kernel; raise --memory")]
    InitrdTooLarge {
        /// Its length.
        len: u64,
        /// What is free between the kernel's end and the highest address allowed.
        room: u64,
    },
    /// The initrd could not be read.
    #[error("cannot read the initrd into guest memory")]
    Initrd(#[source] GuestMemoryError),
    /// Guest memory could not be written.
    #[error("cannot write guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// A kernel that was read and, if need be, unpacked.
#[derive(Debug)]
pub struct Kernel<'a> {
    file: Cow<'a, [u8]>,
    elf: Elf,
    setup: Option<SetupHeader>,
}

impl<'a> Kernel<'a> {
    /// Read a kernel file of any supported kind. A bzImage is unpacked, which takes a while; an ELF file is
    /// not copied.
    ///
    /// # Errors
    /// If it is no kernel, damaged, or packed in a way that is not supported.
    pub fn parse(image: impl Into<Cow<'a, [u8]>>) -> Result<Self, KernelError> {
        let image = image.into();
        if image.starts_with(b"\x7fELF") {
            return Self::from_parts(image, None);
        }
        if !SetupHeader::is_in(&image) {
            return Err(KernelError::NotAKernel(describe::describe(&image)));
        }
        let setup = SetupHeader::parse(&image)?;
        let file = decompress::unpack(setup.payload(&image)?)?;
        Self::from_parts(Cow::Owned(file), Some(setup))
    }

    /// A kernel that was unpacked before: the ELF file and the setup header it came with.
    ///
    /// # Errors
    /// If the ELF file is bad.
    pub fn from_parts(file: Cow<'a, [u8]>, setup: Option<SetupHeader>) -> Result<Self, KernelError> {
        if !file.starts_with(b"\x7fELF") {
            return Err(KernelError::PayloadNotElf);
        }
        Ok(Self { elf: Elf::parse(&file)?, file, setup })
    }

    /// The (unpacked) ELF file.
    #[must_use]
    pub fn elf_file(&self) -> &[u8] {
        &self.file
    }

    /// The setup header, if the kernel came as a bzImage.
    #[must_use]
    pub fn setup_header(&self) -> Option<&SetupHeader> {
        self.setup.as_ref()
    }

    /// How the kernel will be entered.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        // A distribution's kernel has a PVH note as well, but its 64-bit entry skips the mode switch.
        if self.setup.is_none() && self.elf.pvh_entry.is_some() { Protocol::Pvh } else { Protocol::Linux64 }
    }

    /// The address of the first instruction.
    #[must_use]
    pub fn entry(&self) -> u64 {
        match (self.protocol(), self.elf.pvh_entry) {
            (Protocol::Pvh, Some(entry)) => u64::from(entry),
            _ => self.elf.entry,
        }
    }

    fn cmdline_max(&self) -> usize {
        let kernels = self.setup.as_ref().map_or(usize::MAX, SetupHeader::cmdline_size);
        kernels.min(layout::CMDLINE_SIZE - 1)
    }

    fn initrd_ceiling(&self, ram_end: u64) -> u64 {
        let max = match (&self.setup, self.protocol()) {
            (Some(setup), _) => setup.initrd_addr_max(),
            (None, Protocol::Linux64) => linux::DEFAULT_INITRD_MAX,
            (None, Protocol::Pvh) => u64::from(u32::MAX),
        };
        ram_end.min(max.saturating_add(1))
    }

    /// Check that every segment has a place of its own in the RAM below 4 GiB, clear of what this crate puts
    /// below 1 MiB, and that the entry point is in one.
    fn check_place(&self, ram_end: u64) -> Result<(), LoadError> {
        let mut ranges: Vec<Range> =
            self.elf.segments.iter().map(|s| Range { start: s.addr, len: s.mem_len }).collect();
        ranges.sort_by_key(|range| range.start);
        for range in &ranges {
            if range.start < layout::KERNEL_START || range.end() > ram_end {
                return Err(LoadError::OutsideRam { start: range.start, end: range.end(), ram_end });
            }
        }
        for (a, b) in ranges.iter().zip(ranges.iter().skip(1)) {
            if a.overlaps(b) {
                return Err(LoadError::Overlap(b.start));
            }
        }
        let entry = self.entry();
        if !ranges.iter().any(|range| range.start <= entry && entry < range.end()) {
            return Err(LoadError::BadEntry(entry));
        }
        Ok(())
    }
}

/// Put `kernel`, its command line and initrd into `ram`, with everything the boot protocol wants beside them.
///
/// `ram` must be laid out as [`layout::ram_regions`] says and be all zero: what a kernel expects to be zero
/// is not written, so that it costs no memory. For a reboot, give the RAM back first.
///
/// # Errors
/// If something does not fit, or the initrd cannot be read. `ram` may then be partly written.
pub fn load<R: ReadVolatile>(
    kernel: &Kernel<'_>,
    ram: &GuestRam,
    cmdline: &str,
    initrd: Option<Initrd<'_, R>>,
) -> Result<Entry, LoadError> {
    let memory: u64 = ram.iter().map(GuestMemoryRegion::len).sum();
    let ram_end = layout::low_ram_end(memory);
    kernel.check_place(ram_end)?;
    write_cmdline(ram, cmdline, kernel.cmdline_max())?;
    for segment in &kernel.elf.segments {
        let data = kernel.file.get(segment.offset..).and_then(|rest| rest.get(..segment.file_len));
        write_nonzero(ram, segment.addr, data.unwrap_or_default())?;
    }
    let (_, kernel_end) = kernel.elf.extent();
    let initrd = initrd
        .filter(|initrd| initrd.len > 0)
        .map(|initrd| initrd.load(ram, kernel_end, kernel.initrd_ceiling(ram_end)))
        .transpose()?;

    let protocol = kernel.protocol();
    regs::write_tables(ram, protocol)?;
    ram.write_slice(&reset::code(), GuestAddress(layout::RESET_VECTOR))?;
    let info = match protocol {
        Protocol::Linux64 => {
            let page = linux::zero_page(kernel.setup_header(), memory, initrd);
            ram.write_slice(&page, GuestAddress(layout::ZERO_PAGE))?;
            layout::ZERO_PAGE
        }
        Protocol::Pvh => {
            ram.write_slice(&pvh::start_info(memory, initrd), GuestAddress(layout::PVH_INFO))?;
            layout::PVH_INFO
        }
    };
    Ok(Entry { protocol, address: kernel.entry(), info })
}

/// Write `data` to RAM that is zero, without the pages that are zero in it: they would only cost memory. Of an
/// unpacked Debian kernel that is two fifths.
fn write_nonzero(ram: &GuestRam, addr: u64, data: &[u8]) -> Result<(), GuestMemoryError> {
    const PAGE: usize = 4096;
    // Pieces end where the guest's pages do, so that the first may be a short one.
    let head = (addr.wrapping_neg() as usize % PAGE).min(data.len());
    let (head, pages) = data.split_at(head);
    ram.write_slice(head, GuestAddress(addr))?;
    let start = addr.saturating_add(head.len() as u64);
    for (n, page) in pages.chunks(PAGE).enumerate() {
        if page != [0; PAGE].get(..page.len()).unwrap_or_default() {
            ram.write_slice(page, GuestAddress(start.saturating_add((n * PAGE) as u64)))?;
        }
    }
    Ok(())
}

fn write_cmdline(ram: &GuestRam, cmdline: &str, max: usize) -> Result<(), LoadError> {
    if cmdline.len() > max {
        return Err(LoadError::CmdlineTooLong { len: cmdline.len(), max });
    }
    if cmdline.contains('\0') {
        return Err(LoadError::CmdlineNul);
    }
    ram.write_slice(cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?;
    Ok(ram.write_obj(0u8, GuestAddress(layout::CMDLINE + cmdline.len() as u64))?)
}

#[cfg(test)]
mod tests;
