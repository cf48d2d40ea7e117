//! A vsock header of the guest: it survives the wire, and what is accepted keeps within its limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre::devices::vsock::packet::{HEADER_BYTES, HOST_CID, Header, MAX_PAYLOAD_BYTES};

const GUEST_CID: u64 = 3;

fuzz_target!(|bytes: &[u8]| {
    let Some((head, payload)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return };
    let header = Header::decode(head);
    assert_eq!(header.encode(), *head);
    if header.check(GUEST_CID, payload.len()).is_ok() {
        assert_eq!((header.src_cid, header.dst_cid), (GUEST_CID, HOST_CID));
        assert!(header.len <= MAX_PAYLOAD_BYTES && header.len as usize <= payload.len());
    }
});
