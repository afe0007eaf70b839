//! One end of a TLS connection as records in and bytes out. No sockets, no waiting.
//!
//! Wraps rustls' unbuffered interface, whose rules are: input that was not processed is passed in
//! again at every call, since positions in it are remembered; after an error there is no further
//! call but to encode the alert.

use std::fmt;

use rustls::{
    Error, HandshakeKind, ProtocolVersion,
    client::{ClientConnectionData, UnbufferedClientConnection},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{
        ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedConnectionCommon,
        UnbufferedStatus, WriteTraffic,
    },
};
use tokio::io::ReadBuf;

/// Bytes a record adds to its plaintext, rounded up: header, nonce, content type, tag.
const RECORD_OVERHEAD: usize = 40;
/// Most plaintext in one record, RFC 8446 section 5.1.
const MAX_RECORD_PLAINTEXT: usize = 16 << 10;
/// Space that a handshake message is first encoded to; rustls says if it needs more.
const FIRST_ENCODE_BYTES: usize = 1 << 10;

/// Either end of a connection.
pub(super) enum RustlsConnection {
    /// Our end of a client's connection.
    Server(UnbufferedServerConnection),
    /// Our end of a connection to a backend.
    Client(UnbufferedClientConnection),
}

impl fmt::Debug for RustlsConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server(_) => "Server",
            Self::Client(_) => "Client",
        })
    }
}

/// The call that rustls implements for each end apart, so that the functions here can be generic.
trait ProcessRecords<Data> {
    fn records<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Data>;
}

impl ProcessRecords<ServerConnectionData> for UnbufferedConnectionCommon<ServerConnectionData> {
    fn records<'c, 'i>(
        &'c mut self,
        input: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        self.process_tls_records(input)
    }
}

impl ProcessRecords<ClientConnectionData> for UnbufferedConnectionCommon<ClientConnectionData> {
    fn records<'c, 'i>(
        &'c mut self,
        input: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        self.process_tls_records(input)
    }
}

/// Destination of decrypted bytes: the reader's buffer, then a `Vec` for what exceeds it.
pub(super) struct PlaintextBuf<'a, 'b> {
    /// The reader's buffer.
    pub(super) target: &'a mut ReadBuf<'b>,
    /// Bytes that did not fit.
    pub(super) overflow: &'a mut Vec<u8>,
}

impl PlaintextBuf<'_, '_> {
    fn push(&mut self, bytes: &[u8]) {
        let fits = bytes.len().min(self.target.remaining());
        let (now, later) = bytes.split_at(fits);
        self.target.put_slice(now);
        self.overflow.extend_from_slice(later);
    }
}

/// Result of processing input.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ProcessedRecords {
    /// Bytes of the input that were processed.
    pub(super) used: usize,
    /// The peer has ended its direction in order.
    pub(super) ended: bool,
}

/// Processes the whole records in `input`. Replies are appended to `out`, as is the fatal alert of
/// an error.
pub(super) fn process(
    connection: &mut RustlsConnection,
    input: &mut [u8],
    plaintext: &mut PlaintextBuf<'_, '_>,
    out: &mut Vec<u8>,
) -> Result<ProcessedRecords, Error> {
    match connection {
        RustlsConnection::Server(server) => process_any(&mut **server, input, plaintext, out),
        RustlsConnection::Client(client) => process_any(&mut **client, input, plaintext, out),
    }
}

