//! A plan from a compromised agent: decoding and checking it never panics, and what passes keeps to the ceiling.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_launcher::check::{CheckedPlan, check};
use nacre_protocols::frame;
use nacre_protocols::init_launcher::{Mode, PLAN_MAX, Plan};

const CEILING: u64 = 0xa804_25fb;

fuzz_target!(|data: &[u8]| {
    let Ok(plan) = frame::decode::<Plan>(data, PLAN_MAX) else { return };
    for mode in Mode::ALL {
        let process = match check(plan.clone(), mode, CEILING, u32::MAX) {
            Ok(CheckedPlan::Create(plan)) => plan.process.clone(),
            Ok(CheckedPlan::Exec(plan)) => plan.process.clone(),
            _ => continue,
        };
        let sets = process.capabilities;
        assert_eq!((sets.bounding | sets.permitted | sets.effective | sets.ambient) & !CEILING, 0);
    }
});
