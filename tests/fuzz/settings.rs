//! `weir.toml`: whatever it says, it is taken or refused with at least one reason.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use weir::config::{Overrides, Settings};

fuzz_target!(|text: &str| {
    if let Err(faults) =
        Settings::read(Path::new("/etc/weir/weir.toml"), text, &Overrides::default())
    {
        assert!(!faults.is_empty(), "refused without a reason");
        for fault in faults {
            assert!(!fault.problem.is_empty() && !fault.remedy.is_empty(), "{fault:?}");
        }
    }
});
