//! Addresses of listeners and backends, as written in the configuration.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

/// Maximum length of the path of a unix socket.
const MAX_UNIX_PATH_BYTES: usize = 107;

/// Address of a listener: an IP address and port, or the path of a unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BindAddress {
    /// `127.0.0.1:8080`, `[::]:443`; `:8080` is `[::]:8080`, which takes IPv4 too.
    Ip(SocketAddr),
    /// `unix:/run/app.sock`.
    Unix(PathBuf),
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Address of a backend: an IP address and port, a host name and port, the path of a unix socket,
/// or the name of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendAddress {
    /// `127.0.0.1:9001`.
    Ip(SocketAddr),
    /// `api.internal:8080`; resolved on the control thread, never on a worker.
    Name {
        /// The host name in lower case.
        host: String,
        /// The port, 1..=65535.
        port: u16,
    },
    /// `api.internal:8080/10.0.0.1`: one address that a name has resolved to.
    Resolved {
        /// The host name in lower case.
        host: String,
        /// The address with the port.
        address: SocketAddr,
    },
    /// `srv:_http._tcp.api.internal`: a service whose backends the DNS lists (RFC 2782).
    Service(String),
    /// `unix:/run/app.sock`.
    Unix(PathBuf),
}

impl BackendAddress {
    /// True for a name that stands for what the DNS has for it: it has no address of its own.
    pub fn is_name(&self) -> bool {
        matches!(self, Self::Name { .. } | Self::Service(_))
    }
}

impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Resolved { host, address } => {
                write!(f, "{host}:{}/{}", address.port(), address.ip())
            }
            Self::Service(name) => write!(f, "srv:{name}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Cause of a text that is not an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is no `:port`.
    #[error("a port is missing")]
    NoPort,
    /// The port is not a number of 1..=65535 (0 is allowed in binds: any free port).
    #[error("the port is not a number of 1 to 65535")]
    BadPort,
    /// Neither an IP address nor a host name.
    #[error("the host is neither an IP address nor a host name")]
    BadHost,
    /// `unix:` without an absolute path, or one longer than a socket path may be (107 bytes).
    #[error("the path after `unix:` is not an absolute path of at most 107 bytes")]
    BadPath,
}

/// Checks a socket path. `sun_path` has 108 bytes, one of them for the final NUL.
fn unix_path(path: &str) -> Result<PathBuf, AddressError> {
    if path.starts_with('/') && path.len() <= MAX_UNIX_PATH_BYTES && !path.contains('\0') {
        Ok(PathBuf::from(path))
    } else {
        Err(AddressError::BadPath)
    }
}

/// Parses a port. Only digits: `u16::from_str` would accept a sign.
fn port_number(text: &str) -> Result<u16, AddressError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(AddressError::BadPort);
    }
    text.parse().map_err(|_| AddressError::BadPort)
}

/// Splits `host:port`; the host of `[::1]:80` is returned without its brackets.
fn host_and_port(text: &str) -> Result<(&str, u16), AddressError> {
    let (host, port) = text.rsplit_once(':').ok_or(AddressError::NoPort)?;
    if let Some(inner) = host.strip_prefix('[') {
        return Ok((
            inner.strip_suffix(']').ok_or(AddressError::BadHost)?,
            port_number(port)?,
        ));
    }
    if host.contains(':') {
        return Err(AddressError::BadHost);
    }
    Ok((host, port_number(port)?))
}

/// True for a host name (RFC 1123), also with `_`, which service names in containers have. A name
/// of digits and dots is a mistyped IP address.
pub fn is_host_name(host: &str) -> bool {
    let labels = host.strip_suffix('.').unwrap_or(host);
    let all_numeric = labels.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    !all_numeric
        && labels.len() <= 253
        && labels.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

impl FromStr for BindAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_path(path).map(Self::Unix);
        }
        if text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() {
            return Ok(Self::Ip(SocketAddr::new(
                IpAddr::from([0_u8; 16]),
                port_number(text)?,
            )));
        }
        let (host, port) = host_and_port(text)?;
        let ip = if host.is_empty() || host == "*" {
            IpAddr::from([0_u8; 16])
        } else {
            host.parse().map_err(|_| AddressError::BadHost)?
        };
        // `[::ffff:127.0.0.1]:80` and `127.0.0.1:80` are one address to the kernel.
        Ok(Self::Ip(SocketAddr::new(ip.to_canonical(), port)))
    }
}

