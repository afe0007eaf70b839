//! The two messages of a grpc check: `HealthCheckRequest` is encoded, `HealthCheckResponse`
//! decoded, each behind the prefix of a gRPC message.
//!
//! Pure. Without a library, because each message has one field, and because the bytes of a backend
//! must be decoded strictly and with a bound.

use std::fmt;

/// Length of the prefix of a message: one byte for compression, four for the length.
pub const PREFIX_BYTES: usize = 5;
/// Maximum length of a message that is decoded. The known field takes two bytes; the others are for
/// fields that a later version may add.
pub const MAX_MESSAGE_BYTES: usize = 512;

/// `HealthCheckResponse.ServingStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServingStatus {
    /// Nothing is known; also the value of a missing field.
    Unknown,
    /// The only good status.
    Serving,
    /// Responds to calls, but should not get any.
    NotServing,
    /// The service is not known.
    ServiceUnknown,
    /// A number without a name.
    Other(u64),
}

impl From<u64> for ServingStatus {
    fn from(number: u64) -> Self {
        match number {
            0 => Self::Unknown,
            1 => Self::Serving,
            2 => Self::NotServing,
            3 => Self::ServiceUnknown,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for ServingStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("UNKNOWN"),
            Self::Serving => f.write_str("SERVING"),
            Self::NotServing => f.write_str("NOT_SERVING"),
            Self::ServiceUnknown => f.write_str("SERVICE_UNKNOWN"),
            Self::Other(number) => write!(f, "serving status {number}, which has no name"),
        }
    }
}

/// Cause of a response that is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GrpcMessageError {
    /// The body is empty.
    #[error("there is none")]
    Missing,
    /// The flag of the prefix is 1; no compression was offered.
    #[error("compressed")]
    Compressed,
    /// The flag of the prefix is neither 0 nor 1.
    #[error("the prefix is damaged")]
    Prefix,
    /// Longer than [`MAX_MESSAGE_BYTES`].
    #[error("too long")]
    TooLong,
    /// Shorter than the prefix says.
    #[error("truncated")]
    Truncated,
    /// Something follows the first message.
    #[error("more than one")]
    Another,
    /// Not a valid protocol buffer.
    #[error("malformed")]
    Malformed,
}

/// Encodes the body of a call for `service`: `string service = 1`, omitted if empty as proto3 does.
pub fn encode_request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(1 << 3 | 2);
        put_varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    body
}

/// Appends a varint: seven bits per byte, the lowest first.
fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Decodes the whole body of a response: `ServingStatus status = 1`. Of several fields the last one
/// counts, and unknown fields are skipped, as protocol buffers require.
pub fn decode_response(body: &[u8]) -> Result<ServingStatus, GrpcMessageError> {
    let mut message = message(body)?;
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let (field, kind) = (key >> 3, key & 7);
        // Field numbers are 1 to 2^29 - 1.
        if field == 0 || field >= 1 << 29 {
            return Err(GrpcMessageError::Malformed);
        }
        match kind {
            // Varint.
            0 => {
                let value = varint(&mut message)?;
                if field == 1 {
                    status = value;
                }
            }
            // The status as another type: a guess would be worse than a failed check.
            _ if field == 1 => return Err(GrpcMessageError::Malformed),
            // 64 bits.
            1 => skip(&mut message, 8)?,
            // Bytes with their length before them.
            2 => {
                let length = varint(&mut message)?;
                skip(&mut message, length)?;
            }
            // 32 bits.
            5 => skip(&mut message, 4)?,
            // 3 and 4 are groups, which are obsolete; 6 and 7 were never defined.
            _ => return Err(GrpcMessageError::Malformed),
        }
    }
    Ok(status.into())
}

/// Removes the prefix and checks that exactly one plain message follows.
fn message(body: &[u8]) -> Result<&[u8], GrpcMessageError> {
    match body.first() {
        None => return Err(GrpcMessageError::Missing),
        Some(0) => {}
        Some(1) => return Err(GrpcMessageError::Compressed),
        Some(_) => return Err(GrpcMessageError::Prefix),
    }
    let Some(([_, length @ ..], message)) = body.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(GrpcMessageError::Truncated);
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_MESSAGE_BYTES {
        return Err(GrpcMessageError::TooLong);
    }
    match message.len().cmp(&length) {
        std::cmp::Ordering::Less => Err(GrpcMessageError::Truncated),
        std::cmp::Ordering::Equal => Ok(message),
        std::cmp::Ordering::Greater => Err(GrpcMessageError::Another),
    }
}

