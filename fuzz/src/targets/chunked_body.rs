//! Chunked body: every split of the input decodes to the same, and the proxy forwards the same
//! body.

use std::{
    future::poll_fn,
    io::{Read, Write},
    task::Poll,
};

use balancer::{
    base::rng::Random,
    http::{message::Trailers, rules::RESPONSE_LIMITS},
    http1::body::{BodyDecoder, BodyError, BodyStep},
    net::driver::end_turn,
    proxy::http::{BodyEncoding, BodyRelay, BodyRelayError, BodySink, BodySource},
};

use super::{RUNTIME, pair};

/// Body, trailers and bytes used; or an error: malformed (`Some`) or incomplete (`None`).
type DecodedBody = Result<(Vec<u8>, Trailers, usize), Option<BodyError>>;

fn decode(input: &[u8], piece: usize) -> DecodedBody {
    let (mut decoder, mut body) = (BodyDecoder::chunked(RESPONSE_LIMITS), Vec::new());
    let (mut at, mut end) = (0, piece.min(input.len()));
    loop {
        match decoder.step(&input[at..end]).map_err(Some)? {
            BodyStep::Data(count) => {
                body.extend_from_slice(&input[at..at + count]);
                at += count;
            }
            BodyStep::Skip(count) => at += count,
            BodyStep::More if end == input.len() => return Err(None),
            BodyStep::More => end = (end + piece).min(input.len()),
            BodyStep::End => return Ok((body, decoder.take_trailers(), at)),
        }
    }
}

/// Decodes `data` whole and in pieces of several sizes.
pub fn run(data: &[u8]) {
    let whole = decode(data, data.len().max(1));
    for piece in [1, 2, 7, 64] {
        assert_eq!(decode(data, piece), whole, "pieces of {piece}");
    }
    check_passed_on(data, &whole);
}

/// Lets the proxy forward `input`, which arrives in pieces that end at `cuts`, to a body with
/// `encoding`; returns the output, and the result.
fn pass_on(input: &[u8], cuts: &[usize], encoding: BodyEncoding) -> (Vec<u8>, Result<(), String>) {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let ((mut source, mut from), (mut sink, mut to)) = (pair(), pair());
            let decoder = BodyDecoder::chunked(RESPONSE_LIMITS);
            let mut relay = BodyRelay::new(Vec::new(), Vec::new(), 0, Some(decoder));
            relay.set_sink(encoding, None);
            let (mut out, mut ended) = (Vec::new(), None);
            let mut at = 0;
            for end in cuts.iter().copied().chain([input.len()]) {
                source.write_all(&input[at..end]).expect("a piece fits");
                at = end;
                if at == input.len() {
                    source.shutdown(std::net::Shutdown::Write).expect("an end");
                }
                // The driver sees new bytes in a round of its own.
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                    end_turn();
                    if ended.is_none() {
                        ended = poll_fn(|cx| {
                            let (from, to) = (BodySource::H1(&mut from), BodySink::H1(&mut to));
                            Poll::Ready(match relay.poll(cx, from, to) {
                                Poll::Ready(ended) => Some(ended),
                                Poll::Pending => None,
                            })
                        })
                        .await;
                    }
                }
                // Fails when there is nothing more.
                drop(sink.read_to_end(&mut out));
            }
            let ended = ended.expect("the relay ends with its source");
            let ended = ended.map_err(|error| match error {
                BodyRelayError::Malformed(error) => error.to_string(),
                error => format!("{error:?}"),
            });
            (out, ended)
        })
    })
}

/// Forwards `data` whole and in pieces: the output and the result are the same.
fn check_passed_on(data: &[u8], whole: &DecodedBody) {
    let mut random = Random::seeded(data.len() as u64);
    let mut cuts: Vec<usize> = (0..random.below(6))
        .map(|_| random.below(data.len() + 1))
        .collect();
    cuts.sort_unstable();
    for cuts in [&[][..], &cuts] {
        let (out, ended) = pass_on(data, cuts, BodyEncoding::Chunked);
        let again = decode(&out, out.len().max(1));
        match whole {
            Ok((body, trailers, _)) => {
                assert_eq!(ended, Ok(()));
                let wanted = (body.clone(), trailers.clone(), out.len());
                assert_eq!(again, Ok(wanted), "cut at {cuts:?}");
            }
            Err(Some(error)) => {
                assert_eq!(ended, Err(error.to_string()));
                assert_eq!(again, Err(None), "a broken body that looks whole");
            }
            Err(None) => {
                assert_eq!(ended, Err("Cut".to_owned()));
                assert_eq!(again, Err(None), "a cut body that looks whole");
            }
        }
        if let Ok((body, ..)) = whole {
            let plain = pass_on(data, cuts, BodyEncoding::Plain);
            assert_eq!(plain, (body.clone(), Ok(())));
        }
    }
}
