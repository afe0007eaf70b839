//! The server side of a client's connection: requests on their streams.

use crate::http::{message::RequestHead, rules::HeadError};

/// Request on a new stream.
#[derive(Debug)]
pub struct IncomingRequest {
    pub(super) id: u32,
    /// Head; incomplete if the request is refused.
    pub head: RequestHead,
    /// Fault for which the request is refused.
    pub refusal: Option<HeadError>,
}
