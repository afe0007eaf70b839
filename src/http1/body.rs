//! Finds the body in a stream of bytes: by length, chunked (RFC 9112 section 7.1), or until the end
//! of the connection.
//!
//! A [`BodyDecoder`] classifies the bytes at the front of a buffer; the caller consumes them. It
//! keeps its state within a line, so any split of the input gives the same result.

use self::BodyError::{ChunkTooLong, Malformed};
use super::has_only_crlf;
use crate::http::{
    message::Trailers,
    rules::{HeadLimits, MAX_FIELDS, is_allowed_in_trailers},
};

/// Bytes of chunk extensions per chunk. In practice only attackers send any.
const MAX_EXTENSION: usize = 256;
/// Bytes of chunk extensions per body: many tiny chunks with long extensions would cost CPU and
/// bandwidth for no content (CVE-2023-39326).
const MAX_EXTENSIONS: usize = 16 << 10;

/// Kind and number of the bytes at the front of the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyStep {
    /// Bytes of the body.
    Data(usize),
    /// Bytes of framing, to be dropped.
    Skip(usize),
    /// More bytes are needed.
    More,
    /// The body is complete; what follows belongs to the next message.
    End,
}

/// Cause for which a body cannot be read; the text is logged at debug level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Malformed.
    #[error("{0}")]
    Malformed(&'static str),
    /// The chunk sizes or extensions exceed our limits; the body may be valid.
    #[error("{0}")]
    ChunkTooLong(&'static str),
    /// The trailer section exceeds its limits; the body may be valid.
    #[error("a trailer section that is too large")]
    TrailersTooLarge,
}

impl BodyError {
    /// True if the body may be valid and only exceeds a limit of ours.
    pub const fn is_own_limit(self) -> bool {
        !matches!(self, Malformed(_))
    }
}

/// Decoder of one body.
#[derive(Debug)]
pub enum BodyDecoder {
    /// By length; the bytes that are left.
    Length(u64),
    /// Chunked.
    Chunked(ChunkedDecoder),
    /// Until the end of the connection.
    UntilClose,
}

impl BodyDecoder {
    /// Creates a decoder for a chunked body; `trailers` are the limits of the trailer section.
    pub fn chunked(trailers: HeadLimits) -> Self {
        Self::Chunked(ChunkedDecoder {
            place: ChunkState::Size,
            left: 0,
            digits: 0,
            extension: 0,
            extensions: 0,
            section: Vec::new(),
            trailers: Trailers::new(),
            limits: trailers,
        })
    }

    /// Classifies the front of `input`.
    ///
    /// # Errors
    /// The body is malformed or exceeds a limit; the connection cannot be used any more.
    #[inline]
    pub fn step(&mut self, input: &[u8]) -> Result<BodyStep, BodyError> {
        match self {
            Self::Length(0) => Ok(BodyStep::End),
            Self::Length(_) | Self::UntilClose if input.is_empty() => Ok(BodyStep::More),
            Self::Length(left) => {
                let here = (*left).min(input.len() as u64);
                *left -= here;
                Ok(BodyStep::Data(here as usize))
            }
            Self::UntilClose => Ok(BodyStep::Data(input.len())),
            Self::Chunked(chunked) => chunked.step(input),
        }
    }

    /// True if the whole body was seen.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.place == ChunkState::Done,
            Self::UntilClose => false,
        }
    }

    /// True if the next bytes are content, as opposed to framing or the end.
    pub fn is_in_data(&self) -> bool {
        match self {
            Self::Length(left) => *left > 0,
            Self::Chunked(chunked) => chunked.place == ChunkState::Data,
            Self::UntilClose => true,
        }
    }

    /// Takes the trailers of a complete chunked body.
    pub fn take_trailers(&mut self) -> Trailers {
        match self {
            Self::Chunked(chunked) => std::mem::take(&mut chunked.trailers),
            Self::Length(_) | Self::UntilClose => Trailers::new(),
        }
    }
}

/// Position within the chunked coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    /// Within the digits of a chunk size.
    Size,
    /// Within the extensions after it.
    Extension,
    /// After the carriage return of the size line.
    SizeEnd,
    /// Within the data.
    Data,
    /// Before the carriage return after the data.
    DataReturn,
    /// Before the line feed after the data.
    DataEnd,
    /// Within the trailer section.
    Trailers,
    /// After the final empty line.
    Done,
}

