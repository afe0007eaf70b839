//! An http check over HTTP/1.1: one request on a connection of its own, which is driven while the answer is waited for.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::Incoming,
    client::conn::http1,
    header::{CONNECTION, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;

use super::http::{Probe, cannot_ask};
use crate::net::stream::Stream;

/// Asks on `stream`.
pub(super) async fn ask(stream: Stream, probe: &Probe<'_>) -> Result<(), String> {
    let request = probe
        .request()
        .uri(probe.path)
        .header(HOST, &probe.authority)
        .header(CONNECTION, HeaderValue::from_static("close"))
        .body(Empty::<Bytes>::new())
        .map_err(|error| cannot_ask(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| describe(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| describe(&error))?;
        let status = response.status();
        let mut body = response.into_body();
        probe.judge(status, async || next(&mut body).await).await
    };
    let (mut exchange, mut connection) = (std::pin::pin!(exchange), std::pin::pin!(connection));
    tokio::select! {
        biased;
        result = &mut exchange => result,
        // The end of the connection may be the end of the answer, which the exchange still has to read.
        _ = &mut connection => exchange.await,
    }
}

/// The next part of the body; trailers are passed over.
async fn next(body: &mut Incoming) -> Option<Result<Bytes, String>> {
    loop {
        match body.frame().await? {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Some(Ok(data));
                }
            }
            Err(error) => return Some(Err(describe(&error))),
        }
    }
}

fn describe(error: &hyper::Error) -> String {
    if error.is_parse() {
        format!("answer is not valid HTTP: {error}")
    } else if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        "connection closed before the whole answer".to_owned()
    } else {
        error.to_string()
    }
}
