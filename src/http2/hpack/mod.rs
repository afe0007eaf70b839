//! Field compression (HPACK), RFC 7541.
//!
//! Decoding supports everything that a peer may use. Encoding uses no dynamic table, only the
//! static one and literals: that costs some bytes on the wire, but neither memory nor state per
//! connection.

mod decoder;
mod dynamic_table;
mod encoder;
mod huffman;
mod static_table;

pub use self::{
    decoder::{FieldList, HpackDecoder, HpackError, SizeLimits},
    encoder::{disable_dynamic_table, field, status},
};

/// Added to the bytes of a field for its size, RFC 7541 section 4.1 and RFC 9113 section 6.5.2.
pub const FIELD_OVERHEAD: usize = 32;

/// Malformed integer, string or index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a malformed integer, string or index")]
struct MalformedError;
