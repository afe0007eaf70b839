//! Field compression (HPACK), RFC 7541.
//!
//! Decoding supports everything that a peer may use. Encoding adds to the dynamic table what most
//! messages repeat, and sends all else as literals.

mod decoder;
mod dynamic_table;
mod encoder;
mod huffman;
mod known_names;
mod static_table;

pub use self::{
    decoder::{FieldList, HpackDecoder, HpackError, SizeLimits},
    encoder::HpackEncoder,
};

/// Added to the bytes of a field for its size, RFC 7541 section 4.1 and RFC 9113 section 6.5.2.
pub const FIELD_OVERHEAD: usize = 32;

/// Malformed integer, string or index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a malformed integer, string or index")]
struct MalformedError;
