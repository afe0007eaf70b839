//! Families of cases that differ in one byte: every control byte in every place.

use super::corpus::{CorpusCase, made};

/// Bytes that end, fold or hide something in one reader or another. HTAB, LF, CR have cases of
/// their own elsewhere.
fn controls() -> impl Iterator<Item = u8> {
    (0..=0x1f)
        .filter(|byte| !b"\t\n\r".contains(byte))
        .chain([0x7f])
}

fn with(before: &str, byte: u8, after: &str) -> Vec<u8> {
    let mut bytes = before.as_bytes().to_vec();
    bytes.push(byte);
    bytes.extend_from_slice(after.as_bytes());
    bytes
}

/// Requests with one byte that may not be where it is.
pub fn requests() -> Vec<CorpusCase> {
    let places: [(&str, &str, &str, &str); 8] = [
        ("method", "400", "GE", "T /x HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("target", "400", "GET /x", "y HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("version", "400", "GET /x HTTP/1.1", "\r\nHost: a\r\n\r\n"),
        (
            "name",
            "400",
            "GET /x HTTP/1.1\r\nHost: a\r\nX-",
            "A: b\r\n\r\n",
        ),
        (
            "value",
            "400",
            "GET /x HTTP/1.1\r\nHost: a\r\nX-A: b",
            "c\r\n\r\n",
        ),
        ("host", "400", "GET /x HTTP/1.1\r\nHost: a", "\r\n\r\n"),
        (
            "chunk-extension",
            "400 # begun",
            "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a",
            "\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "chunk-size",
            "400 # begun",
            "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5",
            "\r\nhello\r\n0\r\n\r\n",
        ),
    ];
    let mut cases = Vec::new();
    for (place, verdict, before, after) in places {
        for byte in controls() {
            let name = format!("{byte:02x}-in-{place}");
            cases.push(made(
                "control-bytes",
                name,
                verdict,
                with(before, byte, after),
            ));
        }
    }
    let no_tokens = b"\"(),/:;<=>?@[\\]{}";
    for byte in no_tokens.iter().copied().chain([0x80, 0xa0, 0xff]) {
        if byte != b':' {
            let bytes = with("GET /x HTTP/1.1\r\nHost: a\r\nX-", byte, "A: b\r\n\r\n");
            let name = format!("{byte:02x}-in-name");
            cases.push(made("no-token-bytes", name, "400", bytes));
        }
        let bytes = with("GE", byte, "T /x HTTP/1.1\r\nHost: a\r\n\r\n");
        let name = format!("{byte:02x}-in-method");
        cases.push(made("no-token-bytes", name, "400", bytes));
    }
    cases
}

/// Responses with one byte that may not be where it is.
pub fn responses() -> Vec<CorpusCase> {
    let places: [(&str, &str, &str); 3] = [
        (
            "phrase",
            "HTTP/1.1 200 O",
            "K\r\nContent-Length: 5\r\n\r\nhello",
        ),
        (
            "name",
            "HTTP/1.1 200 OK\r\nX-",
            "A: b\r\nContent-Length: 5\r\n\r\nhello",
        ),
        (
            "value",
            "HTTP/1.1 200 OK\r\nX-A: b",
            "c\r\nContent-Length: 5\r\n\r\nhello",
        ),
    ];
    let mut cases = Vec::new();
    for (place, before, after) in places {
        for byte in controls() {
            let name = format!("{byte:02x}-in-{place}");
            cases.push(made(
                "control-bytes-of-responses",
                name,
                "502",
                with(before, byte, after),
            ));
        }
    }
    cases
}
