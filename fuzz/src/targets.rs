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
