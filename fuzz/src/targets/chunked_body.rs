//! A chunked body: any split of the input must decode to the same, and nothing may panic.

use balancer::http1::body::{Decoder, Step};

/// Body, trailers and bytes used; or that it is malformed (`Some`) or not complete (`None`).
type Decoded = Result<(Vec<u8>, Vec<u8>, usize), Option<&'static str>>;

fn decode(input: &[u8], piece: usize) -> Decoded {
    let (mut decoder, mut body) = (Decoder::chunked(), Vec::new());
    let (mut at, mut end) = (0, piece.min(input.len()));
    loop {
        match decoder
            .step(&input[at..end])
            .map_err(|error| Some(error.0))?
        {
            Step::Data(count) => {
                body.extend_from_slice(&input[at..at + count]);
                at += count;
            }
            Step::Skip(count) => at += count,
            Step::More if end == input.len() => return Err(None),
            Step::More => end = (end + piece).min(input.len()),
            Step::End => return Ok((body, decoder.trailers().to_vec(), at)),
        }
    }
}

/// Decodes `data` whole and in pieces of several sizes.
pub fn run(data: &[u8]) {
    let whole = decode(data, data.len().max(1));
    for piece in [1, 2, 7, 64] {
        assert_eq!(decode(data, piece), whole, "pieces of {piece}");
    }
}
