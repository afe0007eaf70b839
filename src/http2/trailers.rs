//! Reads trailers from their field block, RFC 9113 section 8.1.

use super::{fields::checked_end_to_end, hpack::FieldList};
use crate::http::{
    message::Trailers,
    rules::{HeadError, HeadLimits, is_allowed_in_trailers},
};

/// Bytes that HTTP/1 adds to name and value of a field, and at the end of the section.
const FIELD_LINE_BYTES: usize = b": \r\n".len();
const END_BYTES: usize = b"\r\n".len();

/// Cause for which trailers are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrailersError {
    /// A field is malformed, or has no place in trailers of HTTP/2.
    #[error("{0}")]
    Malformed(&'static str),
    /// They exceed the limits; they may be valid.
    #[error("a trailer section that is too large")]
    TooLarge,
}

impl From<HeadError> for TrailersError {
    fn from(error: HeadError) -> Self {
        Self::Malformed(error.detail)
    }
}

/// Returns the trailers in `fields` that may be forwarded. `limits` are those of HTTP/1: of all
/// fields, in the form that HTTP/1 gives them.
///
/// # Errors
/// The whole section is refused.
pub fn read(fields: &FieldList, limits: HeadLimits) -> Result<Trailers, TrailersError> {
    if !fields.is_whole() {
        return Err(TrailersError::TooLarge);
    }
    let (mut trailers, mut bytes) = (Trailers::new(), END_BYTES);
    for (name, value) in fields.iter() {
        let (_, value) = checked_end_to_end(name, value)?;
        bytes += name.len() + value.len() + FIELD_LINE_BYTES;
        if is_allowed_in_trailers(name) {
            trailers.push(name, value);
        }
    }
    if fields.len() > limits.fields || bytes > limits.bytes {
        return Err(TrailersError::TooLarge);
    }
    Ok(trailers)
}
