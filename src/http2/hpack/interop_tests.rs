//! Encoder against the decoder of the h2 crate, over a connection.

use h2::server;
use hyper::http::{Request, Response};
use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};

use super::{FieldPairs, random_head};
use crate::{
    base::rng::Random,
    http2::{
        frame::{self, CLIENT_PREFACE},
        hpack::HpackEncoder,
    },
};

const CONNECTIONS: u64 = 20;
const REQUESTS: u32 = 100;
/// More than all bytes of one direction: the test never waits for a reader.
const PIPE_BYTES: usize = 4 << 20;

/// Fields of a random request, with those of its head first.
fn random_request(random: &mut Random) -> FieldPairs {
    let method = ["GET", "PUT", "DELETE"][random.below(3)];
    let host = ["a.example", "b.example:8443"][random.below(2)];
    let path = format!("/{}", random.below(100));
    let head = [
        (":method", method),
        (":scheme", "https"),
        (":authority", host),
        (":path", &path),
    ];
    let regular = random_head(random).into_iter();
    let regular = regular.filter(|(name, _)| !name.starts_with(b":"));
    let head = head.map(|(name, value)| (name.into(), value.into()));
    head.into_iter().chain(regular).collect()
}

/// Fields of `request` as they were sent, sorted by name.
fn fields_of<T>(request: &Request<T>) -> FieldPairs {
    let uri = request.uri();
    let head = [
        (":method", request.method().as_str()),
        (":scheme", uri.scheme_str().unwrap()),
        (":authority", uri.authority().unwrap().as_str()),
        (":path", uri.path()),
    ];
    let regular = request.headers().iter();
    let regular = regular.map(|(name, value)| (name.as_str().into(), value.as_bytes().into()));
    let head = head.map(|(name, value)| (name.into(), value.into()));
    sorted(head.into_iter().chain(regular).collect())
}

fn sorted(mut fields: FieldPairs) -> FieldPairs {
    for (name, _) in &mut fields {
        name.make_ascii_lowercase();
    }
    // Stable: the order of fields with one name has a meaning.
    fields.sort_by(|one, other| one.0.cmp(&other.0));
    fields
}

/// Sends random requests; returns their fields.
async fn send(pipe: &mut DuplexStream, random: &mut Random) -> Vec<FieldPairs> {
    let (mut out, mut sent) = (CLIENT_PREFACE.to_vec(), Vec::new());
    frame::write_settings(&mut out, &[]);
    let mut encoder = HpackEncoder::default();
    for number in 0..REQUESTS {
        match random.below(20) {
            0 => encoder.release(),
            1 => encoder.set_max_size(random.below(5_000) as u32),
            2 => encoder.set_max_size(0),
            3 => encoder.set_max_size(u32::MAX),
            _ => {}
        }
        let fields = random_request(random);
        frame::write_fields(&mut out, 2 * number + 1, true, |out| {
            encoder.begin_block(out);
            for (name, value) in &fields {
                encoder.field(out, name, value);
            }
        });
        sent.push(sorted(fields));
    }
    pipe.write_all(&out).await.unwrap();
    sent
}

#[tokio::test]
async fn another_decoder_reads_the_same_fields() {
    for seed in 0..CONNECTIONS {
        let mut random = Random::seeded(seed);
        let (mut near, far) = duplex(PIPE_BYTES);
        let sent = send(&mut near, &mut random).await;
        let mut connection = server::handshake(far).await.unwrap();
        for expected in sent {
            let (request, mut respond) = connection.accept().await.unwrap().unwrap();
            assert_eq!(fields_of(&request), expected, "connection {seed}");
            respond.send_response(Response::new(()), true).unwrap();
        }
    }
}
