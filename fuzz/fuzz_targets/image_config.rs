//! Image configs: as many diff_ids as layers, strings that can become arguments.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_puller::config::ConfigDocument;

fuzz_target!(|input: (u8, &[u8])| {
    let (layers, bytes) = (usize::from(input.0 % 4), input.1);
    if let Ok(document) = ConfigDocument::parse(bytes, layers) {
        assert_eq!(document.diff_ids.len(), layers);
        let config = &document.config;
        let strings =
            config.entrypoint.iter().chain(&config.cmd).chain(&config.env).chain([&config.working_dir]);
        assert!(strings.into_iter().all(|text| !text.contains('\0')));
    }
});
