//! Says what a file that is no kernel looks like, for the error message.

use super::bytes::u16_at;
use super::decompress::Format;

/// What `file` looks like: the rest of a sentence that begins with "but".
pub fn describe(file: &[u8]) -> &'static str {
    let at = |offset: usize, magic: &[u8]| file.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if file.is_empty() {
        return "the file is empty";
    }
    if at(0x38, b"ARM\x64") || (at(0, b"MZ") && at(4, b"zimg")) {
        return "this looks like a kernel for ARM64";
    }
    if at(0x38, b"RSC\x05") {
        return "this looks like a kernel for RISC-V";
    }
    if at(0, b"MZ") {
        return "this looks like an EFI program without a Linux boot header";
    }
    if at(0, b"070701") {
        return "this looks like an initramfs; give it with --initrd";
    }
    match Format::detect(file) {
        Some(Format::Gzip) => return "this looks like a file packed with gzip; unpack it with gunzip",
        Some(Format::Xz | Format::Lzma) => {
            return "this looks like a file packed with xz; unpack it with unxz";
        }
        Some(Format::Zstd) => return "this looks like a file packed with zstd; unpack it with unzstd",
        Some(Format::Bzip2) => return "this looks like a file packed with bzip2; unpack it with bunzip2",
        Some(Format::Lz4) => return "this looks like a file packed with lz4; unpack it with unlz4",
        _ => {}
    }
    if at(0, b"QFI\xfb") || u16_at(file, 0x1fe) == Some(0xaa55) {
        return "this looks like a disk image; give it with --disk";
    }
    let head = file.get(..512).unwrap_or(file);
    if head.iter().all(|&byte| byte >= 0x20 && byte != 0x7f || byte.is_ascii_whitespace()) {
        return "this looks like text";
    }
    "this is something else"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_mistakes_are_named() {
        let with = |at: usize, magic: &[u8]| {
            let mut file = vec![0; 1024];
            file[at..at + magic.len()].copy_from_slice(magic);
            describe(&file)
        };
        assert!(with(0x38, b"ARM\x64").contains("ARM64"));
        assert!(with(0, b"MZ").contains("EFI"));
        assert!(with(0, b"\x1f\x8b").contains("gunzip"));
        assert!(with(0, b"\x28\xb5\x2f\xfd").contains("unzstd"));
        assert!(with(0, b"QFI\xfb").contains("--disk"));
        assert!(with(0x1fe, b"\x55\xaa").contains("--disk"));
        assert!(with(0, b"070701").contains("--initrd"));
        assert!(with(0, b"x").contains("something else"));
        assert!(describe("#!/bin/sh\nöffne".as_bytes()).contains("text"));
        assert!(describe(b"").contains("empty"));
    }
}
