//! KVM, devices and threads joined into a machine.
