//! A response head: what is accepted means one thing, and the same after it was written anew and read again.

use balancer::http1::{
    encode,
    response::{Framing, Head, Invalid},
};

use super::{count, lines, prefixes};

fn parse(bytes: &[u8], method: &[u8]) -> Result<Option<Head>, Invalid> {
    let mut head = Head::default();
    Ok(head.parse(bytes, method)?.then_some(head))
}

/// Names and values of the fields that are left.
fn kept<'a>(head: &Head, bytes: &'a [u8]) -> Vec<(&'a [u8], &'a [u8])> {
    head.fields
        .iter()
        .map(|field| (field.name.get(bytes), field.value.get(bytes)))
        .collect()
}

/// Writes the head as the proxy does for a client that speaks HTTP/1.1.
fn write(head: &Head, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode::status_line(&mut out, head.status, head.phrase.get(bytes));
    encode::fields(&mut out, &head.fields, bytes);
    match (head.framing, head.upgrade) {
        (_, Some(protocol)) => encode::upgrade(&mut out, protocol.get(bytes)),
        (Framing::Length(length), _) => encode::content_length(&mut out, length),
        (Framing::Chunked | Framing::UntilClose, _) => encode::chunked(&mut out),
        (Framing::None, _) => {
            if let Some(length) = head.announced {
                encode::content_length(&mut out, length);
            }
        }
    }
    encode::end(&mut out);
    out
}

fn check_written_anew(head: &Head, bytes: &[u8], method: &[u8]) {
    assert!((100..=599).contains(&head.status));
    let written = write(head, bytes);
    let lines = lines(&written);
    assert!(count(&lines, "content-length") + count(&lines, "transfer-encoding") <= 1);
    assert!(count(&lines, "connection") <= 1);
    if written.len() >= balancer::http1::response::MAX_HEAD {
        return;
    }
    let again = parse(&written, method)
        .expect("what we write is valid")
        .expect("and whole");
    assert_eq!(again.len, written.len());
    assert_eq!(again.status, head.status);
    assert_eq!(again.phrase.get(&written), head.phrase.get(bytes));
    assert_eq!(kept(&again, &written), kept(head, bytes));
    let framing = match head.framing {
        // The end of the body must be told where the connection stays open.
        Framing::UntilClose => Framing::Chunked,
        framing => framing,
    };
    assert_eq!(again.framing, framing);
    assert_eq!(again.announced, head.announced);
    assert_eq!(
        again.upgrade.map(|span| span.get(&written)),
        head.upgrade.map(|span| span.get(bytes))
    );
}

fn check_prefixes(data: &[u8], method: &[u8], whole: &Result<Option<Head>, Invalid>) {
    let end = match whole {
        Ok(Some(head)) => head.len,
        _ => data.len(),
    };
    for length in prefixes(data.len(), end) {
        match (parse(&data[..length], method), whole) {
            (Ok(Some(part)), Ok(Some(whole))) => {
                assert_eq!(format!("{part:?}"), format!("{whole:?}"));
            }
            (Ok(Some(_)), _) => panic!("{length} bytes are whole, all of them are not"),
            (Err(invalid), Ok(_)) => panic!("{length} bytes are refused alone: {invalid:?}"),
            (Ok(None), Ok(Some(whole))) => assert!(length < whole.len),
            (Ok(None) | Err(_), _) => {}
        }
    }
}

/// Reads `data` as the answer to GET and to HEAD, whole and in part, and what is accepted a second time.
pub fn run(data: &[u8]) {
    for method in [&b"GET"[..], b"HEAD"] {
        let whole = parse(data, method);
        if let Ok(Some(head)) = &whole {
            check_written_anew(head, data, method);
        }
        check_prefixes(data, method, &whole);
    }
}
