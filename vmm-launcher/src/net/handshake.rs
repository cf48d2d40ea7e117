//! The last step of a TCP handshake, which passt leaves out.
//!
//! When somebody connects to a published port, passt (of early 2023, Debian 12's) takes the guest's SYN,ACK and
//! answers it only with the client's first data. A server that speaks first, such as sshd, would wait for its client
//! for ever. The acknowledgement that is missing carries nothing that the SYN,ACK does not say, so it is made here;
//! where passt sends it too, the second one is an ordinary duplicate. Pure functions.

use super::frame::ETHERNET_BYTES;

const IPV4_BYTES: usize = 20;
const TCP_BYTES: usize = 20;
const FLAGS_AT: usize = 13;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
/// Bytes that the peer may send before passt says how many: one small segment.
const WINDOW: u16 = 256;

/// The answer to `frame` if that is a SYN,ACK over IPv4 without options. The caller has read the frame before.
#[must_use]
pub fn completing_ack(frame: &[u8]) -> Option<Vec<u8>> {
    let ethernet = frame.get(..ETHERNET_BYTES)?;
    let ip = frame.get(ETHERNET_BYTES..)?.get(..IPV4_BYTES)?;
    let tcp = frame.get(ETHERNET_BYTES + IPV4_BYTES..)?.get(..TCP_BYTES)?;
    if *ip.first()? != 0x45 || tcp.get(FLAGS_AT)? & 0x3f != SYN_ACK {
        return None;
    }
    let sequence = u32::from_be_bytes(*tcp.get(4..)?.first_chunk()?);
    let segment = {
        let mut segment = Vec::with_capacity(TCP_BYTES);
        segment.extend(tcp.get(2..4)?);
        segment.extend(tcp.get(..2)?);
        segment.extend(tcp.get(8..12)?);
        segment.extend(sequence.wrapping_add(1).to_be_bytes());
        segment.extend([0x50, ACK]);
        segment.extend(WINDOW.to_be_bytes());
        segment.extend([0; 4]);
        segment
    };
    let (source, destination) = (ip.get(16..20)?, ip.get(12..16)?);
    let total = (IPV4_BYTES + TCP_BYTES) as u16;
    let mut header = vec![0x45, 0];
    header.extend(total.to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    header.extend(source);
    header.extend(destination);
    let pseudo = [source, destination, &[0, 6], &(TCP_BYTES as u16).to_be_bytes()].concat();
    let mut answer = Vec::with_capacity(ETHERNET_BYTES + IPV4_BYTES + TCP_BYTES);
    answer.extend(ethernet.get(6..12)?);
    answer.extend(ethernet.get(..6)?);
    answer.extend(ethernet.get(12..14)?);
    answer.extend(with_checksum(header, 10, &[]));
    answer.extend(with_checksum(segment, 16, &pseudo));
    Some(answer)
}

/// Puts the Internet checksum (RFC 1071) of `prefix` and `bytes` into `bytes` at an even offset.
fn with_checksum(mut bytes: Vec<u8>, at: usize, prefix: &[u8]) -> Vec<u8> {
    let word = |pair: &[u8]| {
        u32::from(pair.first().copied().unwrap_or(0)) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))
    };
    let mut sum: u32 = prefix.chunks(2).chain(bytes.chunks(2)).map(word).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    if let Some(slot) = bytes.get_mut(at..at + 2) {
        slot.copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::frame::tests::{MAC, packet, tcp};
    use super::super::frame::{Body, Payload, read};
    use super::*;

    fn sum(bytes: &[u8]) -> u16 {
        let mut sum: u32 = bytes.chunks(2).map(|p| u32::from(p[0]) << 8 | u32::from(p[1])).sum();
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum as u16
    }

    #[test]
    fn a_syn_ack_gets_the_acknowledgement_that_ends_the_handshake() {
        let mut segment = tcp(22, 40_000, SYN_ACK);
        segment[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        segment[8..12].copy_from_slice(&[1, 2, 3, 4]);
        let frame = packet([198, 19, 255, 2], [198, 19, 255, 1], 6, &segment);
        let answer = completing_ack(&frame).unwrap();
        assert_eq!(&answer[..6], MAC);
        let Ok(super::super::frame::Frame { body: Body::Ipv4 { source, destination, payload }, .. }) =
            read(&answer)
        else {
            panic!("{answer:?}")
        };
        assert_eq!((source.octets(), destination.octets()), ([198, 19, 255, 1], [198, 19, 255, 2]));
        assert_eq!(payload, Payload::Tcp { source: 40_000, destination: 22, acknowledges: true });
        // Acknowledges the SYN, whose number wraps; continues where the peer said.
        assert_eq!(answer[38..46], [1, 2, 3, 4, 0, 0, 0, 0]);
        // A correct checksum makes the sum all ones.
        assert_eq!(sum(&answer[14..34]), 0xffff);
        let pseudo = [&answer[26..34], &[0, 6, 0, 20], &answer[34..]].concat();
        assert_eq!(sum(&pseudo), 0xffff);
    }

    #[test]
    fn other_frames_are_not_answered() {
        for flags in [0x02, 0x10, 0x11, 0x14, 0x16] {
            let frame = packet([1, 1, 1, 1], [2, 2, 2, 2], 6, &tcp(1, 2, flags));
            assert_eq!(completing_ack(&frame), None, "{flags:#x}");
        }
        let frame = packet([1, 1, 1, 1], [2, 2, 2, 2], 6, &tcp(1, 2, SYN_ACK));
        for len in 0..frame.len() {
            assert_eq!(completing_ack(&frame[..len]), None);
        }
    }
}
