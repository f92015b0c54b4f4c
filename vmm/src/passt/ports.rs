//! The host's ports that lead into the guest: as passt's arguments, and what is wrong with one that cannot be had.

use std::ffi::OsString;
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};

use super::PasstError;
use crate::spec::{PortForward, Protocol};

/// What passt is told of `ports`.
pub(super) fn arguments(ports: &[PortForward]) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    for (protocol, flag) in [(Protocol::Tcp, "-t"), (Protocol::Udp, "-u")] {
        let before = arguments.len();
        for port in ports.iter().filter(|port| port.protocol == protocol) {
            arguments.extend([flag.into(), value(port).into()]);
        }
        if arguments.len() == before {
            // Without a word about UDP, passt forwards UDP ports of the same numbers as TCP's.
            arguments.extend([flag.into(), "none".into()]);
        }
    }
    arguments
}

/// `port` in passt's words.
fn value(port: &PortForward) -> String {
    let ports = format!("{}:{}", port.host, port.guest);
    match port.address {
        Some(address) => format!("{address}/{ports}"),
        None => ports,
    }
}

/// Refuse ports that passt could not listen at. It would say less, and may be content with one of two addresses.
pub(super) fn check(ports: &[PortForward]) -> Result<(), PasstError> {
    ports.iter().try_for_each(|port| try_port(port).map_err(|error| refusal(port, &error)))
}

/// Listen there for a moment.
fn try_port(port: &PortForward) -> Result<(), Error> {
    let listen = |address: IpAddr| match port.protocol {
        Protocol::Tcp => TcpListener::bind((address, port.host)).map(drop),
        Protocol::Udp => UdpSocket::bind((address, port.host)).map(drop),
    };
    let Some(address) = port.address else {
        listen(Ipv4Addr::UNSPECIFIED.into())?;
        return match listen(Ipv6Addr::UNSPECIFIED.into()) {
            // A host without IPv6 has no such address, and passt goes without it too.
            Err(error) if error.kind() != ErrorKind::AddrInUse => Ok(()),
            result => result,
        };
    };
    listen(address)
}

fn refusal(port: &PortForward, error: &Error) -> PasstError {
    match error.kind() {
        ErrorKind::AddrInUse => PasstError::PortInUse(port.clone()),
        ErrorKind::PermissionDenied => PasstError::PortDenied(port.clone()),
        ErrorKind::AddrNotAvailable => PasstError::PortAddress(port.clone()),
        _ => PasstError::Port { port: port.clone(), words: error.to_string() },
    }
}

/// The error of a passt that ended with these words: it names the port that they are about.
pub(super) fn explain(words: &str, ports: &[PortForward]) -> PasstError {
    let about = |port: &&PortForward| {
        let flag = match port.protocol {
            Protocol::Tcp => 't',
            Protocol::Udp => 'u',
        };
        let value = value(port);
        // `… for '-t 80:80', exiting`, `… for option '-t 80:80', …`, `… port specifier 80:80`
        words.contains(&format!("-{flag} {value}'")) || words.ends_with(&format!("specifier {value}"))
    };
    match ports.iter().find(about) {
        // It was free when it was tried: another took it, or passt has fewer rights than whoever starts it.
        Some(port) if port.host < 1024 => PasstError::PortDenied(port.clone()),
        Some(port) => PasstError::Port { port: port.clone(), words: words.to_owned() },
        None => PasstError::Ended(words.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(texts: &[&str]) -> Vec<PortForward> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn ports_are_told_to_passt_in_its_own_words() {
        let told = |texts: &[&str]| {
            arguments(&ports(texts)).iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(told(&[]), "-t none -u none");
        assert_eq!(told(&["8080:80"]), "-t 8080:80 -u none");
        assert_eq!(
            told(&["127.0.0.1:8080:80", "5353:53/udp", "[::1]:2222:22/tcp", "[fe80::1]:69:69/udp"]),
            "-t 127.0.0.1/8080:80 -t ::1/2222:22 -u 5353:53 -u fe80::1/69:69"
        );
    }

    #[test]
    fn a_port_in_use_is_named_whatever_uses_it() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (t, u) = (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
        for text in [
            format!("127.0.0.1:{t}:80"),
            format!("{t}:80"),
            format!("{u}:53/udp"),
            format!("127.0.0.1:{u}:53/udp"),
        ] {
            let error = check(&ports(&[&text])).unwrap_err().to_string();
            assert!(error.starts_with(&format!("cannot publish {text}: port ")), "{error}");
            assert!(error.contains("is in use"), "{error}");
        }
        drop((tcp, udp));
        check(&ports(&[&format!("127.0.0.1:{t}:80"), &format!("{t}:53/udp")])).unwrap();
    }

    #[test]
    fn an_address_that_the_host_does_not_have_is_named() {
        // One of the documentation's, which no host has.
        let error = check(&ports(&["203.0.113.77:41234:1"])).unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot publish 203.0.113.77:41234:1: the host has no such address, see ip address"
        );
    }

    #[test]
    fn passts_words_are_traced_to_the_port() {
        let ports = ports(&["8080:80", "127.0.0.1:80:80", "127.0.0.1:8099:80/udp"]);
        let error =
            explain("Failed to bind any port for '-u 127.0.0.1/8099:80', exiting", &ports).to_string();
        assert!(error.starts_with("cannot publish 127.0.0.1:8099:80/udp: Failed to bind"), "{error}");
        let error = explain(
            "Failed to bind port 80 (Permission denied) for option '-t 127.0.0.1/80:80', exiting",
            &ports,
        );
        assert!(error.to_string().contains("ip_unprivileged_port_start=80"), "{error}");
        let error = explain("Overlapping port specifier 8080:80", &ports).to_string();
        assert!(error.starts_with("cannot publish 8080:80: Overlapping"), "{error}");
        assert_eq!(
            explain("External interface not usable", &ports).to_string(),
            "passt, which makes the user network, ended at once: External interface not usable"
        );
    }
}