/// Decoder of a chunked body.
#[derive(Debug)]
pub struct ChunkedDecoder {
    place: ChunkState,
    /// Size of the chunk while its digits are read, then the rest of its data.
    left: u64,
    digits: u8,
    extension: usize,
    extensions: usize,
    /// Bytes of the trailer section so far.
    section: Vec<u8>,
    /// Trailers of the complete body.
    trailers: Trailers,
    /// Limits of the trailer section.
    limits: HeadLimits,
}
impl ChunkedDecoder {
    fn step(&mut self, input: &[u8]) -> Result<BodyStep, BodyError> {
        // Data is passed in runs, without a look at single bytes.
        match self.place {
            ChunkState::Done => return Ok(BodyStep::End),
            ChunkState::Data if !input.is_empty() => {
                let here = self.left.min(input.len() as u64);
                self.left -= here;
                if self.left == 0 {
                    self.place = ChunkState::DataReturn;
                }
                return Ok(BodyStep::Data(here as usize));
            }
            _ => {}
        }
        // Framing is decoded byte by byte: it is short, and no line has to be complete.
        let mut seen = 0;
        for byte in input {
            seen += 1;
            self.framing_byte(*byte)?;
            if matches!(self.place, ChunkState::Data | ChunkState::Done) {
                break;
            }
        }
        if seen == 0 {
            Ok(BodyStep::More)
        } else {
            Ok(BodyStep::Skip(seen))
        }
    }

