//! The fuzz targets, one module each.

pub mod chunked_body;
pub mod client_hello;
pub mod config;
pub mod grpc_health;
pub mod h2_backend;
pub mod h2_client;
pub mod h2_message;
pub mod hpack;
pub mod proxy_header;
pub mod request_head;
pub mod response_head;

use std::os::unix::net::UnixStream;

use balancer::{
    http2::{
        block_head::BlockHead,
        hpack::{FieldList, HpackDecoder, HpackEncoder, SizeLimits},
    },
    net::stream::Stream,
};
use tokio::runtime::{Builder, Runtime};

thread_local! {
    /// The one runtime of all targets: a thread has one driver of sockets, which is of its runtime.
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
}

/// Two ends of a connection: the peer's, and ours.
fn pair() -> (UnixStream, Stream) {
    let (peer, ours) = UnixStream::pair().expect("two sockets");
    peer.set_nonblocking(true)
        .expect("a socket that does not block");
    (
        peer,
        Stream::from_unix(ours).expect("a socket of the runtime"),
    )
}

/// Fields of a head that is written as a field block.
fn block_fields(write: impl FnOnce(&mut BlockHead<'_>)) -> FieldList {
    let (mut encoder, mut block) = (HpackEncoder::default(), Vec::new());
    encoder.begin_block(&mut block);
    write(&mut BlockHead::new(&mut encoder, &mut block));
    let limits = SizeLimits {
        kept: 1 << 20,
        decoded: 1 << 20,
    };
    let mut fields = FieldList::default();
    HpackDecoder::default()
        .decode(&block, limits, &mut fields)
        .expect("what we write is valid");
    fields
}

/// Fields as HTTP/2 has them: names in lower case, one Cookie, which is last; without `omitted`.
fn as_of_h2<'f>(
    fields: impl Iterator<Item = (&'f [u8], &'f [u8])>,
    omitted: &[&str],
) -> Vec<(String, Vec<u8>)> {
    let (mut all, mut cookies) = (Vec::new(), Vec::new());
    for (name, value) in fields {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let value = value.trim_ascii().to_vec();
        if name == "cookie" {
            cookies.push(value);
        } else if !omitted.contains(&name.as_str()) {
            all.push((name, value));
        }
    }
    cookies.retain(|crumb| !crumb.is_empty());
    if !cookies.is_empty() {
        all.push(("cookie".to_owned(), cookies.join(&b"; "[..])));
    }
    all
}

/// Lengths of prefixes to run: all of a short input, some 32 of a long one, and those around `end`.
fn prefixes(length: usize, end: usize) -> impl Iterator<Item = usize> {
    let step = (length / 32).max(1);
    let near = end.saturating_sub(4)..(end + 2).min(length);
    (0..length).step_by(step).chain(near)
}

/// Lines of an encoded head without the empty one. They must be clean, for any input.
fn lines(head: &[u8]) -> Vec<&[u8]> {
    let text = head
        .strip_suffix(b"\r\n\r\n")
        .expect("an empty line ends it");
    let mut lines: Vec<&[u8]> = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        lines.push(line);
    }
    let last = lines.len() - 1;
    for (number, line) in lines.iter_mut().enumerate() {
        if number < last {
            *line = line.strip_suffix(b"\r").expect("a bare line feed");
        }
        assert!(!line.is_empty(), "an empty line inside the head");
        assert!(
            !line.iter().any(|byte| b"\r\0".contains(byte)),
            "a byte that ends a line or a string"
        );
    }
    lines
}

/// Number of fields in `lines` called `name`.
fn count(lines: &[&[u8]], name: &str) -> usize {
    lines[1..]
        .iter()
        .filter(|line| {
            let found = line.split(|byte| *byte == b':').next();
            found.is_some_and(|found| found.eq_ignore_ascii_case(name.as_bytes()))
        })
        .count()
}
