//! The compression of heads and trailers, RFC 7541.
//!
//! What comes is decoded with all that the peer may use. What goes is written without a table of its own: from the static
//! one or as literals, which costs some bytes on the wire and neither memory nor any state of the connection.

mod decoder;
mod dynamic_table;
mod encoder;
mod huffman;
mod static_table;

pub use self::{
    decoder::{FieldList, HpackDecoder, HpackError, SizeLimits},
    encoder::{begin, field, status},
};

/// What is added to a field's bytes for its size, RFC 7541 section 4.1 and RFC 9113 section 6.5.2.
pub const FIELD_OVERHEAD: usize = 32;

/// These bytes are no code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MalformedError;
