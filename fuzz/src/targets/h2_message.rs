//! Field blocks of HTTP/2: a message that is accepted means the same to a parser of HTTP/1.

mod blocks;

use balancer::{
    base::rng::Random,
    http::{
        fields::HeadFields,
        message::{BodyFraming, RequestHead, ResponseHead},
        rules::{HeadLimits, RESPONSE_LIMITS},
    },
    http1::{
        self,
        body::{BodyDecoder, BodyStep},
    },
    http2::{
        request,
        response::{self, ResponseExpectation},
        trailers,
    },
};

use self::blocks::{Block, BlockKind, generate, mutate};

/// Changes to the fields of each input, each checked: changes to its bytes seldom leave a block
/// that is almost right.
const CHANGES: usize = 4;

/// Limits that no request reaches.
const WIDE_LIMITS: HeadLimits = HeadLimits {
    fields: 256,
    bytes: 1 << 20,
};

/// Lines of the fields that are kept.
fn lines(fields: &HeadFields, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields.iter() {
        line(&mut out, field.name.get(bytes), field.value.get(bytes));
    }
    out
}

fn line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

fn check_request(block: &Block) {
    let mut head = RequestHead::default();
    if request::read(&block.list(), block.ends, block.limits, &mut head).is_err() {
        return;
    }
    let mut text = Vec::new();
    for part in [
        head.text(head.method),
        b" ",
        head.text(head.target),
        b" HTTP/1.1\r\n",
    ] {
        text.extend_from_slice(part);
    }
    text.extend(lines(&head.fields, &head.bytes));
    match (head.framing, head.upgrade) {
        (BodyFraming::Streamed(_), None) => line(&mut text, b"Transfer-Encoding", b"chunked"),
        (BodyFraming::None, Some(protocol)) => {
            line(&mut text, b"Connection", b"upgrade");
            line(&mut text, b"Upgrade", head.text(protocol));
        }
        (framing, upgrade) => assert_eq!((framing, upgrade), (BodyFraming::None, None)),
    }
    if head.takes_trailers {
        line(&mut text, b"TE", b"trailers");
    }
    text.extend_from_slice(b"\r\n");
    let mut again = RequestHead {
        bytes: text,
        ..RequestHead::default()
    };
    if head.fields.iter().count() + 3 > WIDE_LIMITS.fields {
        return;
    }
    assert_eq!(http1::request::parse(&mut again, WIDE_LIMITS), Ok(true));
    assert_eq!(again.len, again.bytes.len(), "bytes behind the head");
    for (one, other) in [
        (head.method, again.method),
        (head.target, again.target),
        (head.path, again.path),
        (head.host, again.host),
    ] {
        assert_eq!(head.text(one), again.text(other));
    }
    let declared = matches!(head.framing, BodyFraming::Streamed(_));
    assert_eq!(again.framing != BodyFraming::None, declared);
    assert_eq!(head.is_websocket(), again.is_websocket());
    assert_eq!(head.takes_trailers, again.takes_trailers);
    assert_eq!(head.expects_continue, again.expects_continue);
    assert_eq!(
        lines(&head.fields, &head.bytes),
        lines(&again.fields, &again.bytes)
    );
}

fn check_response(block: &Block) {
    let mut head = ResponseHead::default();
    let expected = ResponseExpectation {
        is_head: block.is_head,
        is_websocket: block.is_websocket,
    };
    if response::read(&block.list(), block.ends, expected, &mut head).is_err() {
        return;
    }
    let mut text = format!("HTTP/1.1 {} ", head.status).into_bytes();
    text.extend_from_slice(head.text(head.phrase));
    text.extend_from_slice(b"\r\n");
    text.extend(lines(&head.fields, &head.bytes));
    let framing = match head.framing {
        BodyFraming::Streamed(_) => {
            line(&mut text, b"Transfer-Encoding", b"chunked");
            BodyFraming::Streamed(None)
        }
        framing => framing,
    };
    let length = head.announced.or(framing.declared_length());
    if let Some(length) = length {
        line(&mut text, b"Content-Length", length.to_string().as_bytes());
    }
    if head.status == 101 {
        line(&mut text, b"Connection", b"upgrade");
        line(&mut text, b"Upgrade", b"websocket");
    }
    text.extend_from_slice(b"\r\n");
    let count = head.fields.iter().count() + 2;
    if count > RESPONSE_LIMITS.fields || text.len() > RESPONSE_LIMITS.bytes {
        return;
    }
    let mut again = ResponseHead {
        bytes: text,
        ..ResponseHead::default()
    };
    let method: &[u8] = if block.is_head { b"HEAD" } else { b"GET" };
    assert_eq!(http1::response::parse(&mut again, method), Ok(true));
    assert_eq!(again.len, again.bytes.len(), "bytes behind the head");
    let found = (again.status, again.framing, again.announced);
    assert_eq!(found, (head.status, framing, head.announced));
    assert_eq!(again.text(again.phrase), head.text(head.phrase));
    assert_eq!(
        again.switches_to(b"websocket"),
        head.switches_to(b"websocket")
    );
    assert_eq!(
        lines(&head.fields, &head.bytes),
        lines(&again.fields, &again.bytes)
    );
}

fn check_trailers(block: &Block) {
    let Ok(trailers) = trailers::read(&block.list(), block.limits) else {
        return;
    };
    let mut section = Vec::new();
    for (name, value) in trailers.iter() {
        line(&mut section, name, value);
    }
    let text = [b"0\r\n", &section[..], b"\r\n"].concat();
    let (mut decoder, mut at) = (BodyDecoder::chunked(WIDE_LIMITS), 0);
    while let BodyStep::Skip(count) = decoder.step(&text[at..]).expect("an empty body") {
        at += count;
    }
    assert!(decoder.is_done() && at == text.len());
    assert_eq!(decoder.take_trailers(), trailers);
}

fn check(block: &Block) {
    match block.kind {
        BlockKind::Request => check_request(block),
        BlockKind::Response => check_response(block),
        BlockKind::Trailers => check_trailers(block),
    }
}

/// Checks the block in `data`, some that follow from it, and one that is well-formed or almost.
pub fn run(data: &[u8]) {
    let Some(mut block) = Block::decode(data) else {
        return;
    };
    check(&block);
    let seed = data.iter().fold(data.len() as u64, |seed, byte| {
        seed.wrapping_mul(0x0100_0000_01b3) ^ u64::from(*byte)
    });
    let mut random = Random::seeded(seed);
    for _ in 0..CHANGES {
        mutate(&mut block, &mut random);
        check(&block);
    }
    check(&generate(&mut random));
}
