//! An smtp check: the greeting is 220, EHLO gets 250, and QUIT ends the session in order
//! (RFC 5321).

use std::{net::SocketAddr, time::Duration};

use tokio::time::timeout;

use super::{
    conversation::{ProbeConversation, shown},
    error::CheckError,
};

/// Most lines of one reply.
const MAX_REPLY_LINES: usize = 100;

/// Time for the reply to QUIT. The check has passed by then.
const QUIT_TIMEOUT: Duration = Duration::from_millis(200);

/// Greets the server as `host`, or as our own address.
pub(super) async fn probe(
    mut server: ProbeConversation<'_>,
    host: Option<&str>,
) -> Result<(), CheckError> {
    expect(&mut server, "220").await?;
    let own = server
        .stream()
        .local_addr()
        .map_or_else(|| "localhost".to_owned(), |address| literal(&address));
    let name = host.unwrap_or(&own);
    server.send(format!("EHLO {name}\r\n").as_bytes()).await;
    expect(&mut server, "250").await?;
    // Without it servers log a client that was lost.
    server.send(b"QUIT\r\n").await;
    let _ = timeout(QUIT_TIMEOUT, server.wait_for_end()).await;
    Ok(())
}

/// An address where a name is wanted, RFC 5321 section 4.1.3.
fn literal(address: &SocketAddr) -> String {
    match address.ip().to_canonical() {
        std::net::IpAddr::V4(ip) => format!("[{ip}]"),
        std::net::IpAddr::V6(ip) => format!("[IPv6:{ip}]"),
    }
}

/// Reads a reply of one or more lines, which must have the code `wanted`.
async fn expect(server: &mut ProbeConversation<'_>, wanted: &str) -> Result<(), CheckError> {
    for _ in 0..MAX_REPLY_LINES {
        let line = server.line().await?;
        let code = line.get(..3).unwrap_or_default();
        if code != wanted.as_bytes() {
            let found = shown(&line);
            return Err(CheckError::unexpected(format!(
                "expected {wanted}, found `{found}`"
            )));
        }
        match line.get(3) {
            Some(b'-') => {}
            Some(b' ') | None => return Ok(()),
            Some(_) => return Err(CheckError::unexpected("answer is not a reply of SMTP")),
        }
    }
    Err(CheckError::unexpected("a reply has more than 100 lines"))
}
