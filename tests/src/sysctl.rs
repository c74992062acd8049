//! `/proc/sys/net` of a namespace: the kernel shows the values of the thread that opens the file.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::netns::Netns;

impl Netns {
    /// Sets `net.*` values, for example `("ipv4/ip_forward", "1")`.
    pub fn sysctl<K: AsRef<str> + Sync>(&self, values: &[(K, &str)]) -> Result<()> {
        self.run(|| values.iter().try_for_each(|(key, value)| write(key.as_ref(), value)))
    }
}

fn write(key: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(key);
    fs::write(&path, value).with_context(|| format!("write {value:?} to {}", path.display()))
}
