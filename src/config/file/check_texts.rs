//! Reads the texts of a check: steps, expected bodies and headers, and files with secrets.

use super::{
    KeyValue as _, NodeRef, TreeReader,
    common::{FRAMING_FIELDS, clean_text, header_name},
    matching::byte_pattern,
    quote,
};
use crate::config::{
    io_cause,
    model::{CheckStep, ExpectedHeader, ExpectedText, SecretText, StepBytes},
};

/// Longest text to send or to expect, in bytes.
const MAX_TEXT_BYTES: usize = 4096;
/// Largest file with a secret, in bytes.
const MAX_SECRET_BYTES: u64 = 4096;
/// Most steps of a check, and most headers that it sends or expects.
const MAX_ENTRIES: usize = 32;

/// Hint for what a step may expect.
const EXPECT_HINT: &str = "write a text, `{hex: \"2b 4f 4b\"}` or `{regex: EXPRESSION}`";
/// Hint for what a step may send.
const SEND_HINT: &str = "write a text, `{hex: \"0d 0a\"}` or `{secret_file: PATH}`";

/// `steps`.
pub(super) fn steps(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Vec<CheckStep> {
    let hint = "write `steps: [{send: \"PING\\r\\n\", expect: \"PONG\"}]`";
    let entries = reader.list(&at, "a list of steps", hint);
    if entries.is_empty() && matches!(&at.node.kind, super::NodeKind::List(_)) {
        reader.error(at, "`steps` is empty", hint);
    }
    check_count(reader, at, entries.len(), "steps");
    let mut steps = Vec::new();
    for entry in entries {
        let Some(keys) = reader.section(entry) else {
            continue;
        };
        let (send, expect) = (keys.get("send"), keys.get("expect"));
        if send.is_none() && expect.is_none() && !keys.has_unknown() {
            reader.error_at_key(entry, "a step needs `send` or `expect`", hint);
        }
        steps.push(CheckStep {
            send: send.and_then(|at| step_bytes(reader, at)),
            expect: expect.and_then(|at| step_expectation(reader, at)),
        });
    }
    steps
}

fn check_count(reader: &mut TreeReader<'_>, at: NodeRef<'_>, count: usize, what: &str) {
    if count > MAX_ENTRIES {
        reader.error_at_key(
            at,
            format!("{count} {what} are more than a check can have"),
            format!("write at most {MAX_ENTRIES}"),
        );
    }
}

fn step_bytes(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<StepBytes> {
    if !at.is_map() {
        return escaped_text(reader, at, SEND_HINT).map(StepBytes::Plain);
    }
    let keys = reader.section(at)?;
    match (keys.get("hex"), keys.get("secret_file")) {
        (Some(at), None) => hex(reader, at).map(StepBytes::Plain),
        (None, Some(at)) => secret_file(reader, at).map(StepBytes::Secret),
        (None, None) if keys.has_unknown() => None,
        _ => {
            reader.error_at_key(at, "expected one of `hex` and `secret_file`", SEND_HINT);
            None
        }
    }
}

fn step_expectation(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<ExpectedText> {
    if !at.is_map() {
        return escaped_text(reader, at, EXPECT_HINT).map(ExpectedText::Bytes);
    }
    let keys = reader.section(at)?;
    match (keys.get("hex"), keys.get("regex")) {
        (Some(at), None) => hex(reader, at).map(ExpectedText::Bytes),
        (None, Some(at)) => byte_pattern(reader, at, false).map(ExpectedText::Regex),
        (None, None) if keys.has_unknown() => None,
        _ => {
            reader.error_at_key(at, "expected one of `hex` and `regex`", EXPECT_HINT);
            None
        }
    }
}

/// `body`: a text as it is, or an expression.
pub(super) fn body(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    verb: &str,
) -> Option<ExpectedText> {
    if verb == "HEAD" {
        reader.error_at_key(
            at,
            "the response to HEAD has no body",
            "remove `body`, or use `method: GET`",
        );
    }
    let hint = "write a text that occurs in the response";
    if at.is_map() {
        let keys = reader.section(at)?;
        let Some(at) = keys.get("regex") else {
            if !keys.has_unknown() {
                reader.error_at_key(
                    at,
                    "`regex` is missing",
                    "write `body: {regex: EXPRESSION}`",
                );
            }
            return None;
        };
        return byte_pattern(reader, at, false).map(ExpectedText::Regex);
    }
    let body = reader.text(at, "a text", hint)?;
    if body.is_empty() || body.len() > MAX_TEXT_BYTES {
        reader.error(at, "expected a text of 1 to 4096 bytes", hint);
        return None;
    }
    Some(ExpectedText::Bytes(body.as_bytes().to_vec()))
}

/// `headers`: names and values that the request has.
pub(super) fn headers(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> = Vec::new();
    let Some(map) = reader.map(at, "write `headers: {X-Name: value}`") else {
        return headers;
    };
    check_count(reader, at, map.iter().count(), "headers");
    for at in map.iter() {
        let value = clean_text(reader, at, "the value of a header").map(str::to_owned);
        let Some(name) = field_name(reader, at, headers.iter().map(|(name, _)| name)) else {
            continue;
        };
        let refused = match name.as_str() {
            "host" => Some("write `host: NAME` beside `headers`"),
            name if FRAMING_FIELDS.contains(&name) => Some("remove it: balancer writes it itself"),
            _ => None,
        };
        if let Some(hint) = refused {
            let message = format!("{} cannot be set by a check", quote(at.last_key()));
            reader.error_at_key(at, message, hint);
        }
        if value
            .as_ref()
            .is_some_and(|value| value.trim() != value.as_str())
        {
            reader.error(
                at,
                "the value of a header begins or ends with a space",
                "remove the spaces: they do not belong to the value",
            );
        }
        headers.extend(value.map(|value| (name, value)));
    }
    headers
}

/// `expect_headers`: names and what is expected of each.
pub(super) fn expected_headers(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
) -> Vec<(String, ExpectedHeader)> {
    let mut expected: Vec<(String, ExpectedHeader)> = Vec::new();
    let Some(map) = reader.map(at, "write `expect_headers: {X-Name: value}`") else {
        return expected;
    };
    check_count(reader, at, map.iter().count(), "headers");
    for at in map.iter() {
        let value = expected_header(reader, at);
        let name = field_name(reader, at, expected.iter().map(|(name, _)| name));
        expected.extend(name.zip(value));
    }
    expected
}

fn expected_header(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<ExpectedHeader> {
    if !at.is_map() {
        let value = clean_text(reader, at, "the value of a header")?;
        return Some(ExpectedHeader::Equal(value.trim().to_owned()));
    }
    let keys = reader.section(at)?;
    match (keys.get("regex"), keys.get("present")) {
        (Some(at), None) => byte_pattern(reader, at, true).map(ExpectedHeader::Regex),
        (None, Some(at)) => bool::read(reader, at).map(ExpectedHeader::Present),
        (None, None) if keys.has_unknown() => None,
        _ => {
            reader.error_at_key(
                at,
                "expected one of `regex` and `present`",
                "write the whole value, `{regex: EXPRESSION}` or `{present: true}`",
            );
            None
        }
    }
}

/// The name of a header in lower case; reports one that is none of them, and one that is in
/// `known`.
fn field_name<'k>(
    reader: &mut TreeReader<'_>,
    at: NodeRef<'_>,
    mut known: impl Iterator<Item = &'k String>,
) -> Option<String> {
    let name = at.last_key();
    if !header_name(reader, at, name, true) {
        return None;
    }
    let name = name.to_ascii_lowercase();
    if known.any(|other| *other == name) {
        reader.error_at_key(
            at,
            format!(
                "{} is given twice: header names are not case-sensitive",
                quote(&name)
            ),
            "remove one",
        );
    }
    Some(name)
}

/// The content of a file without its last line end.
pub(super) fn secret_file(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<SecretText> {
    let text = reader.text(at, "the path of a file", "write the path of a file")?;
    let path = reader.resolve(text);
    let bytes = match reader.files.read(&path, MAX_SECRET_BYTES) {
        Ok(bytes) => bytes,
        Err(error) => {
            let message = format!("cannot read {}: {}", quote(text), io_cause(&error));
            let hint = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "check the path; relative paths start at the directory of the configuration \
                     file"
                }
                std::io::ErrorKind::InvalidInput => "name a regular file",
                _ => "make it readable by balancer's user",
            };
            reader.error(at, message, hint);
            return None;
        }
    };
    let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let secret = line.strip_suffix(b"\r").unwrap_or(line);
    let problem = match secret {
        [] => "is empty",
        _ if bytes.len() as u64 > MAX_SECRET_BYTES => "is larger than 4096 bytes",
        _ => return Some(SecretText::new(secret)),
    };
    reader.error(
        at,
        format!("{} {problem}", quote(text)),
        "name a file that has the secret and nothing else",
    );
    None
}

/// A text in which `\r`, `\n`, `\t`, `\0`, `\\` and `\xHH` stand for bytes.
fn escaped_text(reader: &mut TreeReader<'_>, at: NodeRef<'_>, hint: &str) -> Option<Vec<u8>> {
    let text = reader.text(at, "a text", hint)?;
    match unescape(text) {
        Some(bytes) if (1..=MAX_TEXT_BYTES).contains(&bytes.len()) => Some(bytes),
        Some(_) => {
            reader.error(at, "expected a text of 1 to 4096 bytes", hint);
            None
        }
        None => {
            reader.error(
                at,
                format!("{} has an unknown escape", quote(text)),
                "write `\\r`, `\\n`, `\\t`, `\\0`, `\\xHH`, and `\\\\` for a backslash",
            );
            None
        }
    }
}

/// The bytes that a text with escapes stands for. `None`: an escape is unknown or cut.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next()? {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'0' => 0,
            b'\\' => b'\\',
            b'x' => hex_byte(rest.next()?, rest.next()?)?,
            _ => return None,
        });
    }
    Some(bytes)
}

