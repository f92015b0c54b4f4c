//! Packed clusters.

use std::io::{self, Read};

use super::header::Packing;

/// The largest window that a zstd frame may ask for, as a power of two: the largest cluster.
const ZSTD_WINDOW: u32 = 21;

/// Unpack `packed`, which may have more behind it, into the whole of `cluster`.
///
/// # Errors
/// If it is damaged or holds less.
pub(super) fn unpack(packing: Packing, packed: &[u8], cluster: &mut [u8]) -> io::Result<()> {
    match packing {
        Packing::Deflate => {
            let mut inflate = flate2::Decompress::new(false);
            let flush = flate2::FlushDecompress::Finish;
            // Data behind the stream is padding.
            inflate.decompress(packed, cluster, flush).map_err(io::Error::other)?;
            if inflate.total_out() < cluster.len() as u64 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a packed cluster is too short"));
            }
            Ok(())
        }
        Packing::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?.single_frame();
            decoder.window_log_max(ZSTD_WINDOW)?;
            decoder.read_exact(cluster)
        }
    }
}
