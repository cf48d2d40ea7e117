//! A stub resolver: host name to addresses, by the name servers of `/etc/resolv.conf`.
//!
//! A static glibc cannot resolve names without loading libraries at run time, so this asks by itself: RFC 1035 messages
//! over UDP, over TCP when an answer was cut off, A and AAAA side by side, aliases (CNAME) followed inside one answer
//! as a recursive server gives them. No cache, no DNSSEC: what is fetched is checked by TLS and by digest.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// As resolv.conf(5) has it.
pub const NAME_SERVERS_MAX: usize = 3;
pub const SEARCH_DOMAINS_MAX: usize = 6;
/// Most bytes of resolv.conf that are read.
pub const RESOLV_CONF_BYTES_MAX: u64 = 64 << 10;
/// Longest name in wire form, bytes (RFC 1035 section 2.3.4).
const NAME_BYTES_MAX: usize = 255;
/// What answers over UDP may be long in bytes: what crosses every path in one piece (RFC 9715 section 3).
const UDP_ANSWER_BYTES_MAX: u16 = 1232;
/// Most records of an answer that are looked at.
const RECORDS_MAX: usize = 256;
/// Most aliases that are followed.
const ALIASES_MAX: usize = 16;
/// Most addresses that are kept of each family.
const ADDRESSES_MAX: usize = 16;
/// Times every server is asked.
const ROUNDS_MAX: u32 = 2;
/// What the second family's answer is waited for when the first one brought addresses.
const OTHER_FAMILY_PATIENCE: Duration = Duration::from_millis(300);

/// FORMERR or NOTIMP: what servers from before EDNS say to it.
const UNKNOWN_FORM: &str = "FORMERR";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolverConfig {
    pub servers: Vec<SocketAddr>,
    pub search: Vec<String>,
    /// Names with fewer dots than this are tried with the search domains first.
    pub ndots: usize,
    /// What each question is waited for.
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("no name server is known: /etc/resolv.conf lists none")]
    NoServers,
    #[error("is not a valid host name")]
    Name,
    #[error("no such host")]
    NoSuchHost,
    #[error("the host has no address")]
    NoAddress,
    #[error("the name server {0} answered with {1}")]
    Refused(SocketAddr, &'static str),
    #[error("the name server {0} gives no usable answer: {1}")]
    NoAnswer(SocketAddr, String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// What one answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Possibly none: the name exists without this family.
    Addresses(Vec<IpAddr>),
    NoSuchName,
    /// To be asked again over TCP.
    Truncated,
    ServerFailure(&'static str),
}

impl ResolverConfig {
    /// Reads resolv.conf(5). Lines that say nothing of use are passed over, as every resolver does.
    pub fn parse(text: &str) -> Self {
        let mut config =
            Self { servers: Vec::new(), search: Vec::new(), ndots: 1, timeout: Duration::from_secs(3) };
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    let room = config.servers.len() < NAME_SERVERS_MAX;
                    config.servers.extend(address.filter(|_| room).map(|ip| SocketAddr::new(ip, 53)));
                }
                Some("search" | "domain") => {
                    config.search = words.take(SEARCH_DOMAINS_MAX).map(str::to_owned).collect();
                }
                Some("options") => words.for_each(|word| config.option(word)),
                _ => {}
            }
        }
        config
    }

    fn option(&mut self, word: &str) {
        match word.split_once(':').map(|(name, value)| (name, value.parse::<u64>())) {
            Some(("ndots", Ok(ndots))) => self.ndots = ndots.min(15) as usize,
            Some(("timeout", Ok(seconds))) => self.timeout = Duration::from_secs(seconds.clamp(1, 10)),
            _ => {}
        }
    }

    /// The addresses of a host, IPv4 and IPv6 by turns.
    pub fn lookup(&self, host: &str, random: impl Fn() -> u16) -> Result<Vec<IpAddr>, ResolveError> {
        if self.servers.is_empty() {
            return Err(ResolveError::NoServers);
        }
        let mut outcome = Err(ResolveError::NoSuchHost);
        for name in self.candidates(host) {
            outcome = self.lookup_name(&name, &random);
            if !matches!(outcome, Err(ResolveError::NoSuchHost | ResolveError::NoAddress)) {
                break;
            }
        }
        outcome
    }

    fn candidates(&self, host: &str) -> Vec<String> {
        if let Some(absolute) = host.strip_suffix('.') {
            return vec![absolute.to_owned()];
        }
        let mut names: Vec<String> = self.search.iter().map(|domain| format!("{host}.{domain}")).collect();
        let dots = host.bytes().filter(|&byte| byte == b'.').count();
        let as_it_is = if dots >= self.ndots { 0 } else { names.len() };
        names.insert(as_it_is, host.to_owned());
        names
    }

    fn lookup_name(&self, name: &str, random: &impl Fn() -> u16) -> Result<Vec<IpAddr>, ResolveError> {
        let mut failure = ResolveError::NoSuchHost;
        for _ in 0..ROUNDS_MAX {
            for &server in &self.servers {
                let questions = [Family::V4, Family::V6].map(|family| Question::new(name, family, random()));
                let [Some(v4), Some(v6)] = questions else { return Err(ResolveError::Name) };
                match ask(server, self.timeout, [v4, v6]) {
                    Ok(answers) => match judge(server, answers) {
                        Err(error @ ResolveError::Refused(..)) => failure = error,
                        outcome => return outcome,
                    },
                    Err(error) => failure = ResolveError::NoAnswer(server, error.to_string()),
                }
            }
        }
        Err(failure)
    }
}

