use super::*;

use vm_memory::Bytes;

const SECTORS: u64 = 1 << 22;
const BOUNDS: Bounds = Bounds { size: SECTORS * SECTOR, readonly: false };

/// A request in guest memory: its readable bytes at 0x1000, cut into pieces of these lengths, and writable
/// segments from 0x80000 on.
struct Sketch {
    kind: u32,
    sector: u64,
    /// After the header.
    out: Vec<u8>,
    /// Lengths of the readable descriptors; the rest is one more.
    cuts: Vec<u32>,
    writable: Vec<u32>,
}

impl Sketch {
    fn new(kind: u32, sector: u64) -> Self {
        Self { kind, sector, out: Vec::new(), cuts: vec![16], writable: vec![1] }
    }

    fn parse_with(&self, bounds: Bounds) -> Result<Request, Malformed> {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let mut bytes = Vec::new();
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend([0xff; 4]);
        bytes.extend(self.sector.to_le_bytes());
        bytes.extend(&self.out);
        ram.write_slice(&bytes, GuestAddress(0x1000)).unwrap();
        let mut chain = Chain { head: 5, readable: Vec::new(), writable: Vec::new() };
        let mut at = 0x1000;
        let rest = bytes.len() as u32 - self.cuts.iter().sum::<u32>().min(bytes.len() as u32);
        for len in self.cuts.iter().copied().chain([rest]).filter(|len| *len > 0) {
            chain.readable.push(Segment { addr: GuestAddress(at), len });
            at += u64::from(len);
        }
        let mut at = 0x8_0000;
        for len in &self.writable {
            chain.writable.push(Segment { addr: GuestAddress(at), len: *len });
            // With gaps.
            at += u64::from(*len) + 0x1000;
        }
        Request::parse(&ram, &chain, bounds)
    }

    fn parse(&self) -> Result<Request, Malformed> {
        self.parse_with(BOUNDS)
    }

