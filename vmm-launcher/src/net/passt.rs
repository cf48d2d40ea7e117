//! passt(1) as a child: its options, and proof that it answers.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::frame::arp_request;
use super::{DNS, GATEWAY, GUEST_ADDRESS, GUEST_MAC, MTU, NetError, PREFIX, Transport, UserNet};
use crate::vmm::{Console, Process, find_program};

/// The program, looked up in `PATH`.
pub const PASST: &str = "passt";
/// passt's own hardware address. Given, it needs no interface of the host to take one from.
const GATEWAY_MAC: &str = "02:6e:61:63:72:01";
/// How long passt may take to answer for the gateway.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// What passt says when the system has no log to send to.
const NOISE: &str = "to syslog";

/// passt, running. It ends by itself when its socket closes.
pub struct Passt {
    _process: Process,
}

impl Passt {
    /// Starts it and waits until it answers an ARP request. Returns our end of its frame socket.
    pub fn start(config: &UserNet) -> Result<(Passt, UnixStream), NetError> {
        let program = find_program(PASST).ok_or(NetError::NoPasst)?;
        let setup = |what| move |source| NetError::Setup(what, source);
        let (ours, theirs) = UnixStream::pair().map_err(setup("cannot make a socket"))?;
        let theirs = OwnedFd::from(theirs);
        let (errors, to_errors) = std::io::pipe().map_err(setup("cannot make a pipe"))?;
        let mut command = Command::new(program);
        command.args(arguments(config, has_default_route())).arg("--fd").arg(theirs.as_raw_fd().to_string());
        command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(to_errors);
        let process = Process::spawn(command, vec![theirs]).map_err(setup("cannot start passt"))?;
        let (said, reader) =
            Console::collect("nacre-passt", errors, None).map_err(setup("cannot start a thread"))?;
        match ask_for_gateway(&ours) {
            Ok(()) => Ok((Passt { _process: process }, ours)),
            Err(error) => {
                process.kill();
                let _ = reader.join();
                let lines = said.last_lines(20).into_iter().filter(|line| !line.contains(NOISE));
                let lines: Vec<String> = lines.collect();
                Err(NetError::Passt(format!("{error}: {}", lines.join("; "))))
            }
        }
    }
}

/// Every address is given, so that nothing of the host shows and the same things work without a network.
fn arguments(config: &UserNet, default_route: bool) -> Vec<String> {
    let mut args: Vec<String> =
        ["--foreground", "--stderr", "--quiet", "--ipv4-only", "--no-dhcp", "--no-ra"]
            .map(str::to_owned)
            .into();
    let mut pair = |option: &str, value: String| args.extend([option.to_owned(), value]);
    pair("--address", GUEST_ADDRESS.to_string());
    pair("--netmask", PREFIX.to_string());
    pair("--gateway", GATEWAY.to_string());
    pair("--dns-forward", DNS.to_string());
    pair("--mac-addr", GATEWAY_MAC.to_owned());
    pair("--mtu", MTU.to_string());
    if !default_route {
        // passt insists on an interface; without a route out, the host's loopback is all there is.
        pair("--interface", "lo".to_owned());
    }
    for (option, protocol) in [("--tcp-ports", Transport::Tcp), ("--udp-ports", Transport::Udp)] {
        let ports: Vec<_> = config.publish.iter().filter(|port| port.protocol == protocol).collect();
        // Left out, UDP follows TCP.
        if ports.is_empty() {
            pair(option, "none".to_owned());
        }
        for port in ports {
            let address =
                if port.address.is_unspecified() { String::new() } else { format!("{}/", port.address) };
            pair(option, format!("{address}{}:{}", port.host, port.guest));
        }
    }
    args
}

/// Whether some interface has a default route (proc_pid_net(5): destination and mask zero).
fn has_default_route() -> bool {
    let table = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some("00000000") && fields.nth(5) == Some("00000000")
    })
}

fn ask_for_gateway(mut socket: &UnixStream) -> std::io::Result<()> {
    let request = arp_request(GUEST_MAC, GUEST_ADDRESS, GATEWAY);
    let length = u32::try_from(request.len()).unwrap_or(0);
    socket.set_read_timeout(Some(ANSWER_LIMIT))?;
    socket.write_all(&[&length.to_be_bytes()[..], &request].concat())?;
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let mut answer = vec![0; u32::from_be_bytes(length).min(1 << 16) as usize];
    socket.read_exact(&mut answer)?;
    socket.set_read_timeout(None)
}

#[cfg(test)]
mod tests {
    use super::super::PublishedPort;
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn ports_become_options() {
        let port = |address: [u8; 4], host, guest, protocol| PublishedPort {
            address: Ipv4Addr::from(address),
            host,
            guest,
            protocol,
        };
        let config = UserNet {
            publish: vec![
                port([0, 0, 0, 0], 8080, 80, Transport::Tcp),
                port([127, 0, 0, 1], 8443, 443, Transport::Tcp),
            ],
            ..UserNet::default()
        };
        let line = arguments(&config, true).join(" ");
        assert!(
            line.contains("--tcp-ports 8080:80 --tcp-ports 127.0.0.1/8443:443 --udp-ports none"),
            "{line}"
        );
        assert!(!line.contains("--interface"), "{line}");
        let line = arguments(&UserNet::default(), false).join(" ");
        assert!(line.contains("--interface lo --tcp-ports none --udp-ports none"), "{line}");
    }
}