/// One question as it goes over the wire.
#[derive(Debug, Clone)]
pub struct Question {
    id: u16,
    family: Family,
    /// Wire form in lower case.
    name: Vec<u8>,
    /// Says that longer answers than RFC 1035's are understood (EDNS, RFC 6891). A server that does not know it is asked
    /// again without.
    extended: bool,
}

impl Question {
    pub fn new(host: &str, family: Family, id: u16) -> Option<Self> {
        let mut name = Vec::with_capacity(host.len() + 2);
        for label in host.split('.') {
            let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            if !label.bytes().all(allowed) {
                return None;
            }
            name.push(length);
            name.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        name.push(0);
        (name.len() <= NAME_BYTES_MAX).then_some(Self { id, family, name, extended: true })
    }

    fn record_type(&self) -> u16 {
        match self.family {
            Family::V4 => 1,
            Family::V6 => 28,
        }
    }

    /// The query: header with "recursion desired", one question of class IN.
    pub fn encode(&self) -> Vec<u8> {
        let mut packet = self.id.to_be_bytes().to_vec();
        packet.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, u8::from(self.extended)]);
        packet.extend(&self.name);
        packet.extend(self.record_type().to_be_bytes());
        packet.extend([0, 1]);
        if self.extended {
            // The OPT record: the root's name, type 41, the size where others have their class, no flags, no options.
            packet.extend([0, 0, 41]);
            packet.extend(UDP_ANSWER_BYTES_MAX.to_be_bytes());
            packet.extend([0; 6]);
        }
        packet
    }

    /// Reads an answer; `None` if it is malformed or answers something else.
    pub fn parse_answer(&self, packet: &[u8]) -> Option<Answer> {
        let mut reader = Reader { packet, at: 0 };
        let (id, flags) = (reader.u16()?, reader.u16()?);
        let (questions, answers) = (reader.u16()?, reader.u16()?);
        reader.at += 4;
        if id != self.id || flags & 0x8000 == 0 {
            return None;
        }
        if questions == 0 && matches!(flags & 0x000f, 1 | 4) {
            // What cannot be read need not be repeated.
            return Some(Answer::ServerFailure(UNKNOWN_FORM));
        }
        if questions != 1 {
            return None;
        }
        let asked = (reader.name()?, reader.u16()?, reader.u16()?);
        if asked != (self.name.clone(), self.record_type(), 1) {
            return None;
        }
        match flags & 0x000f {
            _ if flags & 0x0200 != 0 => Some(Answer::Truncated),
            0 => self.parse_records(reader, answers),
            3 => Some(Answer::NoSuchName),
            1 | 4 => Some(Answer::ServerFailure(UNKNOWN_FORM)),
            2 => Some(Answer::ServerFailure("SERVFAIL")),
            5 => Some(Answer::ServerFailure("REFUSED")),
            _ => Some(Answer::ServerFailure("an error code")),
        }
    }

    fn parse_records(&self, mut reader: Reader<'_>, count: u16) -> Option<Answer> {
        let mut aliases = Vec::new();
        let mut addresses = Vec::new();
        for _ in 0..usize::from(count).min(RECORDS_MAX) {
            let owner = reader.name()?;
            let (kind, class) = (reader.u16()?, reader.u16()?);
            reader.at += 4;
            let length = usize::from(reader.u16()?);
            let data = reader.packet.get(reader.at..reader.at.checked_add(length)?)?;
            match (kind, class) {
                (5, 1) => aliases.push((owner, Reader { packet: reader.packet, at: reader.at }.name()?)),
                (1, 1) => addresses.push((owner, IpAddr::from(<[u8; 4]>::try_from(data).ok()?))),
                (28, 1) => addresses.push((owner, IpAddr::from(<[u8; 16]>::try_from(data).ok()?))),
                _ => {}
            }
            reader.at += length;
        }
        let mut name = self.name.clone();
        for _ in 0..ALIASES_MAX {
            match aliases.iter().find(|(owner, _)| *owner == name) {
                Some((_, target)) => name.clone_from(target),
                None => break,
            }
        }
        let wanted = |ip: &IpAddr| ip.is_ipv4() == (self.family == Family::V4);
        let own = addresses.into_iter().filter(|(owner, ip)| *owner == name && wanted(ip)).map(|(_, ip)| ip);
        Some(Answer::Addresses(own.take(ADDRESSES_MAX).collect()))
    }
}

