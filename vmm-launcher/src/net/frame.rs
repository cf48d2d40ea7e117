//! Reading Ethernet frames: just enough of ARP, IPv4, TCP and UDP to judge where one goes. Pure functions.
//!
//! A frame that is not fully understood has no reading; the caller drops it.

use std::net::Ipv4Addr;

/// Bytes of an Ethernet header.
pub const ETHERNET_BYTES: usize = 14;
const ARP_BYTES: usize = 28;
const ARP_REQUEST: u16 = 1;
const IPV4_BYTES: usize = 20;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// A frame as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub source_mac: [u8; 6],
    pub body: Body,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    ArpRequest { sender: Ipv4Addr },
    Ipv4 { source: Ipv4Addr, destination: Ipv4Addr, payload: Payload },
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    Tcp { source: u16, destination: u16, acknowledges: bool },
    Udp { source: u16, destination: u16 },
    IcmpEcho,
}

/// Why a frame has no reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    TooShort,
    EtherType,
    Arp,
    Ipv4Header,
    Fragment,
    Protocol,
}

/// Reads one frame.
///
/// # Errors
/// What is not, or not completely, of the kinds above.
pub fn read(bytes: &[u8]) -> Result<Frame, Unreadable> {
    let source_mac = *bytes.get(6..).and_then(<[u8]>::first_chunk).ok_or(Unreadable::TooShort)?;
    let body = bytes.get(ETHERNET_BYTES..).ok_or(Unreadable::TooShort)?;
    let body = match word(bytes, 12).ok_or(Unreadable::TooShort)? {
        ETHERTYPE_ARP => read_arp(body)?,
        ETHERTYPE_IPV4 => read_ipv4(body)?,
        _ => return Err(Unreadable::EtherType),
    };
    Ok(Frame { source_mac, body })
}

/// RFC 826, for Ethernet and IPv4 only.
fn read_arp(bytes: &[u8]) -> Result<Body, Unreadable> {
    let arp = bytes.get(..ARP_BYTES).ok_or(Unreadable::Arp)?;
    // Hardware type 1, protocol type IPv4, lengths 6 and 4.
    if arp.get(..6) != Some(&[0, 1, 8, 0, 6, 4]) || word(arp, 6) != Some(ARP_REQUEST) {
        return Err(Unreadable::Arp);
    }
    Ok(Body::ArpRequest { sender: address(arp, 14).ok_or(Unreadable::Arp)? })
}

/// RFC 791. Fragments are refused: only the first would show its ports.
fn read_ipv4(bytes: &[u8]) -> Result<Body, Unreadable> {
    let first = *bytes.first().ok_or(Unreadable::Ipv4Header)?;
    let header_len = usize::from(first & 0x0f) * 4;
    let total_len = usize::from(word(bytes, 2).ok_or(Unreadable::Ipv4Header)?);
    if first >> 4 != 4 || header_len < IPV4_BYTES || total_len < header_len || total_len > bytes.len() {
        return Err(Unreadable::Ipv4Header);
    }
    // The bit for more fragments, and the offset.
    if word(bytes, 6).is_none_or(|flags| flags & 0x3fff != 0) {
        return Err(Unreadable::Fragment);
    }
    let source = address(bytes, 12).ok_or(Unreadable::Ipv4Header)?;
    let destination = address(bytes, 16).ok_or(Unreadable::Ipv4Header)?;
    let inner = bytes.get(header_len..total_len).ok_or(Unreadable::Ipv4Header)?;
    let payload = match bytes.get(9) {
        Some(&PROTOCOL_TCP) => read_tcp(inner)?,
        Some(&PROTOCOL_UDP) => read_udp(inner)?,
        // Echo request, code 0.
        Some(&PROTOCOL_ICMP) if inner.len() >= 8 && inner.first_chunk() == Some(&[8, 0]) => Payload::IcmpEcho,
        _ => return Err(Unreadable::Protocol),
    };
    Ok(Body::Ipv4 { source, destination, payload })
}

fn read_tcp(bytes: &[u8]) -> Result<Payload, Unreadable> {
    const ACK: u8 = 0x10;
    if bytes.len() < 20 {
        return Err(Unreadable::Protocol);
    }
    let source = word(bytes, 0).ok_or(Unreadable::Protocol)?;
    let destination = word(bytes, 2).ok_or(Unreadable::Protocol)?;
    let flags = *bytes.get(13).ok_or(Unreadable::Protocol)?;
    Ok(Payload::Tcp { source, destination, acknowledges: flags & ACK != 0 })
}

