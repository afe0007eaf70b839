//! An exchange on the one stream of a new HTTP/2 connection. The connection is driven
//! meanwhile and closed in order afterwards.

use std::{pin::pin, rc::Rc};

use tokio::{select, time::timeout_at};

use super::{deadline::ProbeDeadline, error::CheckError, exchange::CheckStream};
use crate::{h2::backend::H2Connection, net::stream::Stream};

/// Performs the HTTP/2 handshake on `stream` and runs `exchange` on a stream of that connection.
pub(super) async fn on_stream(
    stream: Stream,
    exchange: impl AsyncFnOnce(CheckStream) -> Result<(), CheckError>,
    deadline: ProbeDeadline,
) -> Result<(), CheckError> {
    let opened =
        H2Connection::open(stream, Box::new(|_, _| ()), 1, Rc::default(), deadline.at).await;
    let (connection, driver) =
        opened.map_err(|error| CheckError::from_handshake(error, deadline.timeout))?;
    let Some(stream) = connection.open_stream(1) else {
        return Err(CheckError::unexpected("the backend allows no streams"));
    };
    let mut driver = pin!(driver);
    let result = deadline.run(async {
        let mut exchange = pin!(exchange(CheckStream::H2(stream)));
        select! {
            biased;
            result = &mut exchange => result,
            // The whole response may have arrived before the connection ended: read it.
            _ = &mut driver => exchange.await,
        }
    });
    let result = result.await;
    connection.retire();
    if !connection.is_closed() {
        // Sends GOAWAY, so that the backend does not log a broken connection for every check. The
        // result stands even if that fails or is late.
        let _ = timeout_at(deadline.at.into(), driver).await;
    }
    result
}