fn hex_byte(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

/// Bytes as pairs of hexadecimal digits; blanks and colons between them are skipped.
fn hex(reader: &mut TreeReader<'_>, at: NodeRef<'_>) -> Option<Vec<u8>> {
    let hint = "write two hexadecimal digits for each byte, such as `\"2b 50 4f\"`, in quotes";
    let text = reader.text(at, "bytes in hexadecimal", hint)?;
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| !matches!(byte, b' ' | b':' | b'\n'))
        .collect();
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => hex_byte(*high, *low),
        _ => None,
    });
    let bytes: Option<Vec<u8>> = pairs.collect();
    let bytes = bytes.filter(|bytes| (1..=MAX_TEXT_BYTES).contains(&bytes.len()));
    if bytes.is_none() {
        let message = format!("{} is not 1 to 4096 bytes in hexadecimal", quote(text));
        reader.error(at, message, hint);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_stand_for_bytes_and_unknown_ones_are_refused() {
        let cases: &[(&str, Option<&[u8]>)] = &[
            ("PING\\r\\n", Some(b"PING\r\n")),
            ("a\\x00\\xfF\\0\\t\\\\", Some(b"a\x00\xff\x00\t\\")),
            ("\r\n", Some(b"\r\n")),
            ("é", Some("é".as_bytes())),
            ("\\", None),
            ("\\q", None),
            ("\\x4", None),
            ("\\xg0", None),
        ];
        for (text, bytes) in cases {
            assert_eq!(unescape(text).as_deref(), *bytes, "{text}");
        }
    }
}
