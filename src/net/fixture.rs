//! Connections over 127.0.0.1 for the tests of this module and of those above.

use tokio::net::{TcpListener, TcpStream};

use super::stream::Stream;
use crate::base::address::BackendAddress;

/// Connects a pair: the end of the test, and the end of the code under test.
pub(crate) async fn pair() -> (TcpStream, Stream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (peer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (peer.unwrap(), Stream::Tcp(accepted.unwrap().0))
}

/// Returns an address without a listener.
pub(crate) async fn dead_address() -> BackendAddress {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    BackendAddress::Ip(listener.local_addr().unwrap())
}
