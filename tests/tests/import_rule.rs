//! Who may import whom, as `docs/architecture.md` draws it.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

/// A crate of ours, and those of ours that it may import.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("weir-abi", &[]),
    ("weir-mesh", &[]),
    ("weir-programs", &["weir-abi"]),
    ("weir-loader", &["weir-abi", "weir-mesh"]),
    ("weir-proxy", &["weir-mesh"]),
    ("weir-dns", &["weir-mesh"]),
    ("weir", &["weir-dns", "weir-loader", "weir-mesh", "weir-proxy"]),
];

/// These see everything.
const OUTSIDE: &[&str] = &["weir-tests", "weir-fuzz", "weir-bench"];

fn imports(manifest: &str) -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--manifest-path", manifest])
        .output()
        .expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata");
    let packages = metadata["packages"].as_array().expect("cargo metadata");
    packages
        .iter()
        .map(|package| {
            let name = package["name"].as_str().expect("cargo metadata").to_owned();
            let dependencies = package["dependencies"].as_array().expect("cargo metadata").iter();
            let ours = dependencies
                .map(|dependency| dependency["name"].as_str().expect("cargo metadata").to_owned())
                .filter(|name| name == "weir" || name.starts_with("weir-"))
                .collect();
            (name, ours)
        })
        .collect()
}

#[test]
fn nobody_imports_what_the_house_forbids() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let mut all = imports(&format!("{root}/Cargo.toml"));
    all.extend(imports(&format!("{root}/ebpf/programs/Cargo.toml")));
    let rules: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    assert!(all.len() >= 7, "the search found too few crates: {all:?}");
    for (name, ours) in &all {
        if OUTSIDE.contains(&name.as_str()) {
            continue;
        }
        let allowed = rules.get(name.as_str());
        let allowed = allowed.unwrap_or_else(|| panic!("crate {name} has no line in this test"));
        for import in ours {
            assert!(allowed.contains(&import.as_str()), "{name} must not import {import}");
        }
    }
}
