//! virtio-balloon: memory that the guest gives back (virtio 1.2, 5.5).
