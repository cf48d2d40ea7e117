//! Any bytes as frames of the host: decoding never panics, and what decodes survives being encoded again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_protocols::host_agent::ttrpc::{
    HEADER_LEN, Header, Request, Response, request_frame, response_frame,
};

fuzz_target!(|data: &[u8]| {
    let Some((head, payload)) = data.split_first_chunk::<HEADER_LEN>() else { return };
    let header = Header::decode(head);
    assert_eq!(header.encode(), *head);
    let _ = header.check();
    if let Ok(request) = Request::from_payload(payload)
        && let Ok(frame) = request_frame(1, &request)
    {
        assert_eq!(Request::from_payload(&frame[HEADER_LEN..]), Ok(request));
    }
    if let Ok(response) = Response::from_payload(payload)
        && let Ok(frame) = response_frame(1, &response)
    {
        assert_eq!(Response::from_payload(&frame[HEADER_LEN..]), Ok(response));
    }
});