struct Reader<'a> {
    packet: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn u8(&mut self) -> Option<u8> {
        let byte = *self.packet.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from(self.u8()?) << 8 | u16::from(self.u8()?))
    }

    /// A name in wire form, lower case, compression (RFC 1035 section 4.1.4) undone. A pointer must lead to before
    /// the part it ends, so that no chain of them is endless.
    fn name(&mut self) -> Option<Vec<u8>> {
        let mut name = Vec::new();
        let mut end_of_name = None;
        let mut part_start = self.at;
        loop {
            match self.u8()? {
                0 => break,
                length @ 1..=63 => {
                    let label = self.packet.get(self.at..self.at + usize::from(length))?;
                    name.push(length);
                    name.extend(label.iter().map(u8::to_ascii_lowercase));
                    self.at += usize::from(length);
                }
                high @ 0xc0.. => {
                    let target = usize::from(high & 0x3f) << 8 | usize::from(self.u8()?);
                    if target >= part_start {
                        return None;
                    }
                    end_of_name.get_or_insert(self.at);
                    (part_start, self.at) = (target, target);
                }
                _ => return None,
            }
            if name.len() >= NAME_BYTES_MAX {
                return None;
            }
        }
        name.push(0);
        self.at = end_of_name.unwrap_or(self.at);
        Some(name)
    }
}

