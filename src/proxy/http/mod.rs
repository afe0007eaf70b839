//! HTTP from a client's connection to a backend and back. Either side of an exchange is an HTTP/1
//! connection or an HTTP/2 stream; the message between them has no wire format.
//!
//! A request goes down these files, none of which imports one above it:
//!
//! | file | step |
//! |---|---|
//! | `serve.rs` | one client connection: wait for a request, run the exchange, repeat |
//! | `http2.rs`, `stream_tasks.rs` | one HTTP/2 connection: an exchange for each stream |
//! | `run.rs`, `read.rs` | one exchange: read the head → check → route → forward or respond |
//! | `attempts.rs`, `retry.rs` | the attempts on one backend after another |
//! | `acquire.rs` | the connection of one attempt |
//! | `await_response.rs` | the request, until there is a response head |
//! | `respond.rs`, `tunnel.rs` | the response, or the tunnel after a 101 |
//! | `reply.rs`, `upload.rs` | responses of our own; the request as it goes to a backend |
//! | `forward.rs`, `origin.rs`, `header_edits.rs`, `sticky.rs` | the fields of forwarded heads |
//! | `relay.rs`, `body_filter.rs` | a body on its way from one side to the other |
//! | `attempt.rs`, `exchange.rs` | the things that the steps work on |
//! | `client_side.rs`, `backend_side.rs` | what is special about either protocol |
//! | the rest | rules and parts, most of them pure |

mod acquire;
mod attempt;
mod attempts;
mod await_response;
mod backend_side;
mod body_filter;
pub(super) mod buffers;
mod client_address;
mod client_side;
mod connection;
mod deadline;
mod exchange;
mod forward;
mod grpc;
mod hash_key;
mod header_edits;
mod http2;
mod interim;
mod linger;
mod min_rate;
mod origin;
mod outcome;
mod rate_limit;
mod read;
mod record;
pub(super) mod relay;
mod reply;
mod respond;
mod retry;
mod run;
mod serve;
mod sticky;
mod stream_tasks;
mod tunnel;
mod upload;

pub(super) use self::{
    client_address::is_allowed, linger::write_and_close, serve::overload_status,
};
pub use self::{
    connection::ClientConnection,
    serve::{refuse, serve},
};
/// Messages as they are written to the other side: public so that the fuzz targets check these and
/// not a copy.
pub use self::{
    forward::{
        NextHop, RequestChanges, ResponseExtra, SwitchExtra, delivery, interim_head, request_head,
        response_head, switch_head, trailer_section,
    },
    origin::RequestOrigin,
    relay::{BodyEncoding, BodyRelay, BodyRelayError, BodySink, BodySource},
    sticky::StickyCookie,
};
