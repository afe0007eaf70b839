//! The memory of one exchange, reused by the next one on the same worker.

use crate::{
    http::message::{RequestHead, ResponseHead},
    proxy::timer::Timer,
};

/// Initial capacity of a buffer; most messages are smaller.
pub(super) const INITIAL_BUFFER_BYTES: usize = 16 << 10;
/// Capacity after one full read: a body of 64 KiB with its head fits.
pub(super) const GROWN_BUFFER_BYTES: usize = 80 << 10;
/// Largest capacity.
pub(super) const MAX_BUFFER_BYTES: usize = 256 << 10;
/// Capacity of a buffer that held heads and small bodies.
const MAX_HEAD_CAPACITY_BYTES: usize = 4 << 10;

/// Capacity that free buffers keep.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) enum KeptCapacity {
    /// That of exchanges with large bodies.
    Bodies,
    /// That of exchanges with heads and small bodies.
    Heads,
}

/// The buffers of an exchange.
#[derive(Debug, Default)]
pub(in crate::proxy) struct ExchangeBuffers {
    /// Request head. Its bytes may continue with the body and with pipelined requests.
    pub(super) request: RequestHead,
    /// Request id, for the backend, the client and the log.
    pub(super) request_id: String,
    /// Response head. Its bytes may continue with the body.
    pub(super) response: ResponseHead,
    /// Bytes to be written to the client.
    pub(super) client_out: Vec<u8>,
    /// Bytes to be written to the backend.
    pub(super) upload_out: Vec<u8>,
    /// Request body read from the client.
    pub(super) upload_bytes: Vec<u8>,
    /// Timer of an HTTP/2 stream, between two of them.
    pub(super) timer: Timer,
}

impl ExchangeBuffers {
    /// Forgets everything but the memory, and frees what is larger than `most`.
    pub(in crate::proxy) fn clear(&mut self, most: KeptCapacity) {
        let most = match most {
            KeptCapacity::Bodies => GROWN_BUFFER_BYTES,
            KeptCapacity::Heads => MAX_HEAD_CAPACITY_BYTES,
        };
        self.request.clear();
        self.response.clear();
        for buffer in [
            &mut self.request.bytes,
            &mut self.response.bytes,
            &mut self.client_out,
            &mut self.upload_out,
            &mut self.upload_bytes,
        ] {
            buffer.clear();
            if buffer.capacity() > most {
                *buffer = Vec::new();
            }
        }
    }

    /// Leaves only the pipelined bytes in the request's buffer: those from `next_request_at` on,
    /// or those that were read behind the body.
    pub(super) fn keep_pipelined(&mut self, next_request_at: Option<usize>) {
        let bytes = &mut self.request.bytes;
        match next_request_at {
            Some(at) if at < bytes.len() => drop(bytes.drain(..at)),
            _ => bytes.clear(),
        }
        debug_assert!(
            self.upload_bytes.is_empty() || next_request_at.is_none(),
            "the next request begins in one buffer only"
        );
        bytes.append(&mut self.upload_bytes);
    }
}
