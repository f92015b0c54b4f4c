//! Guests of a few instructions, assembled by hand: 32-bit code behind a PVH entry.

use std::path::PathBuf;

/// A program, piece by piece.
#[derive(Default)]
pub struct Code(Vec<u8>);

impl Code {
    /// Write `value` to port `port`.
    pub fn out(mut self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        // mov dx, port; mov al, value; out dx, al
        self.0.extend([0x66, 0xba, low, high, 0xb0, value, 0xee]);
        self
    }

    /// Store `value` at `address`.
    pub fn store(mut self, address: u32, value: u32) -> Self {
        // mov dword [address], value
        self.0.extend([0xc7, 0x05]);
        self.0.extend(address.to_le_bytes());
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Write to each of `pages` pages of 4 KiB from `address` on.
    pub fn touch(mut self, address: u32, pages: u32) -> Self {
        // mov edi, address; mov ecx, pages
        self.0.push(0xbf);
        self.0.extend(address.to_le_bytes());
        self.0.push(0xb9);
        self.0.extend(pages.to_le_bytes());
        // next: mov [edi], edi; add edi, 4096; loop next
        self.0.extend([0x89, 0x3f, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, 0xe2, 0xf6]);
        self
    }

    /// Wait until there is something else than zero at `address`.
    pub fn wait(mut self, address: u32) -> Self {
        // again: mov eax, [address]; test eax, eax; jz again
        self.0.push(0xa1);
        self.0.extend(address.to_le_bytes());
        self.0.extend([0x85, 0xc0, 0x74, 0xf7]);
        self
    }

    /// Send back what the serial port receives, until that is an `o`.
    pub fn echo(mut self) -> Self {
        // next: mov dx, 0x3fd; in al, dx; test al, 1; jz next
        self.0.extend([0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7]);
        // mov dx, 0x3f8; in al, dx; cmp al, 'o'; je end
        self.0.extend([0x66, 0xba, 0xf8, 0x03, 0xec, 0x3c, b'o', 0x74, 0x03]);
        // out dx, al; jmp next; end:
        self.0.extend([0xee, 0xeb, 0xeb]);
        self
    }

    /// Count at `address`, and write the count's low byte to port `port`.
    pub fn count(mut self, address: u32, port: u16) -> Self {
        // inc dword [address]; mov al, [address]
        for instruction in [&[0xff, 0x05][..], &[0xa0]] {
            self.0.extend(instruction);
            self.0.extend(address.to_le_bytes());
        }
        let [low, high] = port.to_le_bytes();
        // mov dx, port; out dx, al
        self.0.extend([0x66, 0xba, low, high, 0xee]);
        self
    }

    /// Begin again, for ever.
    pub fn again(mut self) -> Self {
        // jmp, over the distance to the first instruction from the one after this.
        let back = -(self.0.len() as i32 + 5);
        self.0.push(0xe9);
        self.0.extend(back.to_le_bytes());
        self
    }

    /// Stay here, for ever.
    pub fn stay(mut self) -> Self {
        self.0.extend([0xeb, 0xfe]);
        self
    }

    /// An ELF with this at 1 MiB as its PVH entry (XEN_ELFNOTE_PHYS32_ENTRY), in a directory that goes with it.
    pub fn file(&self) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guest.elf");
        std::fs::write(&path, self.elf()).unwrap();
        (dir, path)
    }

    fn elf(&self) -> Vec<u8> {
        const LOAD: u64 = 0x10_0000;
        const CODE: u64 = 0x1000;
        const NOTE: u64 = 64 + 2 * 56;
        let mut elf = Vec::new();
        elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        elf.extend([2_u16, 62].into_iter().flat_map(u16::to_le_bytes));
        elf.extend(1_u32.to_le_bytes());
        elf.extend([LOAD, 64, 0].into_iter().flat_map(u64::to_le_bytes));
        elf.extend(0_u32.to_le_bytes());
        elf.extend([64_u16, 56, 2, 64, 0, 0].into_iter().flat_map(u16::to_le_bytes));
        let len = self.0.len() as u64;
        for (kind, flags, words) in
            [(1_u32, 5_u32, [CODE, LOAD, LOAD, len, len, 4096]), (4, 4, [NOTE, 0, 0, 20, 20, 4])]
        {
            elf.extend([kind, flags].into_iter().flat_map(u32::to_le_bytes));
            elf.extend(words.into_iter().flat_map(u64::to_le_bytes));
        }
        elf.extend([4_u32, 4, 18].into_iter().flat_map(u32::to_le_bytes));
        elf.extend(b"Xen\0");
        elf.extend((LOAD as u32).to_le_bytes());
        elf.resize(CODE as usize, 0);
        elf.extend(&self.0);
        elf
    }
}