/// Decodes a varint of at most 64 bits.
fn varint(bytes: &mut &[u8]) -> Result<u64, GrpcMessageError> {
    let mut number = 0;
    for place in 0..10 {
        let (byte, after) = bytes.split_first().ok_or(GrpcMessageError::Malformed)?;
        *bytes = after;
        // Nine bytes hold 63 bits: the tenth can add one.
        if place == 9 && *byte > 1 {
            break;
        }
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(GrpcMessageError::Malformed)
}

/// Skips `count` bytes.
fn skip(bytes: &mut &[u8], count: u64) -> Result<(), GrpcMessageError> {
    let count = usize::try_from(count).map_err(|_| GrpcMessageError::Malformed)?;
    *bytes = bytes.get(count..).ok_or(GrpcMessageError::Malformed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGEST_VARINT: [u8; 10] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];

    /// `message` behind its prefix.
    fn framed(message: &[u8]) -> Vec<u8> {
        let mut body = vec![0];
        body.extend((message.len() as u32).to_be_bytes());
        body.extend(message);
        body
    }

    #[test]
    fn requests_are_written_as_protocol_buffers_are() {
        assert_eq!(encode_request(""), [0, 0, 0, 0, 0]);
        assert_eq!(encode_request("a.B"), *b"\0\0\0\0\x05\x0a\x03a.B");
        let long = "s".repeat(200);
        let body = encode_request(&long);
        assert_eq!(body[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 0x01]);
        assert_eq!(body[8..], *long.as_bytes());
    }

    #[test]
    fn known_and_unknown_fields_give_one_status() {
        let largest = LARGEST_VARINT;
        let cases: &[(&[u8], ServingStatus)] = &[
            (&[], ServingStatus::Unknown),
            (&[8, 0], ServingStatus::Unknown),
            (&[8, 1], ServingStatus::Serving),
            (&[8, 2], ServingStatus::NotServing),
            (&[8, 3], ServingStatus::ServiceUnknown),
            (&[8, 4], ServingStatus::Other(4)),
            (
                &[&[8], &largest[..]].concat(),
                ServingStatus::Other(u64::MAX),
            ),
            // 2^32 + 1, which is not 1.
            (
                &[8, 0x81, 0x80, 0x80, 0x80, 0x10],
                ServingStatus::Other((1 << 32) + 1),
            ),
            // Longer than needed.
            (&[8, 0x81, 0x00], ServingStatus::Serving),
            (&[0x88, 0x00, 1], ServingStatus::Serving),
            // The last one counts.
            (&[8, 1, 8, 2], ServingStatus::NotServing),
            (&[8, 2, 8, 1], ServingStatus::Serving),
            // Unknown fields of each type.
            (&[16, 9, 8, 1], ServingStatus::Serving),
            (&[17, 1, 2, 3, 4, 5, 6, 7, 8, 8, 1], ServingStatus::Serving),
            (&[8, 1, 18, 2, b'h', b'i'], ServingStatus::Serving),
            (&[8, 1, 18, 0], ServingStatus::Serving),
            (&[21, 1, 2, 3, 4, 8, 1], ServingStatus::Serving),
            (
                &[0xf8, 0xff, 0xff, 0xff, 0x0f, 7, 8, 1],
                ServingStatus::Serving,
            ),
        ];
        for (message, status) in cases {
            assert_eq!(
                decode_response(&framed(message)),
                Ok(*status),
                "{message:?}"
            );
        }
    }

    #[test]
    fn a_message_that_is_no_protocol_buffer_is_malformed() {
        let largest = LARGEST_VARINT;
        let cases: &[&[u8]] = &[
            // Field 0, one above the largest, groups, undefined types.
            &[0, 1],
            &[0x80, 0x80, 0x80, 0x80, 0x10, 1],
            &[19, 20, 8, 1],
            &[22, 8, 1],
            // The field as another type.
            &[10, 1, 1],
            &[13, 1, 0, 0, 0],
            // Cut, or with a length beyond the end.
            &[8],
            &[8, 0x81],
            &[8, 1, 17, 1, 2, 3],
            &[8, 1, 18, 3, b'h', b'i'],
            &[&[8, 1, 18], &largest[..]].concat(),
            // More than 64 bits.
            &[8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
            &[
                8, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0,
            ],
        ];
        for message in cases {
            let result = decode_response(&framed(message));
            assert_eq!(result, Err(GrpcMessageError::Malformed), "{message:?}");
        }
    }

    #[test]
    fn only_one_whole_plain_message_is_accepted() {
        let serving = framed(&[8, 1]);
        for end in 1..serving.len() {
            assert_eq!(
                decode_response(&serving[..end]),
                Err(GrpcMessageError::Truncated),
                "{end}"
            );
        }
        assert_eq!(decode_response(&[]), Err(GrpcMessageError::Missing));
        assert_eq!(
            decode_response(&[1, 0, 0, 0, 2, 8, 1]),
            Err(GrpcMessageError::Compressed)
        );
        assert_eq!(
            decode_response(&[2, 0, 0, 0, 2, 8, 1]),
            Err(GrpcMessageError::Prefix)
        );
        assert_eq!(decode_response(b"<html>"), Err(GrpcMessageError::Prefix));
        assert_eq!(
            decode_response(&serving.repeat(2)),
            Err(GrpcMessageError::Another)
        );
        assert_eq!(
            decode_response(&[0, 0xff, 0xff, 0xff, 0xff]),
            Err(GrpcMessageError::TooLong)
        );
        let long = |length: usize| [vec![8, 1, 18], vec![0xfb, 0x03], vec![b'x'; length]].concat();
        assert_eq!(
            decode_response(&framed(&long(507))),
            Ok(ServingStatus::Serving)
        );
        assert_eq!(
            decode_response(&framed(&long(508))),
            Err(GrpcMessageError::TooLong)
        );
    }
}
