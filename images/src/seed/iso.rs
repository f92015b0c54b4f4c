//! A small ISO 9660 file system: one directory, whose files have their names by Rock Ridge (IEEE P1282) and Joliet as well.
//!
//! ```text
//! 16 primary descriptor │ 17 Joliet's │ 18 end │ 19, 20 path tables │ 21, 22 Joliet's │ 23 directory │ 24 Joliet's │ 25… files
//! ```
//! in sectors of 2048 bytes. Nothing in it depends on when or where it is made.

const SECTOR: usize = 2048;
const TABLES: usize = 19;
const DIRECTORY: usize = 23;
const JOLIET_DIRECTORY: usize = 24;
const FILES: usize = 25;
/// A path table with the root alone, in bytes.
const TABLE: u32 = 10;
/// The first of January 2000 (ECMA-119, 9.1.5).
const DATE: [u8; 7] = [100, 1, 1, 0, 0, 0, 0];
const IS_DIRECTORY: u8 = 2;

/// A file.
pub(super) struct File<'a> {
    /// As ISO 9660 has it: at most 8 of capitals, digits and `_`.
    pub short: &'static str,
    /// As Linux sees it.
    pub name: &'static str,
    pub content: &'a [u8],
}

/// Two ways to write the same tree.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tree {
    RockRidge,
    Joliet,
}

impl Tree {
    fn directory(self) -> u32 {
        (if self == Self::Joliet { JOLIET_DIRECTORY } else { DIRECTORY }) as u32
    }

    /// Where its path tables are: the one that is little-endian, and the other one.
    fn tables(self) -> (u32, u32) {
        let first = (if self == Self::Joliet { TABLES + 2 } else { TABLES }) as u32;
        (first, first + 1)
    }

    /// A text as it is written in this tree, of `len` bytes.
    fn text(self, text: &str, len: usize) -> Vec<u8> {
        let (mut bytes, space): (Vec<u8>, &[u8]) = match self {
            Self::RockRidge => (text.bytes().collect(), b" "),
            Self::Joliet => (text.encode_utf16().flat_map(u16::to_be_bytes).collect(), b"\0 "),
        };
        while bytes.len() < len {
            bytes.extend(space);
        }
        bytes.truncate(len);
        bytes
    }
}

/// The file system with the label and these files, which are sorted by their short names and, together, smaller than 4 GiB.
pub(super) fn write(label: &str, files: &[File<'_>]) -> Vec<u8> {
    let mut next = FILES;
    let places: Vec<(u32, u32)> = files
        .iter()
        .map(|file| {
            let place = next;
            next += file.content.len().div_ceil(SECTOR);
            (place as u32, file.content.len() as u32)
        })
        .collect();
    let mut disk = vec![0; 16 * SECTOR];
    let mut sector = |bytes: Vec<u8>| {
        disk.extend(bytes);
        disk.resize(disk.len().next_multiple_of(SECTOR), 0);
    };
    sector(descriptor(Tree::RockRidge, label, next as u32));
    sector(descriptor(Tree::Joliet, label, next as u32));
    sector(b"\xffCD001\x01".to_vec());
    for tree in [Tree::RockRidge, Tree::Joliet] {
        sector(path_table(tree.directory().to_le_bytes(), 1_u16.to_le_bytes()));
        sector(path_table(tree.directory().to_be_bytes(), 1_u16.to_be_bytes()));
    }
    sector(directory(Tree::RockRidge, files, &places));
    sector(directory(Tree::Joliet, files, &places));
    for file in files {
        sector(file.content.to_vec());
    }
    disk
}

/// A number in both byte orders (7.2.3, 7.3.3).
fn both16(number: u16) -> Vec<u8> {
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

fn both32(number: u32) -> Vec<u8> {
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

/// A volume descriptor (8.4, 8.5).
fn descriptor(tree: Tree, label: &str, sectors: u32) -> Vec<u8> {
    let joliet = tree == Tree::Joliet;
    let mut bytes = vec![if joliet { 2 } else { 1 }];
    bytes.extend(b"CD001\x01\0");
    bytes.extend(tree.text("", 32));
    bytes.extend(tree.text(label, 32));
    bytes.extend([0; 8]);
    bytes.extend(both32(sectors));
    // Joliet's third level: UCS-2.
    bytes.extend(if joliet { b"%/E" } else { b"\0\0\0" });
    bytes.extend([0; 29]);
    // One volume of one; the size of a block.
    bytes.extend([both16(1), both16(1), both16(SECTOR as u16), both32(TABLE)].concat());
    let (little, big) = tree.tables();
    bytes.extend(little.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(big.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(record(tree.directory(), SECTOR as u32, IS_DIRECTORY, &[0], &[]));
    // Who made it, of what: nothing.
    bytes.extend(tree.text("", 128 * 4 + 37 * 3));
    bytes.extend(b"2000010100000000\0");
    bytes.extend(b"2000010100000000\0");
    bytes.extend(b"0000000000000000\0");
    bytes.extend(b"0000000000000000\0");
    bytes.push(1);
    bytes
}

/// The root's entry alone (9.4).
fn path_table(place: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    [&[1, 0], &place[..], &parent, &[0, 0]].concat()
}

fn directory(tree: Tree, files: &[File<'_>], places: &[(u32, u32)]) -> Vec<u8> {
    let rock = |fields: Vec<u8>| if tree == Tree::RockRidge { fields } else { Vec::new() };
    let own = tree.directory();
    // What the fields are is said in the first one.
    let mark =
        [&b"SP\x07\x01\xbe\xef\0"[..], &posix(0o040_555, 2), b"ER\x12\x01\x0a\0\0\x01RRIP_1991A"].concat();
    let mut bytes = record(own, SECTOR as u32, IS_DIRECTORY, &[0], &rock(mark));
    bytes.extend(record(own, SECTOR as u32, IS_DIRECTORY, &[1], &rock(posix(0o040_555, 2))));
    for (file, (place, len)) in files.iter().zip(places) {
        let name = match tree {
            Tree::RockRidge => format!("{}.;1", file.short).into_bytes(),
            Tree::Joliet => file.name.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        };
        let long = [b"NM", &[file.name.len() as u8 + 5, 1, 0][..], file.name.as_bytes()].concat();
        // There may be passwords in it.
        let fields = rock([posix(0o100_400, 1), long].concat());
        bytes.extend(record(*place, *len, 0, &name, &fields));
    }
    bytes
}

/// A directory record (9.1), with its system use fields.
fn record(place: u32, len: u32, flags: u8, name: &[u8], fields: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0];
    bytes.extend(both32(place));
    bytes.extend(both32(len));
    bytes.extend(DATE);
    bytes.extend([flags, 0, 0]);
    bytes.extend(both16(1));
    bytes.push(name.len() as u8);
    bytes.extend(name);
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    bytes.extend(fields);
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    // Names are short: it is below 255.
    let len = bytes.len() as u8;
    if let Some(first) = bytes.first_mut() {
        *first = len;
    }
    bytes
}

/// `PX`: mode, links, user and group.
fn posix(mode: u32, links: u32) -> Vec<u8> {
    let mut field = b"PX\x24\x01".to_vec();
    field.extend([both32(mode), both32(links), both32(0), both32(0)].concat());
    field
}
