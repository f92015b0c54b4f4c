//! Reads the parts of an ELF64 file that loading a kernel needs: entry, segments, the PVH note.
//!
//! The file is hostile: every offset and length is checked before it is used.

use super::bytes::{u16_at, u32_at, u64_at};

const HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
const MAX_PROGRAM_HEADERS: u16 = 256;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`, xen/include/public/elfnote.h.
const NOTE_PHYS32_ENTRY: u32 = 18;

/// A piece of the file and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub addr: u64,
    /// Offset in the file. `offset + file_len` lies within it.
    pub offset: usize,
    /// Bytes to copy from the file.
    pub file_len: usize,
    /// Bytes in RAM, at least `file_len`; the rest is zero.
    pub mem_len: u64,
}

/// What was read of an ELF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    /// The address of the first instruction.
    pub entry: u64,
    /// The 32-bit entry point of the PVH note.
    pub pvh_entry: Option<u32>,
    /// Never empty; `addr + mem_len` does not overflow.
    pub segments: Vec<Segment>,
}

/// An ELF file is none, or not one of a kernel.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ElfError {
    /// Not 64-bit.
    #[error("it is a 32-bit ELF file; build it for x86_64")]
    Not64Bit,
    /// Not little-endian x86_64.
    #[error("it is built for another processor (ELF machine {0}); build it for x86_64")]
    WrongMachine(u16),
    /// Neither executable nor position-independent executable.
    #[error("it is an ELF file that is no program (type {0}), such as a module or an object file")]
    NotExecutable(u16),
    /// A header or segment reaches past the end of the file.
    #[error("the ELF file is cut short or damaged: {0} lies outside of it")]
    OutOfFile(&'static str),
    /// A header says something impossible.
    #[error("the ELF file is damaged: {0}")]
    Invalid(&'static str),
}

impl Elf {
    /// Read the headers of `file`, which starts with the ELF magic.
    ///
    /// # Errors
    /// If it is not an x86_64 program, or a header points outside of the file.
    pub fn parse(file: &[u8]) -> Result<Self, ElfError> {
        let header = file.get(..HEADER_LEN).ok_or(ElfError::OutOfFile("its header"))?;
        let field = || ElfError::OutOfFile("its header");
        if header.get(4) != Some(&2) {
            return Err(ElfError::Not64Bit);
        }
        let machine = u16_at(header, 18).ok_or_else(field)?;
        if header.get(5) != Some(&1) || machine != EM_X86_64 {
            return Err(ElfError::WrongMachine(machine));
        }
        match u16_at(header, 16).ok_or_else(field)? {
            2 | 3 => {}
            other => return Err(ElfError::NotExecutable(other)),
        }
        let entry = u64_at(header, 24).ok_or_else(field)?;
        let table = u64_at(header, 32).ok_or_else(field)?;
        let entry_len = u16_at(header, 54).ok_or_else(field)?;
        let count = u16_at(header, 56).ok_or_else(field)?;
        if usize::from(entry_len) != PROGRAM_HEADER_LEN {
            return Err(ElfError::Invalid("its program headers have the wrong length"));
        }
        if count > MAX_PROGRAM_HEADERS {
            return Err(ElfError::Invalid("it has more than 256 program headers"));
        }
        let table = usize::try_from(table)
            .ok()
            .and_then(|at| file.get(at..)?.get(..usize::from(count) * PROGRAM_HEADER_LEN))
            .ok_or(ElfError::OutOfFile("its program header table"))?;
        let mut elf = Elf { entry, pvh_entry: None, segments: Vec::new() };
        for header in table.chunks_exact(PROGRAM_HEADER_LEN) {
            elf.add_program_header(file, header)?;
        }
        if elf.segments.is_empty() {
            return Err(ElfError::Invalid("it has nothing to load"));
        }
        Ok(elf)
    }

    /// The range from the first to the last address that the segments take.
    #[must_use]
    pub fn extent(&self) -> (u64, u64) {
        let start = self.segments.iter().map(|s| s.addr).min().unwrap_or(0);
        let end = self.segments.iter().map(|s| s.addr.saturating_add(s.mem_len)).max().unwrap_or(0);
        (start, end)
    }

    fn add_program_header(&mut self, file: &[u8], header: &[u8]) -> Result<(), ElfError> {
        let field = || ElfError::OutOfFile("a program header");
        let kind = u32_at(header, 0).ok_or_else(field)?;
        let offset = u64_at(header, 8).ok_or_else(field)?;
        let addr = u64_at(header, 24).ok_or_else(field)?;
        let file_len = u64_at(header, 32).ok_or_else(field)?;
        let mem_len = u64_at(header, 40).ok_or_else(field)?;
        if !matches!(kind, PT_LOAD | PT_NOTE) || (kind == PT_LOAD && mem_len == 0) {
            return Ok(());
        }
        let (data, offset, file_len) =
            slice(file, offset, file_len).ok_or(ElfError::OutOfFile("a segment"))?;
        if kind == PT_NOTE {
            self.pvh_entry = self.pvh_entry.or_else(|| pvh_note(data));
            return Ok(());
        }
        if (file_len as u64) > mem_len {
            return Err(ElfError::Invalid("a segment is longer in the file than in memory"));
        }
        if addr.checked_add(mem_len).is_none() {
            return Err(ElfError::Invalid("a segment wraps around the end of memory"));
        }
        self.segments.push(Segment { addr, offset, file_len, mem_len });
        Ok(())
    }
}

fn slice(file: &[u8], offset: u64, len: u64) -> Option<(&[u8], usize, usize)> {
    let offset = usize::try_from(offset).ok()?;
    let len = usize::try_from(len).ok()?;
    Some((file.get(offset..)?.get(..len)?, offset, len))
}

/// The 32-bit entry point in a note segment. A note is three words (lengths of name and value, type),
/// then both, each padded to four bytes.
fn pvh_note(mut notes: &[u8]) -> Option<u32> {
    let pad = |len: u32| usize::try_from(len).ok()?.checked_next_multiple_of(4);
    loop {
        let (name_len, value_len, kind) = (u32_at(notes, 0)?, u32_at(notes, 4)?, u32_at(notes, 8)?);
        let rest = notes.get(12..)?;
        let name = rest.get(..usize::try_from(name_len).ok()?)?;
        let rest = rest.get(pad(name_len)?..)?;
        if kind == NOTE_PHYS32_ENTRY && name == b"Xen\0" {
            // The value is a word or, from assemblers that write pointers, a double word.
            return match value_len {
                4 => u32_at(rest, 0),
                8 => u64_at(rest, 0).and_then(|entry| entry.try_into().ok()),
                _ => None,
            };
        }
        notes = rest.get(pad(value_len)?..)?;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An ELF file with one segment of `code` at `addr`, entered at its start, and a PVH note if asked.
    pub fn build(addr: u64, code: &[u8], mem_len: u64, pvh: Option<u32>) -> Vec<u8> {
        let note: Vec<u8> = match pvh {
            Some(entry) => {
                [4u32.to_le_bytes(), 4u32.to_le_bytes(), 18u32.to_le_bytes(), *b"Xen\0", entry.to_le_bytes()]
                    .concat()
            }
            None => Vec::new(),
        };
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend(2u16.to_le_bytes());
        file.extend(EM_X86_64.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(addr.to_le_bytes());
        file.extend(64u64.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        for half in [64u16, 56, 2, 0, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let data = 64 + 2 * 56;
        let mut program_header = |kind: u32, offset: usize, addr: u64, file_len: usize, mem_len: u64| {
            file.extend(kind.to_le_bytes());
            file.extend(7u32.to_le_bytes());
            for word in [offset as u64, addr, addr, file_len as u64, mem_len, 4] {
                file.extend(word.to_le_bytes());
            }
        };
        program_header(PT_NOTE, data, 0, note.len(), note.len() as u64);
        program_header(PT_LOAD, data + note.len(), addr, code.len(), mem_len);
        file.extend(note);
        file.extend(code);
        file
    }

    #[test]
    fn entry_segments_and_note_are_read() {
        let file = build(0x10_0000, b"code", 0x1000, Some(0x10_0002));
        let elf = Elf::parse(&file).unwrap();
        assert_eq!((elf.entry, elf.pvh_entry), (0x10_0000, Some(0x10_0002)));
        let [segment] = elf.segments[..] else { panic!("{elf:?}") };
        assert_eq!(&file[segment.offset..][..segment.file_len], b"code");
        assert_eq!((segment.addr, segment.mem_len), (0x10_0000, 0x1000));
        assert_eq!(elf.extent(), (0x10_0000, 0x10_1000));
        assert_eq!(Elf::parse(&build(0x10_0000, b"code", 4, None)).unwrap().pvh_entry, None);
    }

    #[test]
    fn what_cannot_run_is_named() {
        let good = build(0x10_0000, b"code", 4, None);
        let with = |at: usize, value: u8| {
            let mut file = good.clone();
            file[at] = value;
            Elf::parse(&file).unwrap_err()
        };
        assert_eq!(with(4, 1), ElfError::Not64Bit);
        assert_eq!(with(18, 183), ElfError::WrongMachine(183));
        assert_eq!(with(16, 1), ElfError::NotExecutable(1));
        assert_eq!(with(39, 0xff), ElfError::OutOfFile("its program header table"));
        assert!(matches!(with(54, 55), ElfError::Invalid(_)));
        assert_eq!(with(64 + 56 + 15, 0xff), ElfError::OutOfFile("a segment"));
        assert!(matches!(Elf::parse(&build(0x10_0000, b"code", 3, None)), Err(ElfError::Invalid(_))));
        assert!(matches!(Elf::parse(&build(u64::MAX, b"code", 4, None)), Err(ElfError::Invalid(_))));
        assert!(matches!(Elf::parse(&build(0, b"", 0, None)), Err(ElfError::Invalid(_))));
    }

    #[test]
    fn a_note_with_a_wide_or_odd_value_or_behind_another_is_found_or_skipped() {
        let note = |name: &[u8], value: &[u8], kind: u32| {
            let mut note = Vec::new();
            for word in [name.len() as u32, value.len() as u32, kind] {
                note.extend(word.to_le_bytes());
            }
            for part in [name, value] {
                note.extend(part);
                note.resize(note.len().next_multiple_of(4), 0);
            }
            note
        };
        let entry = 0x20_0000u64;
        let wide = note(b"Xen\0", &entry.to_le_bytes(), 18);
        assert_eq!(pvh_note(&wide), Some(0x20_0000));
        let behind = [note(b"GNU\0", b"12345", 3), note(b"Xen", b"", 18), wide].concat();
        assert_eq!(pvh_note(&behind), Some(0x20_0000));
        assert_eq!(pvh_note(&note(b"Xen\0", b"12", 18)), None);
        assert_eq!(pvh_note(&note(b"Xen\0", &u64::MAX.to_le_bytes(), 18)), None);
        assert_eq!(pvh_note(&[0xff; 64]), None);
    }

    proptest! {
        #[test]
        fn a_mutated_file_never_panics_and_its_segments_lie_within_it(
            changes in prop::collection::vec((0usize..220, any::<u8>()), 1..12),
            len in 0usize..260,
        ) {
            let mut file = build(0x10_0000, b"some code", 0x1000, Some(0x10_0000));
            for (at, value) in changes {
                if let Some(byte) = file.get_mut(at) {
                    *byte = value;
                }
            }
            file.truncate(len);
            if let Ok(elf) = Elf::parse(&file) {
                for s in elf.segments {
                    prop_assert!(s.offset + s.file_len <= file.len());
                    prop_assert!(s.addr.checked_add(s.mem_len).is_some());
                }
            }
        }
    }
}
