//! Huffman code of strings, RFC 7541 section 5.2 and appendix B.
//!
//! The code is canonical: codes follow each other by length and then by symbol, so their lengths
//! define it. The tables are computed at compile time.

use super::MalformedError;

/// Code length by symbol in bits; the last one is EOS, which is never sent.
const CODE_LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];
/// Longest code in bits.
const MAX_CODE_BITS: usize = 30;
const END_OF_STRING: u16 = 256;

/// Lookup tables of the code.
struct HuffmanCode {
    /// Symbols in the order of their codes.
    symbols: [u16; 257],
    /// By length: first code, code after the last, and index of the first in `symbols`.
    lengths: [(u32, u32, u16); MAX_CODE_BITS + 1],
    /// By the next eight bits: symbol and length; length 0 if the code is longer.
    short: [(u8, u8); 256],
}

static HUFFMAN_CODE: HuffmanCode = build();

#[expect(
    clippy::indexing_slicing,
    reason = "run by the compiler, which would stop at a wrong index"
)]
const fn build() -> HuffmanCode {
    let mut code = HuffmanCode {
        symbols: [0; 257],
        lengths: [(0, 0, 0); MAX_CODE_BITS + 1],
        short: [(0, 0); 256],
    };
    let (mut next, mut place, mut length) = (0_u32, 0_usize, 1_usize);
    while length <= MAX_CODE_BITS {
        next <<= 1;
        let (first, first_place) = (next, place as u16);
        let mut symbol = 0;
        while symbol < CODE_LENGTHS.len() {
            if CODE_LENGTHS[symbol] as usize == length {
                code.symbols[place] = symbol as u16;
                if length <= 8 {
                    let mut more = 0;
                    while more < 1 << (8 - length) {
                        code.short[((next as usize) << (8 - length)) + more] =
                            (symbol as u8, length as u8);
                        more += 1;
                    }
                }
                next += 1;
                place += 1;
            }
            symbol += 1;
        }
        code.lengths[length] = (first, next, first_place);
        length += 1;
    }
    code
}

impl HuffmanCode {
    /// Returns the symbol of the code at the left of `window`, and its length.
    #[inline]
    fn find(&self, window: u64) -> (u16, u32) {
        match self.short.get((window >> 56) as usize) {
            Some((symbol, length)) if *length > 0 => (u16::from(*symbol), u32::from(*length)),
            _ => self.find_long(window),
        }
    }

    fn find_long(&self, window: u64) -> (u16, u32) {
        for (length, (first, end, place)) in (0_u32..).zip(&self.lengths).skip(9) {
            let code = (window >> (64 - length)) as u32;
            if code < *end {
                let place = usize::from(*place) + code.saturating_sub(*first) as usize;
                debug_assert!(
                    place < self.symbols.len(),
                    "a code below the end is a symbol's"
                );
                return (
                    self.symbols.get(place).copied().unwrap_or(END_OF_STRING),
                    length,
                );
            }
        }
        (END_OF_STRING, MAX_CODE_BITS as u32)
    }
}

/// Decodes `input` and appends it to `out`.
pub(super) fn decode(mut input: &[u8], out: &mut Vec<u8>) -> Result<(), MalformedError> {
    // The next bits, left-aligned.
    let (mut bits, mut count) = (0_u64, 0_u32);
    loop {
        while count < 56
            && let [byte, rest @ ..] = input
        {
            bits |= u64::from(*byte) << (56 - count);
            count += 8;
            input = rest;
        }
        if count == 0 {
            return Ok(());
        }
        // The end of the last byte is padded with ones, the prefix of EOS. Longer or other padding
        // is malformed (section 5.2).
        let window = bits | u64::MAX >> count;
        let (symbol, length) = HUFFMAN_CODE.find(window);
        if length > count {
            let is_padding = count < 8 && window == u64::MAX;
            return if is_padding {
                Ok(())
            } else {
                Err(MalformedError)
            };
        }
        out.push(u8::try_from(symbol).map_err(|_| MalformedError)?);
        bits <<= length;
        count -= length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Random;

    fn decoded(input: &[u8]) -> Result<Vec<u8>, MalformedError> {
        let mut out = Vec::new();
        decode(input, &mut out).map(|()| out)
    }

    fn encode(text: &[u8], out: &mut Vec<u8>) {
        let (mut bits, mut count) = (0_u64, 0_u32);
        for byte in text {
            let (code, length) = code_of(u16::from(*byte));
            bits = bits << length | u64::from(code);
            count += u32::from(length);
            while count >= 8 {
                count -= 8;
                out.push((bits >> count) as u8);
            }
        }
        if count > 0 {
            let ones = u64::MAX >> (56 + count);
            out.push((bits << (8 - count) | ones) as u8);
        }
    }

    fn code_of(symbol: u16) -> (u32, u8) {
        let length = CODE_LENGTHS[usize::from(symbol)];
        let (first, _, place) = HUFFMAN_CODE.lengths[usize::from(length)];
        let same = &HUFFMAN_CODE.symbols[usize::from(place)..];
        let after = same.iter().position(|own| *own == symbol).unwrap();
        (first + after as u32, length)
    }

    #[test]
    fn the_code_is_that_of_the_rfc() {
        // RFC 7541 appendix B.
        for (symbol, code) in [
            (u16::from(b'0'), (0, 5)),
            (u16::from(b'a'), (0x3, 5)),
            (u16::from(b' '), (0x14, 6)),
            (u16::from(b'&'), (0xf8, 8)),
            (u16::from(b'!'), (0x3f8, 10)),
            (0, (0x1ff8, 13)),
            (u16::from(b'\n'), (0x3fff_fffc, 30)),
            (0xff, (0x3ff_ffee, 26)),
            (127, (0xfff_fffc, 28)),
        ] {
            assert_eq!(code_of(symbol), code, "{symbol}");
        }
        assert_eq!(code_of(END_OF_STRING), (0x3fff_ffff, 30));
    }

    #[test]
    fn every_text_comes_back() {
        let mut random = Random::seeded(7541);
        for round in 0..2_000 {
            let most = random.below(if round % 2 == 0 { 256 } else { 128 }) + 1;
            let text: Vec<u8> = (0..random.below(40))
                .map(|_| random.below(most) as u8)
                .collect();
            let mut code = Vec::new();
            encode(&text, &mut code);
            assert_eq!(decoded(&code).unwrap(), text);
        }
    }

    #[test]
    fn padding_is_less_than_a_byte_of_ones() {
        // RFC 7541 section 5.2.
        assert_eq!(decoded(&[0b0001_1111]).unwrap(), b"a");
        assert!(decoded(&[0b0001_1110]).is_err(), "not of ones");
        assert!(decoded(&[0b0001_1111, 0xff]).is_err(), "a whole byte");
        assert!(decoded(&[0xff]).is_err());
        assert!(decoded(&[0xff; 4]).is_err(), "the end symbol");
        assert!(decoded(&[0xff, 0xff, 0xff, 0xfc]).is_err());
        assert_eq!(decoded(&[]).unwrap(), b"");
    }
}