    /// Advances by one byte of framing. A second parser that skips what is refused here, such as a
    /// bare line feed or blanks around a size, would see another end of the body (request
    /// smuggling).
    fn framing_byte(&mut self, byte: u8) -> Result<(), BodyError> {
        self.place = match (self.place, byte) {
            (ChunkState::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => self.size_digit(byte)?,
            (ChunkState::Size, _) if self.digits == 0 => {
                return Err(Malformed("a chunk without a size"));
            }
            (ChunkState::Size, b';') => ChunkState::Extension,
            (ChunkState::Size | ChunkState::Extension, b'\r') => ChunkState::SizeEnd,
            (ChunkState::Size, _) => return Err(Malformed("a malformed chunk size")),
            (ChunkState::Extension, b'\t' | b' '..=b'~' | 0x80..) => self.extension_byte()?,
            (ChunkState::Extension, _) => {
                return Err(Malformed("a control byte in a chunk extension"));
            }
            (ChunkState::SizeEnd, b'\n') => self.size_complete(),
            (ChunkState::DataReturn, b'\r') => ChunkState::DataEnd,
            (ChunkState::DataEnd, b'\n') => ChunkState::Size,
            (ChunkState::Trailers, _) => self.trailer_byte(byte)?,
            _ => return Err(Malformed("a chunk that does not end in a line end")),
        };
        Ok(())
    }

    fn size_digit(&mut self, byte: u8) -> Result<ChunkState, BodyError> {
        debug_assert!(byte.is_ascii_hexdigit(), "checked by the caller");
        let digit = char::from(byte).to_digit(16).unwrap_or_default();
        self.digits += 1;
        // 15 digits stay far below 2^63: no arithmetic here or in a backend can wrap.
        if self.digits > 15 {
            return Err(ChunkTooLong("a chunk size that is too large"));
        }
        self.left = self.left << 4 | u64::from(digit);
        Ok(ChunkState::Size)
    }

    fn extension_byte(&mut self) -> Result<ChunkState, BodyError> {
        self.extension += 1;
        self.extensions += 1;
        if self.extension > MAX_EXTENSION || self.extensions > MAX_EXTENSIONS {
            return Err(ChunkTooLong("too many chunk extensions"));
        }
        Ok(ChunkState::Extension)
    }

    fn size_complete(&mut self) -> ChunkState {
        (self.digits, self.extension) = (0, 0);
        if self.left == 0 {
            ChunkState::Trailers
        } else {
            ChunkState::Data
        }
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<ChunkState, BodyError> {
        self.section.push(byte);
        if self.section.len() > self.limits.bytes {
            return Err(BodyError::TrailersTooLarge);
        }
        if byte != b'\n'
            || !(self.section == b"\r\n"
                || self.section.ends_with(b"\n\r\n")
                || self.section.ends_with(b"\n\n")
                || self.section == b"\n")
        {
            return Ok(ChunkState::Trailers);
        }
        self.trailers = checked_trailers(&self.section, self.limits.fields)?;
        self.section = Vec::new();
        Ok(ChunkState::Done)
    }
}

/// Returns the fields of a trailer section that may be forwarded, at most `max_fields`. RFC 9110
/// section 6.5.1 forbids those that frame, route or authorise: they would be read after the
/// decisions that depend on them.
fn checked_trailers(section: &[u8], max_fields: usize) -> Result<Trailers, BodyError> {
    if section == b"\r\n" {
        return Ok(Trailers::new());
    }
    if !has_only_crlf(section) {
        return Err(Malformed(
            "a trailer line that ends without a carriage return",
        ));
    }
    let mut slots = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let slots = slots
        .get_mut(..max_fields.min(MAX_FIELDS))
        .unwrap_or_default();
    let fields = match httparse::parse_headers(section, slots) {
        Ok(httparse::Status::Complete((_, fields))) => fields,
        Err(httparse::Error::TooManyHeaders) => return Err(BodyError::TrailersTooLarge),
        _ => return Err(Malformed("a malformed trailer section")),
    };
    let mut kept = Trailers::new();
    for field in fields
        .iter()
        .filter(|field| is_allowed_in_trailers(field.name.as_bytes()))
    {
        kept.push(field.name.as_bytes(), field.value);
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAILER_LIMITS: HeadLimits = HeadLimits {
        fields: 3,
        bytes: 200,
    };

    /// Decodes `input` in pieces: the body, the trailers, and the number of bytes consumed.
    fn decode(input: &[u8], piece: usize) -> Result<(Vec<u8>, Vec<u8>, usize), BodyError> {
        let (mut decoder, mut body, mut at, mut end) = (
            BodyDecoder::chunked(TRAILER_LIMITS),
            Vec::new(),
            0,
            piece.min(input.len()),
        );
        loop {
            match decoder.step(&input[at..end])? {
                BodyStep::Data(n) => {
                    body.extend_from_slice(&input[at..at + n]);
                    at += n;
                }
                BodyStep::Skip(n) => at += n,
                BodyStep::More if end == input.len() => return Err(Malformed("cut")),
                BodyStep::More => end = (end + piece).min(input.len()),
                BodyStep::End => {
                    let trailers = decoder.take_trailers();
                    let lines = trailers
                        .iter()
                        .map(|(name, value)| [name, b": ", value, b"\r\n"].concat());
                    return Ok((body, lines.collect::<Vec<_>>().concat(), at));
                }
            }
        }
    }

    #[test]
    fn every_split_of_a_chunked_body_gives_the_same() {
        let input = b"5;a=b\r\nhello\r\n00C\r\n wide  world\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\nGET /";
        for piece in 1..=input.len() {
            let (body, trailers, used) = decode(input, piece).unwrap();
            assert_eq!(
                (body.as_slice(), trailers.as_slice(), used),
                (
                    &b"hello wide  world"[..],
                    &b"X-Sum: 1\r\n"[..],
                    input.len() - 5
                ),
                "pieces of {piece}"
            );
        }
    }

    #[test]
    fn odd_chunks_are_refused() {
        let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(300));
        let odd = [
            "\r\n",
            ";a\r\n",
            "x\r\n",
            "0x5\r\nhello",
            "+5\r\nhello",
            "-5\r\nhello",
            " 5\r\nhello",
            "5 \r\nhello",
            "5\nhello",
            "5;a\nhello",
            "5\r\nhelloX\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhello!\r\n0",
            "1000000000000000\r\n",
            "5;\0\r\nhello",
            "0\r\nA: b\nC: d\r\n\r\n",
            "0\r\nA : b\r\n\r\n",
            "0\r\n A: b\r\n\r\n",
            "0\n\n",
            "5\r\rhello",
            "0\r\n\n",
            long.as_str(),
        ];
        for input in odd {
            for piece in [1, 3, input.len()] {
                let error = decode(input.as_bytes(), piece).expect_err(input);
                assert_ne!(error, Malformed("cut"), "{input:?}");
            }
        }
    }

    #[test]
    fn a_cut_body_never_ends() {
        let input = b"5\r\nhello\r\n0\r\nA: b\r\n\r\n";
        for end in 0..input.len() {
            assert_eq!(decode(&input[..end], 4), Err(Malformed("cut")), "{end}");
        }
    }

    #[test]
    fn trailers_that_frame_route_or_authorise_are_dropped() {
        for name in [
            "Content-Length",
            "Transfer-Encoding",
            "Transfer_Encoding",
            "Host",
            "Authorization",
            "Cookie",
            "Set-Cookie",
            "Set_Cookie",
            "X-Forwarded-For",
            "X_Forwarded_For",
            "Connection",
            "Trailer",
        ] {
            let input = format!("0\r\nX-A: 1\r\n{name}: 2\r\n\r\n");
            let (_, trailers, _) = decode(input.as_bytes(), 5).unwrap();
            assert_eq!(trailers, b"X-A: 1\r\n", "{name}");
        }
    }

    #[test]
    fn a_trailer_section_is_as_large_as_its_limits() {
        let section = |count, length| {
            let line = format!("X-A: {}\r\n", "b".repeat(length));
            format!("0\r\n{}\r\n", line.repeat(count))
        };
        for (count, length, is_good) in [
            (3, 50, true),
            (4, 1, false),
            (1, 191, true),
            (1, 192, false),
        ] {
            let decoded = decode(section(count, length).as_bytes(), 7);
            let found = decoded.map(|_| ());
            let expected = Err(BodyError::TrailersTooLarge);
            assert_eq!(
                found,
                if is_good { Ok(()) } else { expected },
                "{count} {length}"
            );
        }
    }

    #[test]
    fn extension_floods_are_bounded() {
        let flood = format!("1;{}\r\na\r\n", "x".repeat(200)).repeat(100);
        assert_eq!(
            decode(flood.as_bytes(), 1000),
            Err(ChunkTooLong("too many chunk extensions"))
        );
    }

    #[test]
    fn a_length_takes_no_byte_more() {
        let mut decoder = BodyDecoder::Length(3);
        assert_eq!(decoder.step(b"ab"), Ok(BodyStep::Data(2)));
        assert_eq!(decoder.step(b""), Ok(BodyStep::More));
        assert_eq!(decoder.step(b"cGET"), Ok(BodyStep::Data(1)));
        assert_eq!(decoder.step(b"GET"), Ok(BodyStep::End));
        assert!(decoder.is_done());
    }
}
