//! virtio-vsock: stream sockets between guest and host (virtio 1.2, 5.10).