impl FromStr for BackendAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_path(path).map(Self::Unix);
        }
        let (host, port) = host_and_port(text)?;
        if port == 0 {
            return Err(AddressError::BadPort);
        }
        match host.parse::<IpAddr>() {
            Ok(ip) => Ok(Self::Ip(SocketAddr::new(ip, port))),
            Err(_) if is_host_name(host) => Ok(Self::Name {
                host: host.to_ascii_lowercase(),
                port,
            }),
            Err(_) => Err(AddressError::BadHost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(text: &str) -> Result<String, AddressError> {
        text.parse::<BackendAddress>()
            .map(|address| address.to_string())
    }

    fn bind(text: &str) -> Result<String, AddressError> {
        text.parse::<BindAddress>()
            .map(|address| address.to_string())
    }

    #[test]
    fn backends_are_ip_name_or_unix() {
        assert_eq!(backend("10.0.0.1:80").as_deref(), Ok("10.0.0.1:80"));
        assert_eq!(backend("[::1]:80").as_deref(), Ok("[::1]:80"));
        assert_eq!(
            backend("Api-1.Internal:8080").as_deref(),
            Ok("api-1.internal:8080")
        );
        assert_eq!(
            backend("unix:/run/a.sock").as_deref(),
            Ok("unix:/run/a.sock")
        );
        assert_eq!(backend("10.0.0.1"), Err(AddressError::NoPort));
        assert_eq!(backend("10.0.0.1:0"), Err(AddressError::BadPort));
        assert_eq!(backend("10.0.0.1:70000"), Err(AddressError::BadPort));
        assert_eq!(backend("a:+80"), Err(AddressError::BadPort));
        assert_eq!(backend("10.0.0.256:80"), Err(AddressError::BadHost));
        assert_eq!(backend("::1:80"), Err(AddressError::BadHost));
        assert_eq!(backend("http://a:80"), Err(AddressError::BadHost));
        assert_eq!(backend("unix:run"), Err(AddressError::BadPath));
    }

    #[test]
    fn an_address_of_a_name_is_shown_with_both() {
        let resolved = |address: &str| BackendAddress::Resolved {
            host: "api.internal".to_owned(),
            address: address.parse().unwrap(),
        };
        assert_eq!(
            resolved("10.0.0.1:80").to_string(),
            "api.internal:80/10.0.0.1"
        );
        assert_eq!(
            resolved("[2001:db8::1]:80").to_string(),
            "api.internal:80/2001:db8::1"
        );
        let service = BackendAddress::Service("_http._tcp.api".to_owned());
        assert_eq!(service.to_string(), "srv:_http._tcp.api");
        assert!(service.is_name() && !resolved("10.0.0.1:80").is_name());
    }

    #[test]
    fn binds_may_leave_out_the_host() {
        assert_eq!(bind(":8080").as_deref(), Ok("[::]:8080"));
        assert_eq!(bind("8080").as_deref(), Ok("[::]:8080"));
        assert_eq!(bind("[::ffff:127.0.0.1]:80").as_deref(), Ok("127.0.0.1:80"));
        assert_eq!(bind("0.0.0.0:80").as_deref(), Ok("0.0.0.0:80"));
        assert_eq!(bind("127.0.0.1:0").as_deref(), Ok("127.0.0.1:0"));
        assert_eq!(bind("localhost:80"), Err(AddressError::BadHost));
        assert_eq!(bind(""), Err(AddressError::NoPort));
    }
}
