//! virtio-net: frames between a guest and a back end (virtio 1.2, 5.1).
