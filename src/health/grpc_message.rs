//! The two messages of a grpc check: `HealthCheckRequest` is written, `HealthCheckResponse` is read, each behind the prefix
//! that gRPC puts before a message.
//!
//! Pure. No library: that is one field each, and what comes from a backend is read strictly, with a bound.

use std::fmt;

/// Bytes before a message: whether it is compressed, and its length.
pub const PREFIX_BYTES: usize = 5;
/// Longest message that is read. One field takes two bytes; the rest is for fields that a later version may add.
pub const MAX_MESSAGE_BYTES: usize = 512;

/// `HealthCheckResponse.ServingStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServingStatus {
    /// Nothing is known; also when the field is not there.
    Unknown,
    /// The only good one.
    Serving,
    /// Answers calls, but should not get any.
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

/// Why bytes are no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GrpcMessageError {
    /// There is not one byte.
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
    /// Not what protocol buffers look like.
    #[error("malformed")]
    Malformed,
}

/// The body of a call that asks for `service`: `string service = 1`, which is left out if empty.
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

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Reads the whole body of an answer: `ServingStatus status = 1`. Of several the last counts, and other fields are skipped,
/// as everywhere in protocol buffers.
pub fn decode_response(body: &[u8]) -> Result<ServingStatus, GrpcMessageError> {
    let mut message = message(body)?;
    let mut health = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let (field, kind) = (key >> 3, key & 7);
        if field == 0 || field >= 1 << 29 {
            return Err(GrpcMessageError::Malformed);
        }
        match kind {
            0 => {
                let value = varint(&mut message)?;
                if field == 1 {
                    health = value;
                }
            }
            _ if field == 1 => return Err(GrpcMessageError::Malformed),
            1 => skip(&mut message, 8)?,
            2 => {
                let length = varint(&mut message)?;
                skip(&mut message, length)?;
            }
            5 => skip(&mut message, 4)?,
            // Groups, which nobody writes any more, and what never was.
            _ => return Err(GrpcMessageError::Malformed),
        }
    }
    Ok(health.into())
}

/// Takes the prefix off.
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

/// Seven bits a byte, the lowest first, 64 in all.
fn varint(bytes: &mut &[u8]) -> Result<u64, GrpcMessageError> {
    let mut number = 0;
    for place in 0..10 {
        let (byte, rest) = bytes.split_first().ok_or(GrpcMessageError::Malformed)?;
        *bytes = rest;
        // The tenth byte has room for the last bit.
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

fn skip(bytes: &mut &[u8], count: u64) -> Result<(), GrpcMessageError> {
    let count = usize::try_from(count).map_err(|_| GrpcMessageError::Malformed)?;
    *bytes = bytes.get(count..).ok_or(GrpcMessageError::Malformed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn answers_mean_one_thing_whatever_else_is_in_them() {
        let largest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        let rows: &[(&[u8], Result<ServingStatus, GrpcMessageError>)] = &[
            (&[], Ok(ServingStatus::Unknown)),
            (&[8, 0], Ok(ServingStatus::Unknown)),
            (&[8, 1], Ok(ServingStatus::Serving)),
            (&[8, 2], Ok(ServingStatus::NotServing)),
            (&[8, 3], Ok(ServingStatus::ServiceUnknown)),
            (&[8, 4], Ok(ServingStatus::Other(4))),
            (
                &[&[8], &largest[..]].concat(),
                Ok(ServingStatus::Other(u64::MAX)),
            ),
            // 2^32 + 1, which is not 1.
            (
                &[8, 0x81, 0x80, 0x80, 0x80, 0x10],
                Ok(ServingStatus::Other((1 << 32) + 1)),
            ),
            // Longer than it need be.
            (&[8, 0x81, 0x00], Ok(ServingStatus::Serving)),
            (&[0x88, 0x00, 1], Ok(ServingStatus::Serving)),
            // The last one counts.
            (&[8, 1, 8, 2], Ok(ServingStatus::NotServing)),
            (&[8, 2, 8, 1], Ok(ServingStatus::Serving)),
            // Unknown fields of each kind.
            (&[16, 9, 8, 1], Ok(ServingStatus::Serving)),
            (
                &[17, 1, 2, 3, 4, 5, 6, 7, 8, 8, 1],
                Ok(ServingStatus::Serving),
            ),
            (&[8, 1, 18, 2, b'h', b'i'], Ok(ServingStatus::Serving)),
            (&[8, 1, 18, 0], Ok(ServingStatus::Serving)),
            (&[21, 1, 2, 3, 4, 8, 1], Ok(ServingStatus::Serving)),
            (
                &[0xf8, 0xff, 0xff, 0xff, 0x0f, 7, 8, 1],
                Ok(ServingStatus::Serving),
            ),
            // Field 0, one above the largest, groups, kinds that never were.
            (&[0, 1], Err(GrpcMessageError::Malformed)),
            (
                &[0x80, 0x80, 0x80, 0x80, 0x10, 1],
                Err(GrpcMessageError::Malformed),
            ),
            (&[19, 20, 8, 1], Err(GrpcMessageError::Malformed)),
            (&[22, 8, 1], Err(GrpcMessageError::Malformed)),
            // The field as another kind.
            (&[10, 1, 1], Err(GrpcMessageError::Malformed)),
            (&[13, 1, 0, 0, 0], Err(GrpcMessageError::Malformed)),
            // Cut, or with a length beyond the end.
            (&[8], Err(GrpcMessageError::Malformed)),
            (&[8, 0x81], Err(GrpcMessageError::Malformed)),
            (&[8, 1, 17, 1, 2, 3], Err(GrpcMessageError::Malformed)),
            (&[8, 1, 18, 3, b'h', b'i'], Err(GrpcMessageError::Malformed)),
            (
                &[&[8, 1, 18], &largest[..]].concat(),
                Err(GrpcMessageError::Malformed),
            ),
            // More than 64 bits.
            (
                &[8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
                Err(GrpcMessageError::Malformed),
            ),
            (
                &[
                    8, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0,
                ],
                Err(GrpcMessageError::Malformed),
            ),
        ];
        for (message, wanted) in rows {
            assert_eq!(decode_response(&framed(message)), *wanted, "{message:?}");
        }
    }

    #[test]
    fn what_is_not_one_whole_plain_message_is_refused() {
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
