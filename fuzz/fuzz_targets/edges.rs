//! Frames of the guest's own edges, from a peer that is compromised: decoding never panics and takes no more memory than the frame
//! is worth, and what decodes is the same after being encoded again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_protocols::frame::{FrameError, decode, encode};
use nacre_protocols::{agent_init, agent_puller, fetcher_indexer, init_launcher};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8], limit: usize) {
    let Ok(value) = decode::<T>(bytes, limit) else { return };
    match encode(&value, limit) {
        Ok(again) => assert_eq!(decode::<T>(&again, limit).expect("what was encoded"), value),
        // Numbers may be written longer than they need, never shorter.
        Err(error) => assert_eq!(error, FrameError::TooLong { limit }),
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((edge, bytes)) = data.split_first() else { return };
    match edge % 8 {
        0 => check::<agent_init::Request>(bytes, agent_init::FRAME_MAX),
        1 => check::<agent_init::FromInit>(bytes, agent_init::FRAME_MAX),
        2 => check::<init_launcher::Status>(bytes, init_launcher::STATUS_MAX),
        3 => check::<agent_puller::Opening>(bytes, agent_puller::OPENING_MAX),
        4 => check::<agent_puller::Request>(bytes, agent_puller::FRAME_MAX),
        5 => check::<agent_puller::Reply>(bytes, agent_puller::FRAME_MAX),
        6 => check::<fetcher_indexer::IndexLayer>(bytes, fetcher_indexer::FRAME_MAX),
        _ => check::<fetcher_indexer::Reply>(bytes, fetcher_indexer::FRAME_MAX),
    }
});