fn judge(server: SocketAddr, answers: [Option<Answer>; 2]) -> Result<Vec<IpAddr>, ResolveError> {
    let mut families: [Vec<IpAddr>; 2] = Default::default();
    let mut outcome = ResolveError::NoAddress;
    for (family, answer) in families.iter_mut().zip(answers) {
        match answer {
            Some(Answer::Addresses(addresses)) => *family = addresses,
            Some(Answer::NoSuchName) => outcome = ResolveError::NoSuchHost,
            Some(Answer::ServerFailure(code)) => outcome = ResolveError::Refused(server, code),
            Some(Answer::Truncated) => outcome = ResolveError::Refused(server, "a cut-off answer over TCP"),
            None => {}
        }
    }
    let [v4, v6] = families;
    let longest = v4.len().max(v6.len());
    let by_turns = (0..longest).flat_map(|i| [v4.get(i).copied(), v6.get(i).copied()]).flatten();
    let addresses: Vec<IpAddr> = by_turns.collect();
    if addresses.is_empty() { Err(outcome) } else { Ok(addresses) }
}

/// Asks both questions at once and waits for both answers; an error only if none came.
fn ask(
    server: SocketAddr,
    timeout: Duration,
    mut questions: [Question; 2],
) -> io::Result<[Option<Answer>; 2]> {
    // Not UdpSocket::bind: connecting picks a random port too, and this process has no bind(2).
    let family = if server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let socket = UdpSocket::from(socket);
    socket.connect(server)?;
    for question in &questions {
        socket.send(&question.encode())?;
    }
    let mut answers = [None, None];
    let mut deadline = Instant::now() + timeout;
    let mut packet = [0; 4096];
    while answers.iter().any(Option::is_none) {
        let left = deadline.saturating_duration_since(Instant::now());
        let received = match left.is_zero() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => socket.set_read_timeout(Some(left)).and_then(|()| socket.recv(&mut packet)),
        };
        let length = match received {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => match answers.iter().all(Option::is_none) {
                true => return Err(error),
                false => break,
            },
        };
        let packet = packet.get(..length).unwrap_or_default();
        for (question, slot) in
            questions.iter_mut().zip(answers.iter_mut()).filter(|(_, slot)| slot.is_none())
        {
            *slot = match question.parse_answer(packet) {
                Some(Answer::Truncated) => Some(ask_tcp(server, timeout, question)?),
                Some(Answer::ServerFailure(UNKNOWN_FORM)) if question.extended => {
                    question.extended = false;
                    socket.send(&question.encode())?;
                    None
                }
                other => other,
            };
            if matches!(slot, Some(Answer::Addresses(addresses)) if !addresses.is_empty()) {
                deadline = deadline.min(Instant::now() + OTHER_FAMILY_PATIENCE);
            }
        }
    }
    Ok(answers)
}