    fn kind(&self) -> Kind {
        self.parse().unwrap().kind
    }
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

fn segment(addr: u64, len: u32) -> Segment {
    Segment { addr: GuestAddress(addr), len }
}

const IO_ERROR: Kind = Kind::Refused(Status::IoError);
const UNSUPPORTED: Kind = Kind::Refused(Status::Unsupported);

#[test]
fn a_read_has_its_data_before_the_status() {
    let request = Sketch { writable: vec![4096, 512, 1], ..Sketch::new(0, 8) }.parse().unwrap();
    let data = vec![segment(0x8_0000, 4096), segment(0x8_2000, 512)];
    let status = GuestAddress(0x8_3200);
    assert_eq!(request, Request { head: 5, status, in_len: 4608, kind: Kind::Read { offset: 4096, data } });
}

#[test]
fn the_status_may_share_a_descriptor_with_data() {
    let request = Sketch { writable: vec![513], ..Sketch::new(0, 0) }.parse().unwrap();
    assert_eq!(request.status, GuestAddress(0x8_0200));
    assert_eq!(request.kind, Kind::Read { offset: 0, data: vec![segment(0x8_0000, 512)] });
}

#[test]
fn a_header_may_be_cut_anywhere() {
    for cuts in [vec![1, 1, 14], vec![3, 20], vec![528], vec![16, 256]] {
        let sketch = Sketch { out: vec![1; 512], cuts, ..Sketch::new(1, 2) };
        let Kind::Write { offset, data } = sketch.kind() else { panic!("a write") };
        assert_eq!(offset, 1024);
        assert_eq!(data.first().unwrap().addr, GuestAddress(0x1010));
        assert_eq!(data.iter().map(|segment| segment.len).sum::<u32>(), 512);
    }
}

#[test]
fn what_cannot_be_answered_is_malformed() {
    assert_eq!(Sketch { writable: vec![], ..Sketch::new(0, 0) }.parse(), Err(Malformed::Status));
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
    for readable in [vec![], vec![segment(0, 15)]] {
        let chain = Chain { head: 0, readable, writable: vec![segment(64, 1)] };
        assert_eq!(Request::parse(&ram, &chain, BOUNDS), Err(Malformed::Header));
    }
}

#[test]
fn requests_stay_on_the_disk() {
    let last = SECTORS - 1;
    let read = |sector| Sketch { writable: vec![512, 1], ..Sketch::new(0, sector) }.kind();
    assert!(matches!(read(last), Kind::Read { .. }));
    for sector in [SECTORS, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55] {
        assert_eq!(read(sector), IO_ERROR, "sector {sector:#x}");
        let write = Sketch { out: vec![0; 512], ..Sketch::new(1, sector) };
        assert_eq!(write.kind(), IO_ERROR, "sector {sector:#x}");
    }
    assert_eq!(Sketch { writable: vec![1024, 1], ..Sketch::new(0, last) }.kind(), IO_ERROR);
}

#[test]
fn data_is_whole_sectors() {
    assert_eq!(Sketch { writable: vec![511, 1], ..Sketch::new(0, 0) }.kind(), IO_ERROR);
    assert_eq!(Sketch { out: vec![0; 100], ..Sketch::new(1, 0) }.kind(), IO_ERROR);
    assert_eq!(Sketch::new(0, 0).kind(), Kind::Read { offset: 0, data: vec![] });
}

#[test]
fn a_read_only_disk_is_not_changed() {
    let bounds = Bounds { readonly: true, ..BOUNDS };
    for (kind, out) in [(1, vec![0; 512]), (11, range(0, 8, 0)), (13, range(0, 8, 0))] {
        let request = Sketch { out, ..Sketch::new(kind, 0) }.parse_with(bounds).unwrap();
        assert_eq!(request.kind, IO_ERROR, "type {kind}");
    }
    assert_eq!(Sketch::new(4, 0).parse_with(bounds).unwrap().kind, Kind::Flush);
}

#[test]
fn unknown_types_are_unsupported() {
    for kind in [2, 3, 5, 10, 14, 24, 0x8000_0000, u32::MAX] {
        assert_eq!(Sketch::new(kind, 0).kind(), UNSUPPORTED, "type {kind}");
    }
    assert_eq!(Sketch { writable: vec![20, 1], ..Sketch::new(8, u64::MAX) }.kind(), Kind::GetId);
}

#[test]
fn ranges_become_extents() {
    let out = [range(8, 16, 0), range(100, 0, 0), range(SECTORS - 1, 1, 0)].concat();
    let extent = |offset, len, how| Extent { offset, len, how };
    assert_eq!(
        Sketch { out: out.clone(), ..Sketch::new(11, 0) }.kind(),
        Kind::Erase(vec![
            extent(4096, 8192, Erase::Discard),
            extent((SECTORS - 1) * 512, 512, Erase::Discard)
        ]),
    );
    let out = [range(0, 1, 0), range(1, 1, 1)].concat();
    assert_eq!(
        Sketch { out, cuts: vec![16, 5], ..Sketch::new(13, 0) }.kind(),
        Kind::Erase(vec![extent(0, 512, Erase::Zero), extent(512, 512, Erase::Unmap)]),
    );
}

#[test]
fn ranges_keep_to_what_was_advertised() {
    let discard = |out| Sketch { out, ..Sketch::new(11, 0) }.kind();
    let zero = |out| Sketch { out, ..Sketch::new(13, 0) }.kind();
    assert!(matches!(discard(range(0, MAX_DISCARD_SECTORS, 0)), Kind::Erase(_)));
    assert_eq!(discard(range(0, MAX_DISCARD_SECTORS + 1, 0)), IO_ERROR);
    assert_eq!(zero(range(0, MAX_ZERO_SECTORS + 1, 0)), IO_ERROR);
    assert_eq!(discard(range(0, 1, 0).repeat(17)), IO_ERROR);
    assert_eq!(zero(range(0, 1, 0).repeat(5)), IO_ERROR);
    assert_eq!(discard(range(SECTORS, 1, 0)), IO_ERROR);
    assert_eq!(discard(range(u64::MAX, u32::MAX, 0)), IO_ERROR);
    assert_eq!(discard(vec![0; 15]), IO_ERROR);
    assert_eq!(discard(vec![]), IO_ERROR);
    for flags in [1, 2, u32::MAX] {
        assert_eq!(discard(range(0, 1, flags)), UNSUPPORTED, "flags {flags}");
    }
    for flags in [2, 3, u32::MAX] {
        assert_eq!(zero(range(0, 1, flags)), UNSUPPORTED, "flags {flags}");
    }
}

#[test]
fn a_request_costs_what_it_moves_and_zeroes() {
    let cost = |sketch: Sketch| {
        let request = sketch.parse().unwrap();
        (request.read_len(), request.write_len(), request.cost())
    };
    assert_eq!(cost(Sketch { writable: vec![4096, 512, 1], ..Sketch::new(0, 8) }), (4608, 0, 4608));
    assert_eq!(cost(Sketch { out: vec![0; 1024], ..Sketch::new(1, 8) }), (0, 1024, 1024));
    assert_eq!(cost(Sketch { writable: vec![4096, 1], ..Sketch::new(0, SECTORS) }), (0, 0, 0), "refused");
    assert_eq!(cost(Sketch::new(4, 0)), (0, 0, 0), "a flush");
    let out = [range(8, 16, 0), range(100, 2, 1)].concat();
    assert_eq!(cost(Sketch { out, ..Sketch::new(13, 0) }), (0, 0, 18 * 512), "zeroes");
    assert_eq!(cost(Sketch { out: range(8, 16, 0), ..Sketch::new(11, 0) }), (0, 0, 0), "a discard");
}
