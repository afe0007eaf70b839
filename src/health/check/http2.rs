//! An HTTP/1.1 exchange on the one stream of a new HTTP/2 connection. The connection is driven
//! meanwhile and closed in order afterwards.

use std::{pin::pin, rc::Rc};

use tokio::{select, time::timeout_at};

use super::{deadline::ProbeDeadline, error::CheckError};
use crate::net::{h2::backend::H2Connection, stream::Stream};

/// Performs the HTTP/2 handshake on `stream` and runs `exchange` on a stream of that connection.
pub(super) async fn on_stream(
    stream: Stream,
    exchange: impl AsyncFnOnce(Stream) -> Result<(), CheckError>,
    deadline: ProbeDeadline,
) -> Result<(), CheckError> {
    let opened = H2Connection::open(stream, None, 1, Rc::default(), deadline.at).await;
    let (connection, driver) =
        opened.map_err(|error| CheckError::from_handshake(error, deadline.timeout))?;
    let Some(stream) = connection.open_stream(1) else {
        return Err(CheckError::unexpected("the backend allows no streams"));
    };
    let mut driver = pin!(driver);
    let result = deadline.run(async {
        let mut exchange = pin!(exchange(stream.into()));
        select! {
            biased;
            result = &mut exchange => result,
            // The whole response may have arrived before the connection ended: read it.
            () = &mut driver => exchange.await,
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
