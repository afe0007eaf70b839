//! The answer of a health service: what is accepted is whole, and fields that are added to it change what they should.

use balancer::health::grpc_message::{Health, LONGEST, PREFIX, response};

/// The message behind the prefix of `body`, with `more` at its end.
fn with(body: &[u8], more: &[u8]) -> Vec<u8> {
    let message = [&body[PREFIX..], more].concat();
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    body
}

/// Reads `data` as a body, and what is accepted of it again with a change.
pub fn run(data: &[u8]) {
    let Ok(health) = response(data) else {
        return;
    };
    assert_eq!(data[0], 0, "a flag");
    let length = data.len() - PREFIX;
    assert!(length <= LONGEST, "{length} bytes");
    assert_eq!(data[1..PREFIX], (length as u32).to_be_bytes());
    for end in super::prefixes(data.len(), data.len()) {
        assert!(response(&data[..end]).is_err(), "{end} bytes are enough");
    }
    assert!(
        response(&[data, b"\0"].concat()).is_err(),
        "a byte too many"
    );
    if length + 3 > LONGEST {
        return;
    }
    assert_eq!(response(&with(data, &[0x12, 1, 8])), Ok(health), "unknown");
    assert_eq!(response(&with(data, &[8, 1])), Ok(Health::Serving));
    assert_eq!(response(&with(data, &[8, 2])), Ok(Health::NotServing));
    assert!(response(&with(data, &[8])).is_err(), "half a field");
    assert!(response(&with(data, &[0x0b])).is_err(), "a group");
}
