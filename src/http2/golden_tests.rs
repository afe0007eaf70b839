//! Field blocks with the messages that they are, or the details of their refusals, in
//! `tests/golden/h2_messages.txt`.
//!
//! `UPDATE_GOLDEN=1 cargo test --lib golden` writes the verdicts of that file again: read the
//! difference.
//!
//! A block is a line of the message that it is read as, with flags and limits, then a line for each
//! field. Special bytes are escaped as in Rust, blanks that cannot be seen as `\x20`; `{x*300}` is
//! a byte 300 times, and `300 x` before a name means a field 300 times. Lines of the verdict begin
//! with `=>`.

use std::fmt::Write as _;

use super::{
    hpack::{FieldList, HpackDecoder, SizeLimits},
    request,
    response::{self, ResponseExpectation},
    trailers,
};
use crate::http::{
    fields::HeadFields,
    message::{BodyFraming, RequestHead, ResponseHead},
    rules::{HeadError, HeadLimits, RESPONSE_LIMITS},
};

/// Field block, and all that its meaning depends on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct GoldenBlock {
    /// `request`, `response` or `trailers`.
    pub kind: String,
    /// The stream ends with it.
    pub ends: bool,
    /// It responds to HEAD.
    pub is_head: bool,
    /// It responds to a request for a WebSocket.
    pub is_websocket: bool,
    /// Limits of a request, and of trailers.
    pub limits: (usize, usize),
    /// Names and values.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Least number of equal bytes that are written as a run.
const MIN_RUN: usize = 16;

/// Name without a byte; quotation marks in a name are escaped.
const EMPTY_NAME: &str = "\"\"";

/// Escapes `text`; `special` are characters that have a meaning at this place.
fn escape(text: &[u8], special: &str) -> String {
    let mut out = String::new();
    for run in text.chunk_by(|one, other| one == other) {
        let byte = run[0];
        let escaped = if special.contains(char::from(byte)) {
            format!("\\x{byte:02x}")
        } else {
            byte.escape_ascii().to_string()
        };
        if run.len() >= MIN_RUN {
            write!(out, "{{{escaped}*{}}}", run.len()).unwrap();
        } else {
            out.push_str(&escaped.repeat(run.len()));
        }
    }
    out
}

fn escape_name(name: &[u8]) -> String {
    // A colon is a separator, but for the first one of a pseudo-header field.
    match name {
        [] => EMPTY_NAME.to_owned(),
        [b':', rest @ ..] => format!(":{}", escape(rest, " :{}=")),
        _ => escape(name, " :{}="),
    }
}

fn escape_value(value: &[u8]) -> String {
    let text = escape(value, "{}");
    match text.strip_suffix(' ') {
        Some(start) => format!("{start}\\x20"),
        None => text,
    }
}