/// RFC 1035 section 4.2.2: the same messages, each behind its length in two bytes.
fn ask_tcp(server: SocketAddr, timeout: Duration, question: &Question) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&server, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let query = question.encode();
    let mut framed = (query.len() as u16).to_be_bytes().to_vec();
    framed.extend(query);
    stream.write_all(&framed)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut packet = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut packet)?;
    question
        .parse_answer(&packet)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed answer over TCP"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Of the record that a question ends with.
    const OPT_BYTES: usize = 11;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// An answer to `question`: names as pointers to the question (offset 12) or to an earlier record.
    fn answer(question: &Question, flags: u16, records: &[Vec<u8>]) -> Vec<u8> {
        let mut packet = Question { extended: false, ..question.clone() }.encode();
        packet[2..4].copy_from_slice(&flags.to_be_bytes());
        packet[7] = records.len() as u8;
        records.iter().for_each(|record| packet.extend(record));
        packet
    }

    fn record(owner: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
        let mut record = owner.to_vec();
        record.extend(kind.to_be_bytes());
        record.extend([0, 1, 0, 0, 0, 60]);
        record.extend((data.len() as u16).to_be_bytes());
        record.extend(data);
        record
    }

    #[test]
    fn resolv_conf_is_read_as_the_manual_says() {
        let text = "# x\nnameserver 10.0.2.3\nnameserver fe80::1%eth0\nnameserver ::1\n nameserver 1.1.1.1\nnameserver 2.2.2.2\n\
                    search a.example b.example\noptions ndots:3 timeout:99 rotate\n";
        let config = ResolverConfig::parse(text);
        let servers = ["10.0.2.3:53", "[::1]:53", "1.1.1.1:53"].map(|text| text.parse().unwrap());
        assert_eq!(config.servers, servers);
        assert_eq!((config.ndots, config.timeout.as_secs()), (3, 10));
        assert_eq!(config.candidates("r.x"), ["r.x.a.example", "r.x.b.example", "r.x"]);
        assert_eq!(config.candidates("a.b.c.d"), ["a.b.c.d", "a.b.c.d.a.example", "a.b.c.d.b.example"]);
        assert_eq!(config.candidates("r."), ["r"]);
        assert_eq!(ResolverConfig::parse("").lookup("a", || 0), Err(ResolveError::NoServers));
    }

    #[test]
    fn answers_yield_the_addresses_of_the_name_that_was_asked() {
        let question = Question::new("Reg.Example", Family::V4, 7).unwrap();
        let direct = record(&[0xc0, 12], 1, &[192, 0, 2, 1]);
        let foreign = record(b"\x04evil\0", 1, &[6, 6, 6, 6]);
        let alias = record(&[0xc0, 12], 5, b"\x03CDN\x01x\0");
        let of_alias = record(b"\x03cdn\x01X\0", 1, &[192, 0, 2, 2]);
        let v6 = record(&[0xc0, 12], 28, &[0; 16]);
        let addresses = |list: &[&str]| Some(Answer::Addresses(list.iter().map(|text| ip(text)).collect()));
        for (flags, records, expected) in [
            (0x8180, vec![direct.clone()], addresses(&["192.0.2.1"])),
            (0x8180, vec![foreign.clone(), direct.clone()], addresses(&["192.0.2.1"])),
            (0x8180, vec![alias.clone(), of_alias.clone()], addresses(&["192.0.2.2"])),
            (0x8180, vec![of_alias, alias.clone(), foreign], addresses(&["192.0.2.2"])),
            (0x8180, vec![v6], addresses(&[])),
            (0x8180, vec![], addresses(&[])),
            (0x8183, vec![], Some(Answer::NoSuchName)),
            (0x8182, vec![], Some(Answer::ServerFailure("SERVFAIL"))),
            (0x8380, vec![direct.clone()], Some(Answer::Truncated)),
            // A query is no answer.
            (0x0100, vec![direct.clone()], None),
            // An address of five bytes.
            (0x8180, vec![record(&[0xc0, 12], 1, &[1, 2, 3, 4, 5])], None),
            // A pointer to itself (the record begins at byte 29), and one forward.
            (0x8180, vec![record(&[0xc0, 29], 1, &[1, 2, 3, 4])], None),
            (0x8180, vec![record(&[0xc0, 40], 1, &[1, 2, 3, 4])], None),
            // An alias of itself.
            (0x8180, vec![record(&[0xc0, 12], 5, &[0xc0, 12]), direct.clone()], addresses(&["192.0.2.1"])),
        ] {
            assert_eq!(question.parse_answer(&answer(&question, flags, &records)), expected, "{records:?}");
        }
        let other_id = Question { id: 8, ..question.clone() };
        assert_eq!(question.parse_answer(&answer(&other_id, 0x8180, std::slice::from_ref(&direct))), None);
        let other_name = Question::new("reg.exampla", Family::V4, 7).unwrap();
        assert_eq!(question.parse_answer(&answer(&other_name, 0x8180, &[])), None);
        let whole = answer(&question, 0x8180, &[direct]);
        for cut in 0..whole.len() {
            assert_eq!(question.parse_answer(&whole[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn names_that_cannot_be_asked_are_refused() {
        for host in ["", ".", "a..b", "a b", "é", &"a".repeat(64), &"aaa.".repeat(64)] {
            assert!(Question::new(host, Family::V4, 0).is_none(), "{host}");
        }
    }

    #[test]
    fn a_cut_off_answer_is_asked_for_again_over_tcp() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(server).unwrap();
        let serve_udp = move || {
            for _ in 0..2 {
                let mut packet = [0; 512];
                let (length, from) = udp.recv_from(&mut packet).unwrap();
                let v6 = packet[length - OPT_BYTES - 3] == 28;
                packet[2] = if v6 { 0x80 } else { 0x82 };
                udp.send_to(&packet[..length], from).unwrap();
            }
        };
        let serve_tcp = move || {
            let (mut stream, _) = tcp.accept().unwrap();
            let mut packet = vec![0; 2];
            stream.read_exact(&mut packet).unwrap();
            packet.resize(2 + usize::from(packet[1]), 0);
            stream.read_exact(&mut packet[2..]).unwrap();
            packet.truncate(packet.len() - OPT_BYTES);
            packet[4] = 0x80;
            (packet[9], packet[13]) = (1, 0);
            packet.extend(record(&[0xc0, 12], 1, &[192, 0, 2, 9]));
            packet[1] = (packet.len() - 2) as u8;
            stream.write_all(&packet).unwrap();
        };
        let threads = [std::thread::spawn(serve_udp), std::thread::spawn(serve_tcp)];
        let config = ResolverConfig {
            servers: vec![server],
            search: vec![],
            ndots: 1,
            timeout: Duration::from_secs(5),
        };
        assert_eq!(config.lookup("reg.example", || 77), Ok(vec![ip("192.0.2.9")]));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_server_from_before_edns_is_asked_again_without() {
        let question = Question::new("reg.example", Family::V4, 7).unwrap();
        let packet = question.encode();
        assert_eq!(packet[packet.len() - OPT_BYTES..], [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let servers = vec![udp.local_addr().unwrap()];
        let thread = std::thread::spawn(move || {
            let mut refused = 0;
            for _ in 0..4 {
                let mut packet = [0; 512];
                let (length, from) = udp.recv_from(&mut packet).unwrap();
                packet[2] = 0x80;
                if packet[11] == 1 {
                    // Of its own accord it says no more than the head.
                    refused += 1;
                    packet[3..12].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0]);
                    udp.send_to(&packet[..12], from).unwrap();
                    continue;
                }
                let mut reply = packet[..length].to_vec();
                if packet[length - 3] == 1 {
                    reply[7] = 1;
                    reply.extend(record(&[0xc0, 12], 1, &[192, 0, 2, 7]));
                }
                udp.send_to(&reply, from).unwrap();
            }
            refused
        });
        let config = ResolverConfig { servers, search: vec![], ndots: 1, timeout: Duration::from_secs(5) };
        let ids = std::cell::Cell::new(0);
        let next = || {
            ids.set(ids.get() + 1);
            ids.get()
        };
        assert_eq!(config.lookup("reg.example", next), Ok(vec![ip("192.0.2.7")]));
        assert_eq!(thread.join().unwrap(), 2);
    }

    #[test]
    fn a_silent_server_is_given_up_and_the_next_one_asked() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let speaking = UdpSocket::bind("127.0.0.1:0").unwrap();
        let servers = vec![silent.local_addr().unwrap(), speaking.local_addr().unwrap()];
        let thread = std::thread::spawn(move || {
            for _ in 0..2 {
                let mut packet = [0; 512];
                let (length, from) = speaking.recv_from(&mut packet).unwrap();
                packet[2] = 0x80;
                packet[3] = 3;
                speaking.send_to(&packet[..length], from).unwrap();
            }
        });
        let config =
            ResolverConfig { servers, search: vec![], ndots: 1, timeout: Duration::from_millis(100) };
        assert_eq!(config.lookup("reg.example", || 77), Err(ResolveError::NoSuchHost));
        thread.join().unwrap();
    }
}
