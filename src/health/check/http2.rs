//! An exchange of HTTP/1.1 on the one stream of a new HTTP/2 connection, which is driven meanwhile and ended in order.

use std::{pin::pin, rc::Rc};

use tokio::{select, time::timeout_at};

use super::{CheckError, ProbeDeadline};
use crate::net::{
    h2::backend::{H2Connection, H2HandshakeError},
    stream::Stream,
};

/// Runs `exchange` on a stream of a connection that begins on `stream`.
pub(super) async fn on_stream(
    stream: Stream,
    exchange: impl AsyncFnOnce(Stream) -> Result<(), CheckError>,
    limit: ProbeDeadline,
) -> Result<(), CheckError> {
    let opened = H2Connection::open(stream, None, 1, Rc::default(), limit.deadline).await;
    let (link, driver) = opened.map_err(|error| match error {
        H2HandshakeError::NoSettings | H2HandshakeError::NoStreams => limit.late(),
        _ => CheckError::Failed(error.to_string()),
    })?;
    let Some(stream) = link.open_stream(1) else {
        return Err("the backend allows no streams".to_owned().into());
    };
    let mut driver = pin!(driver);
    let verdict = limit.keep(async {
        let mut exchange = pin!(exchange(stream.into()));
        select! {
            biased;
            verdict = &mut exchange => verdict,
            // What came before the end may be the whole answer.
            () = &mut driver => exchange.await,
        }
    });
    let verdict = verdict.await;
    link.retire();
    if !link.is_closed() {
        // The verdict stands, whether the backend takes our goodbye or not.
        let _ = timeout_at(limit.deadline.into(), driver).await;
    }
    verdict
}
