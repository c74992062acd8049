//! DNS servers with the same names, and what `dnsperf` sees of them.

pub mod ask;
pub mod checker;
pub mod others;
pub mod perf;
pub mod server;
pub mod upstream;
pub mod weir;

use std::{fmt::Write as _, fs, net::Ipv4Addr, path::Path};

use anyhow::Result;

pub use server::{Kind, Server};

/// Addresses of the name with many.
const MANY: u32 = 64;
/// The domain of the names that all servers know.
pub const DOMAIN: &str = "weir";
/// The domain of the names that all servers must ask for.
pub const ELSEWHERE: &str = "example.net";

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What it shows.
    pub title: &'static str,
    /// The file of questions.
    pub file: &'static str,
    /// Over TCP.
    pub tcp: bool,
    /// The code that every answer must have.
    pub code: &'static str,
    /// Names that others know: only for servers that ask others.
    pub forwarded: Forwarded,
}

/// Whether somebody else is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// Nobody.
    No,
    /// Once; then the answer is in the cache.
    Cached,
    /// For every question: no name is asked for twice.
    Always,
}

impl Case {
    /// Names that are there: what goals are about.
    pub const THERE: Self = Self {
        title: "names that are there",
        file: "there",
        tcp: false,
        code: "NOERROR",
        forwarded: Forwarded::No,
    };

    /// All.
    pub const ALL: &[Self] = &[
        Self::THERE,
        Self {
            title: "names that are not there",
            file: "nowhere",
            code: "NXDOMAIN",
            ..Self::THERE
        },
        Self { title: "64 addresses", file: "many", ..Self::THERE },
        Self { title: "names of addresses (PTR)", file: "reverse", ..Self::THERE },
        Self { title: "names that are there, over TCP", tcp: true, ..Self::THERE },
        Self {
            title: "forwarded, in the cache",
            file: "elsewhere",
            forwarded: Forwarded::Cached,
            ..Self::THERE
        },
        Self {
            title: "forwarded, never in the cache",
            file: "",
            forwarded: Forwarded::Always,
            ..Self::THERE
        },
    ];
}

/// The address of the single name with this number.
pub fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 0, 0)) + number)
}

/// The addresses of the name with many.
pub fn many() -> impl Iterator<Item = Ipv4Addr> {
    (1..=MANY).map(|number| Ipv4Addr::new(10, 63, 0, number as u8))
}

/// Addresses of all names: of the single ones, then of the one with many.
pub fn records(names: usize) -> impl Iterator<Item = (String, Ipv4Addr)> {
    let single = (0..names as u32).map(|number| (format!("s{number}.{DOMAIN}"), address(number)));
    single.chain(many().map(|address| (format!("many.{DOMAIN}"), address)))
}

/// Writes what is asked, in an order that no server could foresee.
pub fn queries(files: &Path, names: usize) -> Result<()> {
    let [mut there, mut nowhere, mut reverse, mut elsewhere] = [const { String::new() }; 4];
    for at in 0..names {
        // Coprime to every number of names that is a power of ten.
        let name = at * 7919 % names;
        let [a, b, c, d] = address(name as u32).octets();
        writeln!(there, "s{name}.{DOMAIN} A")?;
        writeln!(nowhere, "n{name}.{DOMAIN} A")?;
        writeln!(reverse, "{d}.{c}.{b}.{a}.in-addr.arpa PTR")?;
        writeln!(elsewhere, "c{}.{ELSEWHERE} A", name % 1000)?;
    }
    fs::write(files.join("there"), there)?;
    fs::write(files.join("nowhere"), nowhere)?;
    fs::write(files.join("reverse"), reverse)?;
    fs::write(files.join("elsewhere"), elsewhere)?;
    fs::write(files.join("many"), format!("many.{DOMAIN} A\n"))?;
    Ok(())
}

/// Writes so many names that nobody has asked for before, and answers the file's name.
pub fn unheard(files: &Path, count: usize) -> Result<String> {
    static ROUND: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let round = ROUND.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut text = String::with_capacity(count * 24);
    for at in 0..count {
        writeln!(text, "u{round}-{at}.{ELSEWHERE} A")?;
    }
    // One file at a time is in use, and they are large.
    let name = format!("unheard-{}", round % 4);
    fs::write(files.join(&name), text)?;
    Ok(name)
}
