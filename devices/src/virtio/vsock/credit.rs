//! Who may send how much on one connection (virtio 1.2, 5.10.6.3).
//!
//! All counts are modulo 2^32, as on the wire. The guest's may be lies: then it gets less, never more than it asked for,
//! and this side's buffer is never exceeded.

/// The counts of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Credit {
    /// This side's buffer, in bytes.
    buf_alloc: u32,
    /// What the guest has sent.
    rx_cnt: u32,
    /// What of it has left the buffer, for the host's socket.
    fwd_cnt: u32,
    /// What the guest was last told of `fwd_cnt`.
    told: u32,
    /// The guest's buffer, in bytes.
    peer_buf_alloc: u32,
    /// What has left that.
    peer_fwd_cnt: u32,
    /// What the guest was sent.
    tx_cnt: u32,
}

/// The guest sent more than it was allowed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overrun;

impl Credit {
    /// A connection with a buffer of `buf_alloc` bytes, to a guest of which nothing is known.
    pub(super) fn new(buf_alloc: u32) -> Self {
        Self { buf_alloc, rx_cnt: 0, fwd_cnt: 0, told: 0, peer_buf_alloc: 0, peer_fwd_cnt: 0, tx_cnt: 0 }
    }

    /// The guest says this of its side.
    pub(super) fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_buf_alloc = buf_alloc;
        self.peer_fwd_cnt = fwd_cnt;
    }

    /// How many bytes the guest has room for.
    pub(super) fn peer_free(&self) -> u32 {
        // A guest that says it forwarded more than it was sent has, modulo 2^32, nearly everything in flight: no room.
        self.peer_buf_alloc.saturating_sub(self.tx_cnt.wrapping_sub(self.peer_fwd_cnt))
    }

    /// The guest was sent `len` bytes of payload.
    pub(super) fn sent(&mut self, len: u32) {
        self.tx_cnt = self.tx_cnt.wrapping_add(len);
    }

    /// How many bytes the buffer holds.
    pub(super) fn held(&self) -> u32 {
        self.rx_cnt.wrapping_sub(self.fwd_cnt)
    }

    /// The guest sends `len` bytes.
    ///
    /// # Errors
    /// If the buffer has no room for them, as the guest knows.
    pub(super) fn received(&mut self, len: u32) -> Result<(), Overrun> {
        if len > self.buf_alloc.saturating_sub(self.held()) {
            return Err(Overrun);
        }
        self.rx_cnt = self.rx_cnt.wrapping_add(len);
        Ok(())
    }

    /// `len` bytes have left the buffer.
    pub(super) fn forwarded(&mut self, len: u32) {
        self.fwd_cnt = self.fwd_cnt.wrapping_add(len.min(self.held()));
    }

    /// Whether the guest had better be told: half the buffer is free that it thinks is not.
    pub(super) fn stale(&self) -> bool {
        self.fwd_cnt.wrapping_sub(self.told) >= self.buf_alloc / 2
    }

    /// What to tell the guest: `buf_alloc` and `fwd_cnt`.
    pub(super) fn tell(&mut self) -> (u32, u32) {
        self.told = self.fwd_cnt;
        (self.buf_alloc, self.fwd_cnt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_guest_gets_what_it_has_room_for() {
        let mut credit = Credit::new(100);
        assert_eq!(credit.peer_free(), 0, "nothing is known");
        credit.update(50, 0);
        credit.sent(20);
        assert_eq!(credit.peer_free(), 30);
        credit.sent(30);
        assert_eq!(credit.peer_free(), 0);
        credit.update(50, 40);
        assert_eq!(credit.peer_free(), 40);
        // Its buffer shrinks below what is in flight.
        credit.update(5, 40);
        assert_eq!(credit.peer_free(), 0);
    }

    #[test]
    fn lies_about_room_give_none() {
        let mut credit = Credit::new(100);
        credit.update(1000, 0);
        credit.sent(10);
        for lie in [11, 500, 1 << 31] {
            credit.update(1000, lie);
            assert_eq!(credit.peer_free(), 0, "{lie} of 10 forwarded");
        }
        credit.update(1000, 10);
        credit.update(1000, 3);
        assert_eq!(credit.peer_free(), 993, "backwards");
    }

    #[test]
    fn nothing_is_taken_beyond_the_buffer() {
        let mut credit = Credit::new(100);
        assert_eq!(credit.received(101), Err(Overrun));
        assert_eq!(credit.received(u32::MAX), Err(Overrun));
        assert_eq!(credit.received(100), Ok(()));
        assert_eq!(credit.received(1), Err(Overrun));
        assert_eq!(credit.received(0), Ok(()));
        credit.forwarded(40);
        assert_eq!(credit.held(), 60);
        assert_eq!(credit.received(41), Err(Overrun));
        assert_eq!(credit.received(40), Ok(()));
    }

    #[test]
    fn the_guest_is_told_when_half_is_free() {
        let mut credit = Credit::new(100);
        credit.received(100).unwrap();
        credit.forwarded(49);
        assert!(!credit.stale());
        credit.forwarded(1);
        assert!(credit.stale());
        assert_eq!(credit.tell(), (100, 50));
        assert!(!credit.stale());
    }

    proptest! {
        /// Over any history, long enough to wrap every count.
        #[test]
        fn the_buffer_holds_what_was_received_and_not_forwarded(
            start in prop_oneof![Just(0), Just(u32::MAX - 5), any::<u32>()],
            steps in proptest::collection::vec((any::<u32>(), any::<u32>()), 0..50),
        ) {
            let mut credit = Credit::new(1 << 18);
            (credit.rx_cnt, credit.fwd_cnt, credit.told) = (start, start, start);
            let mut held = 0_u64;
            for (receive, forward) in steps {
                let receive = receive % (1 << 19);
                if credit.received(receive).is_ok() {
                    held += u64::from(receive);
                } else {
                    prop_assert!(held + u64::from(receive) > 1 << 18);
                }
                let forward = (u64::from(forward) % (held + 1)) as u32;
                credit.forwarded(forward);
                held -= u64::from(forward);
                prop_assert_eq!(u64::from(credit.held()), held);
                prop_assert!(held <= 1 << 18);
            }
        }

        #[test]
        fn room_is_the_same_wherever_the_counts_are(start in any::<u32>(), room in any::<u32>(), sent in any::<u32>()) {
            let mut credit = Credit::new(0);
            credit.tx_cnt = start;
            credit.update(room, start);
            prop_assert_eq!(credit.peer_free(), room);
            credit.sent(sent);
            prop_assert_eq!(credit.peer_free(), room.saturating_sub(sent));
        }
    }
}
