//! Image references: what is accepted is complete, and reads back as itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_puller::reference::Reference;

fuzz_target!(|text: &str| {
    if let Ok(reference) = Reference::parse(text) {
        assert_eq!(Reference::parse(&reference.to_string()), Ok(reference.clone()));
        assert!(reference.tag.is_some() || reference.digest.is_some());
        assert!(!reference.path.contains("..") && !reference.path.starts_with('/'));
        let _ = reference.location().host_and_port();
    }
});
