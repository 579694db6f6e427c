//! Where an install listens: a numeric address, without surprises.
//!
//! An install listens on IPv4, and `localhost` may mean `::1` first (`ollama-api.md` §1), so `localhost` becomes
//! `127.0.0.1`. Prompts must not leave the machine by accident: another host is refused unless it is allowed by
//! name.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The port of an install where none is named.
const DEFAULT_PORT: u16 = 11434;

/// The port of `http://` where none is named, as Ollama itself reads `OLLAMA_HOST`.
const HTTP_PORT: u16 = 80;

/// The base address of one install: `http`, a host, a port and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OllamaUrl {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    Address(IpAddr),
    /// Only with `allow_remote`.
    Name(String),
}

/// Says why a text is not the address of an install that we may talk to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// TLS is not built in.
    #[error("{0} asks for https, which this build does not speak; use http on loopback, or a tunnel")]
    Https(String),
    /// The scheme is neither `http` nor absent.
    #[error("{0} is not an http address")]
    Scheme(String),
    /// The host is not loopback and that was not allowed.
    #[error(
        "{0} is not a loopback address; --allow-remote-ollama permits it, and then prompts leave this machine"
    )]
    Remote(String),
    /// The text has no host, a wrong port, or more than host and port.
    #[error("{0} is not of the form http://host:port")]
    Malformed(String),
}

impl Default for OllamaUrl {
    fn default() -> Self {
        Self { host: Host::Address(Ipv4Addr::LOCALHOST.into()), port: DEFAULT_PORT }
    }
}

impl OllamaUrl {
    /// Reads an address as typed: `http://host:port`, `host:port`, `host` or `:port`.
    ///
    /// Without a scheme the port defaults to 11434, with `http://` to 80; no host and `localhost` mean
    /// `127.0.0.1`; `0.0.0.0` and `::` mean the loopback address of their family. One `/` at the end is allowed.
    ///
    /// # Errors
    /// For `https` and other schemes, for a path, user or query, and for a host that is not loopback unless
    /// `allow_remote` is set.
    pub fn parse(text: &str, allow_remote: bool) -> Result<Self, UrlError> {
        let malformed = || UrlError::Malformed(text.to_owned());
        let (default_port, rest) = match text.split_once("://") {
            None => (DEFAULT_PORT, text),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (HTTP_PORT, rest),
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
                return Err(UrlError::Https(text.to_owned()));
            }
            Some(_) => return Err(UrlError::Scheme(text.to_owned())),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = split_port(rest).ok_or_else(malformed)?;
        let port = match port {
            None => default_port,
            Some(digits) => digits.parse().ok().filter(|port| *port != 0).ok_or_else(malformed)?,
        };
        let host = match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) if address.is_unspecified() => Host::Address(Ipv4Addr::LOCALHOST.into()),
            Ok(IpAddr::V6(address)) if address.is_unspecified() => Host::Address(Ipv6Addr::LOCALHOST.into()),
            Ok(address) => Host::Address(address),
            Err(_) if host.is_empty() || host.eq_ignore_ascii_case("localhost") => {
                Host::Address(Ipv4Addr::LOCALHOST.into())
            }
            Err(_) => {
                let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
                if !host.chars().all(legal) {
                    return Err(malformed());
                }
                Host::Name(host.to_owned())
            }
        };
        let url = Self { host, port };
        if allow_remote || url.is_loopback() { Ok(url) } else { Err(UrlError::Remote(text.to_owned())) }
    }

    /// Reads the value of `OLLAMA_HOST` as Ollama does: white space and quotes around it do not count, and an
    /// empty value is the default address. The rest follows [`OllamaUrl::parse`]; reading the variable is the
    /// caller's.
    ///
    /// # Errors
    /// As [`OllamaUrl::parse`].
    pub fn from_ollama_host(value: &str, allow_remote: bool) -> Result<Self, UrlError> {
        let value = value.trim().trim_matches(['"', '\'']).trim();
        if value.is_empty() { Ok(Self::default()) } else { Self::parse(value, allow_remote) }
    }

    /// Says whether the address is of this machine's loopback.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match &self.host {
            Host::Address(address) => address.is_loopback(),
            Host::Name(_) => false,
        }
    }

    /// Gives host and port as a socket wants them.
    #[must_use]
    pub fn host_and_port(&self) -> (String, u16) {
        let host = match &self.host {
            Host::Address(address) => address.to_string(),
            Host::Name(name) => name.clone(),
        };
        (host, self.port)
    }
}

/// Splits `host`, `host:port`, `[v6]`, `[v6]:port`, or a bare v6 address.
fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        return match after {
            "" => Some((host, None)),
            after => after.strip_prefix(':').map(|port| (host, Some(port))),
        };
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Some((text, None));
    }
    match text.split_once(':') {
        None => Some((text, None)),
        Some((host, port)) => Some((host, Some(port))),
    }
}

impl fmt::Display for OllamaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V6(address)) => write!(f, "http://[{address}]:{}", self.port),
            Host::Address(address) => write!(f, "http://{address}:{}", self.port),
            Host::Name(name) => write!(f, "http://{name}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_loopback_is_a_numeric_address() {
        for (text, meant) in [
            ("", "http://127.0.0.1:11434"),
            ("localhost", "http://127.0.0.1:11434"),
            ("LOCALHOST:8080", "http://127.0.0.1:8080"),
            (":8080", "http://127.0.0.1:8080"),
            ("http://localhost:11435/", "http://127.0.0.1:11435"),
            ("http://127.0.0.1", "http://127.0.0.1:80"),
            ("0.0.0.0", "http://127.0.0.1:11434"),
            ("0.0.0.0:11500", "http://127.0.0.1:11500"),
            ("::", "http://[::1]:11434"),
            ("[::1]:9", "http://[::1]:9"),
            ("[::]", "http://[::1]:11434"),
            (" \"127.0.0.2:1\" ", "http://127.0.0.2:1"),
        ] {
            let url = OllamaUrl::from_ollama_host(text, false).unwrap();
            assert_eq!(url.to_string(), meant, "{text:?}");
            assert!(url.is_loopback());
        }
    }

    #[test]
    fn what_would_carry_prompts_away_is_refused_unless_it_is_allowed() {
        for text in ["192.168.1.5", "http://gpu-box:11434", "10.0.0.1:1"] {
            assert_eq!(OllamaUrl::parse(text, false), Err(UrlError::Remote(text.to_owned())));
            assert!(OllamaUrl::parse(text, true).is_ok());
        }
    }

    #[test]
    fn https_paths_users_and_bad_ports_are_refused_even_when_remote_is_allowed() {
        assert!(matches!(OllamaUrl::parse("https://127.0.0.1", true), Err(UrlError::Https(_))));
        assert!(matches!(OllamaUrl::parse("ftp://127.0.0.1", true), Err(UrlError::Scheme(_))));
        for text in ["127.0.0.1:0", "127.0.0.1:70000", "http://h/path", "u@h", "h?q", "[::1", "[::1]x", "a b"]
        {
            assert!(matches!(OllamaUrl::parse(text, true), Err(UrlError::Malformed(_))), "{text}");
        }
    }
}
