//! The header before every packet, as it lies in guest memory (virtio 1.2, 5.10.6), and what can be in it.

/// Bytes of a header.
pub(super) const HEADER_LEN: usize = 44;
/// The host's context ID (5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`: the one type that is offered.
pub(super) const TYPE_STREAM: u16 = 1;

/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: the sender will receive nothing more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender will send nothing more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// The sender is done.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// Operations (5.10.6).
pub(super) mod op {
    /// Open a connection.
    pub const REQUEST: u16 = 1;
    /// The connection is open.
    pub const RESPONSE: u16 = 2;
    /// There is no such connection, or no more.
    pub const RST: u16 = 3;
    /// No more in one direction, or both.
    pub const SHUTDOWN: u16 = 4;
    /// Payload.
    pub const RW: u16 = 5;
    /// How much room there is.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Say how much room there is.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// `struct virtio_vsock_hdr`, a copy: the guest cannot change it any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// Bytes of payload behind it.
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    /// The sender's buffer for the connection, in bytes.
    pub buf_alloc: u32,
    /// What has left that buffer since the connection began, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    pub(super) fn bytes(&self) -> [u8; HEADER_LEN] {
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        let mut bytes = [0; HEADER_LEN];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// The refusal that answers this packet (5.10.6.5): the same ends, turned round.
    pub(super) fn refusal(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}

/// The first `N` bytes, which the caller knows to be there.
fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let Some((first, rest)) = bytes.split_first_chunk() else { return [0; N] };
    *bytes = rest;
    *first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_where_the_specification_has_it() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 2,
            src_port: 0x1122_3344,
            dst_port: 0x5566_7788,
            len: 0x99aa_bbcc,
            kind: TYPE_STREAM,
            op: op::RW,
            flags: 3,
            buf_alloc: 0x10,
            fwd_cnt: 0x20,
        };
        let bytes = header.bytes();
        assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[16..20], [0x44, 0x33, 0x22, 0x11]);
        assert_eq!(bytes[24..28], [0xcc, 0xbb, 0xaa, 0x99]);
        assert_eq!(bytes[28..32], [1, 0, 5, 0]);
        assert_eq!(bytes[40..44], [0x20, 0, 0, 0]);
        assert_eq!(Header::parse(&bytes), header);
    }

    #[test]
    fn a_refusal_goes_back_where_it_came_from() {
        let header = Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 10,
            dst_port: 20,
            kind: 2,
            len: 7,
            ..Header::default()
        };
        let refusal = header.refusal();
        assert_eq!((refusal.src_cid, refusal.src_port), (2, 20));
        assert_eq!((refusal.dst_cid, refusal.dst_port), (3, 10));
        assert_eq!((refusal.kind, refusal.op, refusal.len), (2, op::RST, 0));
    }
}