fn process_any<Data>(
    connection: &mut UnbufferedConnectionCommon<Data>,
    input: &mut [u8],
    plaintext: &mut PlaintextBuf<'_, '_>,
    out: &mut Vec<u8>,
) -> Result<ProcessedRecords, Error>
where
    UnbufferedConnectionCommon<Data>: ProcessRecords<Data>,
{
    let mut processed = ProcessedRecords::default();
    loop {
        debug_assert!(
            processed.used <= input.len(),
            "rustls used more than it got"
        );
        let unprocessed = input.get_mut(processed.used..).unwrap_or_default();
        let UnbufferedStatus { mut discard, state } = connection.records(unprocessed);
        let mut is_over = false;
        match state {
            Err(error) => {
                let unprocessed = input.get_mut(processed.used + discard..);
                encode_alert(connection, unprocessed.unwrap_or_default(), out);
                return Err(error);
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    plaintext.push(record.payload);
                }
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode_message(&mut data, out);
            }
            // The message is in `out`, in order: as good as sent.
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(ConnectionState::PeerClosed) => processed.ended = true,
            // More input is needed, or the handshake is over: nothing else to process.
            Ok(_) => is_over = true,
        }
        processed.used += discard;
        if is_over {
            return Ok(processed);
        }
    }
}

/// Appends the alert for an error, behind the messages encoded before it. `unprocessed` is the
/// input from the error on. Calls rustls only while it has something to encode: one call more would
/// process the invalid record again.
fn encode_alert<Data>(
    connection: &mut UnbufferedConnectionCommon<Data>,
    unprocessed: &mut [u8],
    out: &mut Vec<u8>,
) where
    UnbufferedConnectionCommon<Data>: ProcessRecords<Data>,
{
    while connection.wants_write()
        && let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.records(unprocessed).state
    {
        encode_message(&mut data, out);
    }
}

/// Appends a handshake message or an alert.
fn encode_message<Data>(data: &mut EncodeTlsData<'_, Data>, out: &mut Vec<u8>) {
    append(out, |space| match data.encode(space) {
        Err(EncodeError::InsufficientSize(size)) => Err(size.required_size),
        // Cannot happen: the first call with enough space encodes, and is the last.
        Err(EncodeError::AlreadyEncoded) => Ok(0),
        Ok(count) => Ok(count),
    });
}

/// Appends what `write` produces; its `Err` is the space it needs.
fn append(out: &mut Vec<u8>, mut write: impl FnMut(&mut [u8]) -> Result<usize, usize>) {
    let before = out.len();
    let mut space = FIRST_ENCODE_BYTES;
    loop {
        out.resize(before + space, 0);
        match write(out.get_mut(before..).unwrap_or_default()) {
            Ok(count) => return out.truncate(before + count),
            Err(needed) if needed > space => space = needed,
            // rustls asks for less than it got: give up rather than loop.
            Err(_) => return out.truncate(before),
        }
    }
}

/// Encrypts `bytes` to the end of `out`. `incoming` is input that was not processed.
pub(super) fn encrypt(
    connection: &mut RustlsConnection,
    incoming: &mut Vec<u8>,
    bytes: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    with_traffic(connection, incoming, out, |traffic, out| {
        let before = out.len();
        let records = bytes.len() / MAX_RECORD_PLAINTEXT + 1;
        let mut space = bytes.len() + records * RECORD_OVERHEAD;
        loop {
            out.resize(before + space, 0);
            match traffic.encrypt(bytes, out.get_mut(before..).unwrap_or_default()) {
                Ok(count) => {
                    out.truncate(before + count);
                    return Ok(());
                }
                Err(EncryptError::InsufficientSize(size)) if size.required_size > space => {
                    space = size.required_size;
                }
                Err(_) => {
                    out.truncate(before);
                    return Err(Error::EncryptError);
                }
            }
        }
    })
}

/// Appends the orderly end of our direction (`close_notify`) to `out`.
pub(super) fn encode_close_notify(
    connection: &mut RustlsConnection,
    incoming: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    with_traffic(connection, incoming, out, |traffic, out| {
        append(out, |space| match traffic.queue_close_notify(space) {
            Ok(count) => Ok(count),
            Err(EncryptError::InsufficientSize(size)) => Err(size.required_size),
            // No record number is left (RFC 8446 section 5.5): the peer sees a truncation.
            Err(EncryptError::EncryptExhausted) => Ok(0),
        });
        Ok(())
    })
}