/// Reads what [`escape`] has written.
fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(run) = rest.strip_prefix('{') {
            let (run, behind) = run.split_once('}').unwrap();
            let (byte, count) = run.rsplit_once('*').unwrap();
            out.extend(unescape(byte).repeat(count.parse().unwrap()));
            rest = behind;
        } else if let Some(escaped) = rest.strip_prefix('\\') {
            let (byte, length) = match escaped.as_bytes()[0] {
                b'x' => (u8::from_str_radix(&escaped[1..3], 16).unwrap(), 3),
                b't' => (b'\t', 1),
                b'r' => (b'\r', 1),
                b'n' => (b'\n', 1),
                byte => (byte, 1),
            };
            out.push(byte);
            rest = &escaped[length..];
        } else {
            out.push(u8::try_from(first).unwrap());
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

impl GoldenBlock {
    /// Reads the lines of a block.
    fn parse(lines: &[&str]) -> Self {
        let (first, fields) = lines.split_first().unwrap();
        let mut words = first.split(' ');
        let mut block = Self {
            kind: words.next().unwrap().to_owned(),
            ..Self::default()
        };
        for word in words {
            match word.split_once('=') {
                None if word == "ends" => block.ends = true,
                None if word == "HEAD" => block.is_head = true,
                None if word == "WebSocket" => block.is_websocket = true,
                Some(("fields", count)) => block.limits.0 = count.parse().unwrap(),
                Some(("bytes", count)) => block.limits.1 = count.parse().unwrap(),
                _ => panic!("{word} in {first}"),
            }
        }
        for line in fields {
            let (count, field) = line.split_once(" x ").unwrap_or(("1", line));
            let (count, field) = match count.parse() {
                Ok(count) => (count, field),
                Err(_) => (1, *line),
            };
            let end = 1 + field[1..].find(':').unwrap_or_default();
            let (name, value) = field.split_at(end);
            let value = value.strip_prefix(':').unwrap();
            let value = value.strip_prefix(' ').unwrap_or(value);
            let name = if name == EMPTY_NAME { "" } else { name };
            let field = (unescape(name), unescape(value));
            block.fields.extend(vec![field; count]);
        }
        block
    }

    /// Lines of the verdict.
    fn verdict(&self) -> Vec<String> {
        // As much as the engine keeps.
        let kept = match self.kind.as_str() {
            "response" => 2 * RESPONSE_LIMITS.bytes,
            _ => 2 * self.limits.1,
        };
        let list = field_list(&self.fields, kept);
        let limits = HeadLimits {
            fields: self.limits.0,
            bytes: self.limits.1,
        };
        match self.kind.as_str() {
            "request" => {
                let mut head = RequestHead::default();
                let read = request::read(&list, self.ends, limits, &mut head);
                read.map_or_else(refusal, |()| request_lines(&head))
            }
            "response" => {
                let mut head = ResponseHead::default();
                let expected = ResponseExpectation {
                    is_head: self.is_head,
                    is_websocket: self.is_websocket,
                };
                let read = response::read(&list, self.ends, expected, &mut head);
                read.map_or_else(refusal, |()| response_lines(&head))
            }
            _ => match trailers::read(&list, limits) {
                Ok(trailers) => {
                    let fields = trailers.iter();
                    fields
                        .map(|(name, value)| field_line(name, value))
                        .collect()
                }
                Err(error) => vec![format!("refused: {error}")],
            },
        }
    }

    /// Writes the block and its verdict.
    pub(crate) fn text(&self) -> String {
        let mut out = self.kind.clone();
        for (flag, is_set) in [
            (" ends", self.ends),
            (" HEAD", self.is_head),
            (" WebSocket", self.is_websocket),
        ] {
            out.push_str(if is_set { flag } else { "" });
        }
        if self.kind != "response" {
            let (fields, bytes) = self.limits;
            write!(out, " fields={fields} bytes={bytes}").unwrap();
        }
        out.push('\n');
        for equal in self.fields.chunk_by(|one, other| one == other) {
            let (name, value) = &equal[0];
            if equal.len() > 1 {
                write!(out, "{} x ", equal.len()).unwrap();
            }
            out.push_str(&field_line(name, value));
            out.push('\n');
        }
        for line in self.verdict() {
            writeln!(out, "=> {line}").unwrap();
        }
        out
    }
}

/// Fields as they are decoded; `kept` is the size of those that are kept.
pub(super) fn field_list(
    fields: &[(impl AsRef<[u8]>, impl AsRef<[u8]>)],
    kept: usize,
) -> FieldList {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        literal(&mut block, name.as_ref());
        literal(&mut block, value.as_ref());
    }
    let limits = SizeLimits {
        kept,
        decoded: usize::MAX,
    };
    let mut list = FieldList::default();
    let decoded = HpackDecoder::default().decode(&block, limits, &mut list);
    decoded.unwrap();
    list
}

/// Appends a string literal, RFC 7541 section 5.2.
fn literal(out: &mut Vec<u8>, text: &[u8]) {
    let mut length = text.len();
    if length < 127 {
        out.push(length as u8);
    } else {
        out.push(127);
        length -= 127;
        while length >= 128 {
            out.push((length % 128 + 128) as u8);
            length /= 128;
        }
        out.push(length as u8);
    }
    out.extend(text);
}

fn field_line(name: &[u8], value: &[u8]) -> String {
    let line = format!("{}: {}", escape_name(name), escape_value(value));
    line.strip_suffix(' ').map(str::to_owned).unwrap_or(line)
}

fn refusal(error: HeadError) -> Vec<String> {
    vec![format!("{:?}: {error}", error.fault)]
}

/// Longest line of a field that is kept.
const MAX_LINE: usize = 160;

