//! The server behind balancer for interoperability tests: it reports requests and sends what they
//! ask.

use std::{
    fmt::Write as _,
    sync::{Arc, Barrier},
};

use ring::digest::{SHA256, digest};

use crate::harness::peer::{BackendRequest, Gate, PeerConnection, ScriptedPeer};

/// As many requests for `/together` are answered at once, and none before all of them are there.
const TOGETHER_COUNT: usize = 8;

/// State shared by all requests.
#[derive(Clone)]
struct OriginState {
    together: Arc<Barrier>,
    /// Opens when a client has given up `/endless`.
    given_up: Gate,
}

/// Starts it.
///
/// | path | answer |
/// |---|---|
/// | `/bytes/N` | N bytes, their SHA-256 as `X-Sha256` |
/// | `/chunks/N` | the same, chunked, with `X-Sha256` as a trailer |
/// | `/sha256` | the SHA-256 of the request's body; its trailers as `X-Trailers` |
/// | `/head` | the request's head |
/// | `/early` | 103 with a link, then 200 |
/// | `/together` | when eight of them are there |
/// | `/endless` | chunks without an end |
/// | `/given-up` | when `/endless` was given up |
pub(crate) fn start() -> ScriptedPeer {
    let shared = OriginState {
        together: Arc::new(Barrier::new(TOGETHER_COUNT)),
        given_up: Gate::new(),
    };
    ScriptedPeer::start(move |mut connection| while answer(&mut connection, &shared).is_some() {})
}

/// One exchange; `None` where no other can follow.
fn answer(connection: &mut PeerConnection, shared: &OriginState) -> Option<()> {
    let head = connection.head()?;
    if head.header("expect").is_some() {
        connection.send("HTTP/1.1 100 Continue\r\n\r\n");
    }
    let request = connection.whole(head)?;
    let mut parts = request.target.trim_start_matches('/').split('/');
    let (name, size) = (parts.next()?, parts.next().unwrap_or("0"));
    let size = size.parse().unwrap();
    let sent = match name {
        "bytes" => {
            let body = content(size);
            send(connection, &request, &x_sha256(&body), &body)
        }
        "chunks" => chunks(connection, &content(size)),
        "sha256" => {
            let trailers = request.trailers.trim().replace("\r\n", ", ");
            let field = format!("X-Trailers: {trailers}\r\n");
            send(connection, &request, &field, hex(&request.body).as_bytes())
        }
        "head" => send(connection, &request, "", request.head.as_bytes()),
        "early" => {
            let link = "Link: </style.css>; rel=preload\r\n";
            connection.send(format!("HTTP/1.1 103 Early Hints\r\n{link}\r\n"))
                && send(connection, &request, link, b"late")
        }
        "together" => {
            shared.together.wait();
            send(connection, &request, "", b"together")
        }
        "endless" => {
            connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            while connection.send("5\r\nmore\n\r\n") {}
            shared.given_up.open();
            false
        }
        "given-up" => {
            shared.given_up.wait();
            send(connection, &request, "", b"given up")
        }
        _ => panic!("{request:?}"),
    };
    sent.then_some(())
}

/// A response of known length; without its body for HEAD.
fn send(
    connection: &mut PeerConnection,
    request: &BackendRequest,
    fields: &str,
    body: &[u8],
) -> bool {
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{fields}\r\n");
    connection.send(head) && (request.method == "HEAD" || connection.send(body))
}

/// The body in chunks of 10,000 bytes, and its hash behind them.
fn chunks(connection: &mut PeerConnection, body: &[u8]) -> bool {
    let head = "HTTP/1.1 200 OK\r\nTrailer: X-Sha256\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut message = head.as_bytes().to_vec();
    for chunk in body.chunks(10_000) {
        message.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        message.extend_from_slice(chunk);
        message.extend_from_slice(b"\r\n");
    }
    let last = format!("0\r\n{}\r\n", x_sha256(body));
    connection.send(message) && connection.send(last)
}

/// Bytes that do not repeat within a frame or a buffer.
fn content(size: usize) -> Vec<u8> {
    (0..size)
        .map(|at| (at % 251 + at / 251 % 7) as u8)
        .collect()
}

fn x_sha256(body: &[u8]) -> String {
    format!("X-Sha256: {}\r\n", hex(body))
}

/// The SHA-256 of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digest = digest(&SHA256, bytes);
    digest
        .as_ref()
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}
