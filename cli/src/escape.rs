//! The keys that are for skiff and not for the guest, as a pure state machine over the bytes typed.
//!
//! ```text
//!            Ctrl-]                    q  ► Leave
//! Passing ──────────► Escaped ───────  d  ► Detach
//!    ▲  │                    │        p  ► PressPower
//!    ▲  │ else: to the guest  │        ?  ► Help
//!    │  └──┐                  │   Ctrl-]  ► one Ctrl-] to the guest
//!    └─────┴── any key ◄──────┘     else  ► Help; nothing to the guest
//! ```

/// Ctrl-], as telnet and virsh have it.
pub const ESCAPE: u8 = 0x1d;

/// What the keys are, in one line, for whoever has started the VM.
pub const HELP: &str =
    "Ctrl-] q ends the VM, Ctrl-] d detaches, Ctrl-] p presses its power button, Ctrl-] Ctrl-] types Ctrl-]";

/// And for whoever has joined it: the VM is not theirs to end.
pub const VIEWER_HELP: &str =
    "Ctrl-] d or Ctrl-] q detaches, Ctrl-] p presses the power button, Ctrl-] Ctrl-] types Ctrl-]";

/// What the user wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// These bytes are for the guest.
    Guest(Vec<u8>),
    /// End the VM.
    Leave,
    /// Leave the VM alone.
    Detach,
    /// Press the VM's power button.
    PressPower,
    /// Show [`HELP`].
    Help,
}

/// Where in an escape sequence the typing is.
#[derive(Debug, Default)]
pub struct Escape {
    escaped: bool,
}

impl Escape {
    /// What `bytes` mean, in order, after all that came before.
    pub fn keys(&mut self, bytes: &[u8]) -> Vec<Key> {
        let mut keys = Vec::new();
        let mut guest = Vec::new();
        for &byte in bytes {
            let key = match (std::mem::take(&mut self.escaped), byte) {
                (false, ESCAPE) => {
                    self.escaped = true;
                    continue;
                }
                (false, _) | (true, ESCAPE) => {
                    guest.push(byte);
                    continue;
                }
                (true, b'q' | b'Q') => Key::Leave,
                (true, b'd' | b'D') => Key::Detach,
                (true, b'p' | b'P') => Key::PressPower,
                (true, _) => Key::Help,
            };
            if !guest.is_empty() {
                keys.push(Key::Guest(std::mem::take(&mut guest)));
            }
            keys.push(key);
        }
        if !guest.is_empty() {
            keys.push(Key::Guest(guest));
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(chunks: &[&[u8]]) -> Vec<Key> {
        let mut escape = Escape::default();
        chunks.iter().flat_map(|chunk| escape.keys(chunk)).collect()
    }

    #[test]
    fn everything_else_is_for_the_guest() {
        let all: Vec<u8> = (0..=255).filter(|byte| *byte != ESCAPE).collect();
        assert_eq!(keys(&[&all]), [Key::Guest(all.clone())]);
        assert_eq!(keys(&[b""]), []);
    }

    #[test]
    fn the_escape_may_be_split_over_reads() {
        assert_eq!(keys(&[b"\x1dq"]), [Key::Leave]);
        assert_eq!(keys(&[b"\x1d", b"", b"q"]), [Key::Leave]);
        assert_eq!(keys(&[b"\x1d", b"D"]), [Key::Detach]);
        assert_eq!(
            keys(&[b"ab\x1d", b"pcd"]),
            [Key::Guest(b"ab".into()), Key::PressPower, Key::Guest(b"cd".into())]
        );
    }

    #[test]
    fn a_doubled_escape_is_typed_once() {
        assert_eq!(keys(&[b"a\x1d\x1db"]), [Key::Guest(b"a\x1db".into())]);
        assert_eq!(keys(&[b"\x1d\x1d\x1dq"]), [Key::Guest(b"\x1d".into()), Key::Leave]);
    }

    #[test]
    fn a_wrong_key_gets_help_and_is_not_typed() {
        assert_eq!(keys(&[b"\x1dxy"]), [Key::Help, Key::Guest(b"y".into())]);
        assert_eq!(keys(&[b"\x1d?"]), [Key::Help]);
    }
}