/// Lines of the fields that are kept; of a longer one the beginning and its length.
fn kept<'h>(fields: &'h HeadFields, bytes: &'h [u8]) -> impl Iterator<Item = String> {
    let equal: Vec<String> = fields
        .iter()
        .map(|field| {
            let value = field.value.get(bytes);
            let mut line = field_line(field.name.get(bytes), value);
            if line.len() > MAX_LINE {
                line.truncate(MAX_LINE);
                write!(line, "... ({} bytes)", value.len()).unwrap();
            }
            line
        })
        .collect();
    let equal: Vec<String> = equal
        .chunk_by(|one, other| one == other)
        .map(|equal| match equal.len() {
            1 => equal[0].clone(),
            count => format!("{count} x {}", equal[0]),
        })
        .collect();
    equal.into_iter()
}

fn framing(framing: BodyFraming) -> String {
    match framing {
        BodyFraming::None => "no content".to_owned(),
        BodyFraming::Length(length) => format!("length {length}"),
        BodyFraming::Streamed(None) => "streamed".to_owned(),
        BodyFraming::Streamed(Some(length)) => format!("streamed, declared {length}"),
        BodyFraming::UntilClose => "until close".to_owned(),
    }
}

fn request_lines(head: &RequestHead) -> Vec<String> {
    let [method, target, path, host] =
        [head.method, head.target, head.path, head.host].map(|span| escape(head.text(span), ""));
    let mut line = format!(
        "{method} {target} path {path} of {host}, {}",
        framing(head.framing)
    );
    for (flag, is_set) in [
        (", switch to WebSocket", head.is_websocket()),
        (", takes trailers", head.takes_trailers),
        (", expects 100", head.expects_continue),
    ] {
        line.push_str(if is_set { flag } else { "" });
    }
    let mut lines = vec![line];
    lines.extend(kept(&head.fields, &head.bytes));
    lines
}

fn response_lines(head: &ResponseHead) -> Vec<String> {
    let mut line = format!(
        "{} {}, {}",
        head.status,
        escape(head.text(head.phrase), ""),
        framing(head.framing)
    );
    if head.is_interim() {
        line.push_str(", interim");
    }
    if let Some(length) = head.announced {
        write!(line, ", announced {length}").unwrap();
    }
    if let Some(protocol) = head.upgrade {
        write!(line, ", switch to {}", escape(head.text(protocol), "")).unwrap();
    }
    let mut lines = vec![line];
    lines.extend(kept(&head.fields, &head.bytes));
    lines
}

/// Blocks of `text`, without their verdicts.
fn blocks(text: &str) -> Vec<GoldenBlock> {
    let parts = text.split("\n\n").skip(1);
    parts
        .map(|part| {
            let lines = part.lines().filter(|line| !line.starts_with("=>"));
            GoldenBlock::parse(&lines.collect::<Vec<_>>())
        })
        .collect()
}

/// Writes a file of `blocks`.
pub(crate) fn write(blocks: &[GoldenBlock]) -> String {
    let mut text = "# HTTP/2 field blocks and the messages that they are: see \
                    src/http2/golden_tests.rs\n"
        .to_owned();
    for block in blocks {
        text.push('\n');
        text.push_str(&block.text());
    }
    text
}

/// File of the blocks.
pub(crate) const GOLDEN_FILE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/h2_messages.txt");

#[test]
fn every_block_of_the_file_is_the_message_that_stands_there() {
    let text = std::fs::read_to_string(GOLDEN_FILE).unwrap();
    let blocks = blocks(&text);
    let found = write(&blocks);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(GOLDEN_FILE, found).unwrap();
        return;
    }
    assert!(blocks.len() > 200, "{} blocks", blocks.len());
    for (found, expected) in found.split("\n\n").zip(text.split("\n\n")) {
        assert_eq!(found.trim_end(), expected.trim_end());
    }
    assert_eq!(found.len(), text.len());
}

#[test]
fn any_bytes_can_be_written_and_read_again() {
    let all: Vec<u8> = (0..=255).collect();
    let block = GoldenBlock {
        kind: "trailers".to_owned(),
        limits: (3, 2_000),
        fields: vec![
            (all.clone(), all.clone()),
            (b"a".to_vec(), b" b ".to_vec()),
            (b"a".to_vec(), b" b ".to_vec()),
            (b":a".to_vec(), b" ".to_vec()),
            (b"::".to_vec(), Vec::new()),
            (Vec::new(), b":".to_vec()),
            (b"7".to_vec(), b"x x x{".repeat(9)),
            (b"z".repeat(17), b" ".repeat(40)),
        ],
        ..GoldenBlock::default()
    };
    let text = write(std::slice::from_ref(&block));
    assert_eq!(self::blocks(&text), [block], "{text}");
}
