//! One request over HTTP/1.1 on a connection of its own, which is driven while the answer is waited for; on a stream of HTTP/2
//! it is the same.

use std::{error::Error, io};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response,
    body::{Body, Incoming},
    client::conn::http1,
    header::{CONNECTION, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;

use super::http::{Probe, cannot_ask};
use crate::net::{h2::Ended, stream::Stream};

/// An http check on `stream`.
pub(super) async fn ask(stream: Stream, probe: &Probe<'_>) -> Result<(), String> {
    let request = probe
        .request()
        .uri(probe.path)
        .header(HOST, &probe.authority)
        .header(CONNECTION, HeaderValue::from_static("close"))
        .body(Empty::<Bytes>::new())
        .map_err(|error| cannot_ask(&error))?;
    exchange(stream, request, async |response: Response<Incoming>| {
        let status = response.status();
        let mut body = response.into_body();
        probe.judge(status, async || next(&mut body).await).await
    })
    .await
}

/// Sends `request`, and lets `judge` read the response.
pub(super) async fn exchange<B>(
    stream: Stream,
    request: Request<B>,
    judge: impl AsyncFnOnce(Response<Incoming>) -> Result<(), String>,
) -> Result<(), String>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| describe(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await;
        judge(response.map_err(|error| describe(&error))?).await
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

/// A failure of the connection in words.
pub(super) fn describe(error: &hyper::Error) -> String {
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    let ended = cause.and_then(io::Error::get_ref);
    match ended.and_then(|ended| ended.downcast_ref()) {
        Some(Ended::Lost) => {}
        Some(ended) => return ended.to_string(),
        None if error.is_parse() => return format!("answer is not valid HTTP: {error}"),
        None if error.is_incomplete_message() || error.is_closed() || error.is_canceled() => {}
        None => return error.to_string(),
    }
    "connection closed before the whole answer".to_owned()
}
