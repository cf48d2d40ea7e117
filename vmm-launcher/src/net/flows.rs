//! Who of the host has spoken to the guest by UDP, so that the guest may answer, and only answer.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long an answer may take (passt forgets a flow after the same time).
const FLOW_TIME: Duration = Duration::from_secs(180);
/// Flows at one time.
const MAX_FLOWS: usize = 1024;

/// A datagram's other end and the guest's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    pub peer: Ipv4Addr,
    pub peer_port: u16,
    pub guest_port: u16,
}

/// The flows that are alive.
#[derive(Default)]
pub struct Flows {
    seen: HashMap<Flow, Instant>,
}

impl Flows {
    /// Somebody has spoken to the guest.
    pub fn record(&mut self, flow: Flow, now: Instant) {
        if self.seen.len() >= MAX_FLOWS && !self.seen.contains_key(&flow) {
            self.seen.retain(|_, last| now.duration_since(*last) < FLOW_TIME);
            if self.seen.len() >= MAX_FLOWS {
                return;
            }
        }
        self.seen.insert(flow, now);
    }

    /// Whether the guest's datagram is an answer.
    #[must_use]
    pub fn allows(&self, flow: &Flow, now: Instant) -> bool {
        self.seen.get(flow).is_some_and(|last| now.duration_since(*last) < FLOW_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_allowed_for_a_while() {
        let flow = |peer_port| Flow { peer: Ipv4Addr::LOCALHOST, peer_port, guest_port: 53 };
        let mut flows = Flows::default();
        let start = Instant::now();
        flows.record(flow(1), start);
        assert!(flows.allows(&flow(1), start + Duration::from_secs(179)));
        assert!(!flows.allows(&flow(1), start + Duration::from_secs(181)));
        assert!(!flows.allows(&flow(2), start));
        for port in 0..3000 {
            flows.record(flow(port), start);
        }
        assert_eq!(flows.seen.len(), MAX_FLOWS);
        flows.record(flow(9999), start + Duration::from_secs(200));
        assert!(flows.allows(&flow(9999), start + Duration::from_secs(200)));
    }
}
