//! Response of a gRPC health service: accepted input is complete, and added fields have their
//! effect.

use balancer::health::grpc_message::{
    MAX_MESSAGE_BYTES, PREFIX_BYTES, ServingStatus, decode_response,
};

/// Message behind the prefix of `body`, with `more` at its end.
fn with(body: &[u8], more: &[u8]) -> Vec<u8> {
    let message = [&body[PREFIX_BYTES..], more].concat();
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    body
}

/// Parses `data` as a body, and accepted input again with a change.
pub fn run(data: &[u8]) {
    let Ok(health) = decode_response(data) else {
        return;
    };
    assert_eq!(data[0], 0, "a flag");
    let length = data.len() - PREFIX_BYTES;
    assert!(length <= MAX_MESSAGE_BYTES, "{length} bytes");
    assert_eq!(data[1..PREFIX_BYTES], (length as u32).to_be_bytes());
    for end in super::prefixes(data.len(), data.len()) {
        assert!(
            decode_response(&data[..end]).is_err(),
            "{end} bytes are enough"
        );
    }
    assert!(
        decode_response(&[data, b"\0"].concat()).is_err(),
        "a byte too many"
    );
    if length + 3 > MAX_MESSAGE_BYTES {
        return;
    }
    assert_eq!(
        decode_response(&with(data, &[0x12, 1, 8])),
        Ok(health),
        "unknown"
    );
    assert_eq!(
        decode_response(&with(data, &[8, 1])),
        Ok(ServingStatus::Serving)
    );
    assert_eq!(
        decode_response(&with(data, &[8, 2])),
        Ok(ServingStatus::NotServing)
    );
    assert!(decode_response(&with(data, &[8])).is_err(), "half a field");
    assert!(decode_response(&with(data, &[0x0b])).is_err(), "a group");
}
