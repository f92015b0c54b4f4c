//! Bare-metal guests under `skiff run`: what the machine and its devices do, in milliseconds, on any `/dev/kvm`.
//! The guests are in `tests/guests`; what each test of theirs looks at is said there.

mod balloon;
mod block;
mod board;
mod console;
mod ends;
mod folder;
mod hostile;
mod interrupts;
mod kills;
mod net;
mod snapshots;
mod vsock;

/// One test for each transport, from a function that takes it.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod pci {
            $(#[test]
            fn $name() {
                super::$name(skiff_tests::machine::Transport::Pci);
            })+
        }
        mod mmio {
            $(#[test]
            fn $name() {
                super::$name(skiff_tests::machine::Transport::Mmio);
            })+
        }
    };
}
pub(crate) use on_both;
