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

#[cfg(test)]
mod tests {
    use super::{super::golden_tests::field_list, *};

    fn read(fields: &[(&str, &str)]) -> Result<Vec<String>, TrailersError> {
        const LIMITS: HeadLimits = HeadLimits {
            fields: 3,
            bytes: 100,
        };
        let trailers = super::read(&field_list(fields, 1 << 10), LIMITS)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let fields = trailers.iter();
        Ok(fields
            .map(|(name, value)| format!("{}={}", text(name), text(value)))
            .collect())
    }

    #[test]
    fn trailers_are_the_fields_that_may_be_among_them() {
        let fields = [("grpc-status", " 0 "), ("content-length", "5"), ("x-a", "")];
        assert_eq!(read(&fields).unwrap(), ["grpc-status=0", "x-a="]);
        assert_eq!(read(&[]).unwrap(), [""; 0]);
    }

    #[test]
    fn each_violation_of_the_rfc_is_named() {
        for (name, value, detail) in [
            (
                ":path",
                "/",
                "a pseudo-header field that is unknown or not first",
            ),
            ("A", "b", "an upper-case letter in a field name"),
            ("", "b", "an empty field name"),
            ("a", "\0", "a control byte in a field value"),
            ("connection", "b", "a connection-specific field"),
            ("te", "trailers", "a connection-specific field"),
        ] {
            let found = read(&[("x-a", "b"), (name, value)]);
            assert_eq!(found, Err(TrailersError::Malformed(detail)), "{name}");
        }
    }

    #[test]
    fn fields_that_are_dropped_count_for_the_limits() {
        let long = "b".repeat(91);
        for (fields, is_good) in [
            (vec![("host", "b"); 3], true),
            (vec![("host", "b"); 4], false),
            // With four bytes of the line and two behind the last one.
            (vec![("x-a", &*long)], true),
            (vec![("host", &*long)], false),
        ] {
            let found = read(&fields).map(drop);
            let expected = Err(TrailersError::TooLarge);
            assert_eq!(found, if is_good { Ok(()) } else { expected }, "{fields:?}");
        }
    }
}
