//! Field blocks of one connection: decoded fields stay within the limit, and survive our encoder.

use balancer::http2::hpack::{
    FIELD_OVERHEAD, FieldList, HpackDecoder, HpackEncoder, HpackError, SizeLimits,
};

/// Limits beyond those of any input.
const LARGE_LIMITS: SizeLimits = SizeLimits {
    kept: 1 << 20,
    decoded: 1 << 20,
};

/// Names in lower case, and values.
type FieldPairs = Vec<(Vec<u8>, Vec<u8>)>;

fn field_pairs(fields: &FieldList) -> FieldPairs {
    let all: FieldPairs = fields
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec()))
        .collect();
    assert_eq!(all.len(), fields.len());
    assert_eq!(all.is_empty(), fields.is_empty());
    let bytes: usize = all
        .iter()
        .map(|(name, value)| name.len() + value.len() + FIELD_OVERHEAD)
        .sum();
    assert_eq!(bytes, fields.size());
    all
}

/// Next block: one byte is its length, `0xff` stands for all remaining bytes.
fn block<'d>(data: &mut &'d [u8]) -> Option<&'d [u8]> {
    let (length, rest) = data.split_first()?;
    let length = match usize::from(*length) {
        0xff => rest.len(),
        length => length.min(rest.len()),
    };
    let (block, rest) = rest.split_at(length);
    *data = rest;
    Some(block)
}

/// Decodes blocks until one fails. The first byte is the limit for kept fields, in units of 64
/// bytes; four times as much is decoded.
pub fn run(data: &[u8]) {
    let Some((limit, mut data)) = data.split_first() else {
        return;
    };
    let most = 64 * usize::from(*limit);
    let limits = SizeLimits {
        kept: most,
        decoded: 4 * most,
    };
    let (mut decoder, mut unlimited) = (HpackDecoder::default(), HpackDecoder::default());
    let (mut fields, mut again) = (FieldList::default(), FieldList::default());
    let mut ours = EncodedConnection::default();
    while let Some(block) = block(&mut data) {
        let decoded = decoder.decode(block, limits, &mut fields);
        let whole = unlimited.decode(block, LARGE_LIMITS, &mut again);
        match (decoded, whole) {
            (Ok(()), Ok(())) if fields.is_whole() => {
                assert_eq!(field_pairs(&fields), field_pairs(&again))
            }
            (Ok(()), Ok(())) => {
                assert!(again.size() > most, "cut for nothing");
                assert!(field_pairs(&again).starts_with(&field_pairs(&fields)));
            }
            (Err(HpackError::TooLarge), Ok(())) => return assert!(again.size() > limits.decoded),
            (Err(HpackError::TooLarge), Err(_)) | (Err(_), Err(HpackError::Malformed)) => return,
            other => panic!("the limit changes more than the size: {other:?}"),
        }
        assert!(fields.size() <= most, "more than the limit");
        ours.check(&fields, block);
    }
}

/// Our encoder, and the decoder of its peer.
#[derive(Default)]
struct EncodedConnection {
    encoder: HpackEncoder,
    decoder: HpackDecoder,
}

impl EncodedConnection {
    /// Encodes the fields of `block` twice, and expects that they are read again. The first byte
    /// of the block may change the size of the table before, or release it.
    fn check(&mut self, fields: &FieldList, block: &[u8]) {
        match block {
            [0x20, ..] => self.encoder.release(),
            [first @ 0x21..0x3f, ..] => {
                self.encoder.set_max_size(0);
                self.encoder.set_max_size(u32::from(first - 0x21) * 150);
            }
            [0x3f, size, ..] => self.encoder.set_max_size(u32::from(*size)),
            _ => {}
        }
        for _ in 0..2 {
            let mut out = Vec::new();
            self.encoder.begin_block(&mut out);
            for (name, value) in fields.iter() {
                self.encoder.field(&mut out, name, value);
            }
            let mut again = FieldList::default();
            let decoded = self.decoder.decode(&out, LARGE_LIMITS, &mut again);
            decoded.expect("what we write is a block");
            assert_eq!(
                field_pairs(&again),
                field_pairs(fields),
                "as it was written"
            );
        }
    }
}