fn read_udp(bytes: &[u8]) -> Result<Payload, Unreadable> {
    if bytes.len() < 8 {
        return Err(Unreadable::Protocol);
    }
    let source = word(bytes, 0).ok_or(Unreadable::Protocol)?;
    let destination = word(bytes, 2).ok_or(Unreadable::Protocol)?;
    Ok(Payload::Udp { source, destination })
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|two| u16::from_be_bytes(*two))
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    bytes.get(at..)?.first_chunk::<4>().map(|four| Ipv4Addr::from(*four))
}

/// An ARP request from `mac`/`sender` for `target`, to everybody.
#[must_use]
pub fn arp_request(mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend(ETHERTYPE_ARP.to_be_bytes());
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    /// An Ethernet frame with an IPv4 packet.
    pub fn packet(source: [u8; 4], destination: [u8; 4], protocol: u8, inner: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 6];
        frame.extend(MAC);
        frame.extend(ETHERTYPE_IPV4.to_be_bytes());
        frame.extend([0x45, 0]);
        frame.extend((20 + inner.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend(source);
        frame.extend(destination);
        frame.extend(inner);
        frame
    }

    pub fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend(source.to_be_bytes());
        segment.extend(destination.to_be_bytes());
        segment.extend([0; 8]);
        segment.extend([0x50, flags]);
        segment.extend([0; 6]);
        segment
    }

    pub fn udp(source: u16, destination: u16) -> Vec<u8> {
        let mut datagram = Vec::new();
        datagram.extend(source.to_be_bytes());
        datagram.extend(destination.to_be_bytes());
        datagram.extend([0, 8, 0, 0]);
        datagram
    }

    #[test]
    fn a_frame_is_read_or_its_fault_named() {
        let good = packet([10, 0, 0, 1], [10, 0, 0, 2], 6, &tcp(1, 2, 0x10));
        let edit = |change: fn(&mut Vec<u8>)| {
            let mut frame = good.clone();
            change(&mut frame);
            read(&frame).map(|frame| frame.body)
        };
        let (source, destination) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let payload = Payload::Tcp { source: 1, destination: 2, acknowledges: true };
        let expected = Body::Ipv4 { source, destination, payload };
        assert_eq!(read(&good), Ok(Frame { source_mac: MAC, body: expected }));
        type Case = (fn(&mut Vec<u8>), Result<Body, Unreadable>);
        let cases: &[Case] = &[
            // Ethernet pads short frames: bytes after the packet do not matter.
            (|f| f.extend([0; 10]), Ok(expected)),
            (|f| f.truncate(13), Err(Unreadable::TooShort)),
            (|f| f.clear(), Err(Unreadable::TooShort)),
            (|f| f[12..14].copy_from_slice(&[0x86, 0xdd]), Err(Unreadable::EtherType)),
            (|f| f[12..14].copy_from_slice(&[0x81, 0x00]), Err(Unreadable::EtherType)),
            (|f| f[14] = 0x65, Err(Unreadable::Ipv4Header)),
            (|f| f[14] = 0x44, Err(Unreadable::Ipv4Header)),
            (|f| f[14] = 0x4f, Err(Unreadable::Ipv4Header)),
            (|f| f[16..18].copy_from_slice(&[0xff, 0xff]), Err(Unreadable::Ipv4Header)),
            (|f| f[17] = 19, Err(Unreadable::Ipv4Header)),
            (|f| f.truncate(30), Err(Unreadable::Ipv4Header)),
            (|f| f[20] = 0x20, Err(Unreadable::Fragment)),
            (|f| f[21] = 1, Err(Unreadable::Fragment)),
            (|f| f[17] = 39, Err(Unreadable::Protocol)),
            (|f| f[23] = 41, Err(Unreadable::Protocol)),
            (|f| f[23] = 1, Err(Unreadable::Protocol)),
        ];
        for (number, (change, expected)) in cases.iter().enumerate() {
            assert_eq!(edit(*change), *expected, "case {number}");
        }
    }

    #[test]
    fn ports_behind_options_are_found() {
        let mut frame = packet([10, 0, 0, 1], [10, 0, 0, 2], 17, &[]);
        frame[14] = 0x46;
        frame[17] = 32;
        frame.extend([1, 1, 1, 1]);
        frame.extend(udp(7, 8));
        let Ok(Frame { body: Body::Ipv4 { payload, .. }, .. }) = read(&frame) else { panic!() };
        assert_eq!(payload, Payload::Udp { source: 7, destination: 8 });
    }

    #[test]
    fn our_own_arp_request_is_readable() {
        let sender = Ipv4Addr::new(1, 2, 3, 4);
        let frame = arp_request(MAC, sender, Ipv4Addr::new(1, 2, 3, 1));
        assert_eq!(read(&frame), Ok(Frame { source_mac: MAC, body: Body::ArpRequest { sender } }));
        assert_eq!(read(&frame[..40]), Err(Unreadable::Arp));
        let mut reply = frame;
        reply[21] = 2;
        assert_eq!(read(&reply), Err(Unreadable::Arp));
    }
}
