//! The control queue (virtio 1.2, 5.1.6.5): how many queue pairs the driver uses, and which offloads it takes.
//!
//! Served by the first queue pair's thread. A change of the pairs is answered when each pair's thread has made it: until then the
//! command is held, and those behind it wait.

use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_MQ,
    VIRTIO_NET_OK,
};

use crate::net::Backend;
use crate::virtio::chain::Chain;
use crate::virtio::queue::Queue;

use super::config::{self, GUEST_OFFLOADS, has};
use super::pair::{Common, Fault};
use super::shared::Shared;

/// The most commands in one turn.
const MAX_COMMANDS: u16 = 16;
/// Class, command, and the longest argument.
const COMMAND: usize = 2 + 8;

const MQ: u8 = VIRTIO_NET_CTRL_MQ as u8;
const PAIRS_SET: u8 = VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET as u8;
const OFFLOADS: u8 = VIRTIO_NET_CTRL_GUEST_OFFLOADS as u8;
const OFFLOADS_SET: u8 = VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET as u8;

/// What the driver asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    /// Use so many queue pairs.
    Pairs(u16),
    /// Take these in what is received, and no others: bits of features.
    Offloads(u64),
    /// Something else, or wrongly put.
    Unknown,
}

/// The control queue.
pub(super) struct Control {
    pub queue: Queue,
    pub backend: Arc<dyn Backend>,
    /// What was agreed on.
    pub features: u64,
    /// How many pairs the driver has set up.
    pub pairs: u16,
    changing: Option<Change>,
}

/// A change of the pairs in use that is under way.
struct Change {
    /// Whose answer waits for it.
    chain: Chain,
    /// How many there were before.
    before: u16,
    /// It could not be made, and is being taken back.
    failed: bool,
}

impl Control {
    pub(super) fn new(queue: Queue, backend: Arc<dyn Backend>, features: u64, pairs: u16) -> Self {
        Self { queue, backend, features, pairs, changing: None }
    }

    /// Whether a command is under way that nobody can hurry.
    pub(super) fn waits(&self) -> bool {
        self.changing.is_some()
    }

    /// Put a command that is under way back in the ring, as if it had not been seen.
    pub(super) fn put_back(&mut self, shared: &Shared) {
        if let Some(change) = self.changing.take() {
            shared.want(change.before);
            self.queue.unpop();
        }
    }

    /// Carry out some commands. Whether there were any.
    pub(super) fn turn(&mut self, common: &Common) -> Result<bool, Fault> {
        let mut served = false;
        for _ in 0..MAX_COMMANDS {
            let Some((chain, done)) = self.next(common)? else { break };
            self.answer(common, &chain, done)?;
            served = true;
        }
        common.tell(&mut self.queue, served)?;
        Ok(served)
    }

    fn answer(&mut self, common: &Common, chain: &Chain, done: bool) -> Result<(), Fault> {
        let ack = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
        let written = chain.write(&common.ram, 0, &[ack as u8]);
        self.queue.put_used(&common.ram, chain.head, written as u32)?;
        Ok(())
    }

    /// A command that can be answered, and whether it was done. `None` if there is none, or that is not decided yet.
    fn next(&mut self, common: &Common) -> Result<Option<(Chain, bool)>, Fault> {
        if self.changing.is_none() {
            let Some(chain) = self.queue.pop(&common.ram)? else { return Ok(None) };
            let mut bytes = [0; COMMAND];
            let len = chain.read(&common.ram, 0, &mut bytes);
            if len < 2 || chain.writable.is_empty() {
                return Err(Fault::Driver(
                    "a control command without a class, or without room for an answer",
                ));
            }
            match parse(bytes.get(..len).unwrap_or_default(), self.features) {
                Command::Pairs(pairs) if (1..=self.pairs).contains(&pairs) => {
                    let before = common.shared.wanted();
                    common.shared.want(pairs);
                    self.changing = Some(Change { chain, before, failed: false });
                }
                Command::Offloads(bits) if bits & !(self.features & GUEST_OFFLOADS) == 0 => {
                    let done = self.backend.set_offloads(config::guest_offloads(bits)).is_ok();
                    if done {
                        common.shared.set_offloads(Some(bits));
                    }
                    return Ok(Some((chain, done)));
                }
                Command::Pairs(_) | Command::Offloads(_) | Command::Unknown => {
                    return Ok(Some((chain, false)));
                }
            }
        }
        Ok(self.changed(&common.shared))
    }

    /// The command that was under way, if it is no more, and whether it was done.
    fn changed(&mut self, shared: &Shared) -> Option<(Chain, bool)> {
        let change = self.changing.as_mut()?;
        if !shared.settled()? && !change.failed {
            change.failed = true;
            shared.want(change.before);
            shared.settled()?;
        }
        self.changing.take().map(|change| (change.chain, !change.failed))
    }
}

/// The command in these bytes: class, number, argument.
fn parse(bytes: &[u8], features: u64) -> Command {
    match *bytes {
        [MQ, PAIRS_SET, low, high, ..] if has(features, VIRTIO_NET_F_MQ) => {
            Command::Pairs(u16::from_le_bytes([low, high]))
        }
        [OFFLOADS, OFFLOADS_SET, a, b, c, d, e, f, g, h]
            if has(features, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) =>
        {
            Command::Offloads(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
        }
        _ => Command::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_known_if_their_feature_was_agreed_on() {
        let all = 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
        assert_eq!(parse(&[4, 0, 2, 1], all), Command::Pairs(0x102));
        assert_eq!(parse(&[4, 0, 2, 1, 9], all), Command::Pairs(0x102));
        assert_eq!(parse(&[5, 0, 1, 2, 0, 0, 0, 0, 0, 0], all), Command::Offloads(0x201));
        for bytes in [&[4, 0, 2][..], &[4, 1, 2, 1], &[5, 0, 1], &[5, 1, 1, 2, 0, 0, 0, 0, 0, 0], &[0, 0, 1]]
        {
            assert_eq!(parse(bytes, all), Command::Unknown, "{bytes:?}");
        }
        assert_eq!(parse(&[4, 0, 2, 1], 0), Command::Unknown);
        assert_eq!(parse(&[5, 0, 1, 2, 0, 0, 0, 0, 0, 0], 0), Command::Unknown);
    }
}