/// Runs `work` with the writing half of an established connection.
fn with_traffic(
    connection: &mut RustlsConnection,
    incoming: &mut Vec<u8>,
    out: &mut Vec<u8>,
    work: impl FnOnce(&mut dyn TrafficWriter, &mut Vec<u8>) -> Result<(), Error>,
) -> Result<(), Error> {
    match connection {
        RustlsConnection::Server(server) => with_traffic_of(&mut **server, incoming, out, work),
        RustlsConnection::Client(client) => with_traffic_of(&mut **client, incoming, out, work),
    }
}

/// The writing half of rustls, for either end.
trait TrafficWriter {
    fn encrypt(&mut self, bytes: &[u8], space: &mut [u8]) -> Result<usize, EncryptError>;
    fn queue_close_notify(&mut self, space: &mut [u8]) -> Result<usize, EncryptError>;
}

impl<Data> TrafficWriter for WriteTraffic<'_, Data> {
    fn encrypt(&mut self, bytes: &[u8], space: &mut [u8]) -> Result<usize, EncryptError> {
        WriteTraffic::encrypt(self, bytes, space)
    }

    fn queue_close_notify(&mut self, space: &mut [u8]) -> Result<usize, EncryptError> {
        WriteTraffic::queue_close_notify(self, space)
    }
}

fn with_traffic_of<Data>(
    connection: &mut UnbufferedConnectionCommon<Data>,
    incoming: &mut Vec<u8>,
    out: &mut Vec<u8>,
    work: impl FnOnce(&mut dyn TrafficWriter, &mut Vec<u8>) -> Result<(), Error>,
) -> Result<(), Error>
where
    UnbufferedConnectionCommon<Data>: ProcessRecords<Data>,
{
    // The state to write in is reached through rustls' state machine, past messages that it wants
    // to send first, such as the reply to a key update.
    loop {
        let UnbufferedStatus { discard, state } = connection.records(incoming);
        match state? {
            ConnectionState::WriteTraffic(mut traffic) => return work(&mut traffic, out),
            ConnectionState::EncodeTlsData(mut data) => encode_message(&mut data, out),
            ConnectionState::TransmitTlsData(data) => data.done(),
            // The session knows of the peer's end already: half-close, RFC 8446 section 6.1.
            ConnectionState::PeerClosed => {}
            _ => return Err(Error::HandshakeNotComplete),
        }
        incoming.drain(..discard.min(incoming.len()));
    }
}

impl RustlsConnection {
    /// True until the handshake is over.
    pub(super) fn is_handshaking(&self) -> bool {
        match self {
            Self::Server(server) => server.is_handshaking(),
            Self::Client(client) => client.is_handshaking(),
        }
    }

    /// True if TLS 1.3 was negotiated; otherwise 1.2, as nothing older is spoken.
    pub(super) fn is_13(&self) -> bool {
        let version = match self {
            Self::Server(server) => server.protocol_version(),
            Self::Client(client) => client.protocol_version(),
        };
        version == Some(ProtocolVersion::TLSv1_3)
    }

    /// Protocol chosen by ALPN.
    pub(super) fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Server(server) => server.alpn_protocol(),
            Self::Client(client) => client.alpn_protocol(),
        }
    }

    /// True if the handshake resumed an earlier session.
    pub(super) fn is_resumed(&self) -> bool {
        let kind = match self {
            Self::Server(server) => server.handshake_kind(),
            Self::Client(client) => client.handshake_kind(),
        };
        kind == Some(HandshakeKind::Resumed)
    }

    /// Leaf certificate of the peer, in DER.
    pub(super) fn peer_certificate(&self) -> Option<&[u8]> {
        let chain = match self {
            Self::Server(server) => server.peer_certificates(),
            Self::Client(client) => client.peer_certificates(),
        };
        chain?.first().map(|leaf| &**leaf)
    }
}
