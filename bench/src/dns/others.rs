//! How the others are set up: the same names, one thread, and the same server to ask for other names.

use std::{fmt::Write as _, fs, net::SocketAddr, path::Path, process::Command};

use anyhow::Result;

use super::{DOMAIN, records};

/// dnsmasq reads its names from a file in the form of `/etc/hosts`.
pub(super) fn dnsmasq(
    port: u16,
    names: usize,
    upstream: SocketAddr,
    files: &Path,
) -> Result<Command> {
    let hosts: String =
        records(names).map(|(name, address)| format!("{address} {name}\n")).collect();
    let path = files.join(format!("hosts-{names}"));
    fs::write(&path, hosts)?;
    let mut command = Command::new("dnsmasq");
    command
        .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"])
        .args(["--listen-address=127.0.0.1", "--bind-interfaces", "--user=root"])
        .args(["--pid-file=", "--local-ttl=5", "--cache-size=10000", "--dns-forward-max=2000"])
        .arg(format!("--local=/{DOMAIN}/"))
        .arg(format!("--port={port}"))
        .arg(format!("--server={}#{}", upstream.ip(), upstream.port()))
        .arg(format!("--addn-hosts={}", path.display()));
    Ok(command)
}

/// unbound without validation, which weir does not do either.
pub(super) fn unbound(
    port: u16,
    names: usize,
    upstream: SocketAddr,
    files: &Path,
) -> Result<Command> {
    let mut conf = format!(
        "server:\n interface: 127.0.0.1@{port}\n num-threads: 1\n do-daemonize: no\n chroot: \"\"\n \
         username: \"\"\n pidfile: \"\"\n use-syslog: no\n module-config: \"iterator\"\n \
         do-not-query-localhost: no\n outgoing-range: 4096\n num-queries-per-thread: 2048\n \
         local-zone: \"{DOMAIN}.\" static\n local-zone: \"10.in-addr.arpa.\" static\n \
         local-data: \"{DOMAIN}. 5 SOA ns.{DOMAIN}. hostmaster.{DOMAIN}. 1 3600 600 86400 5\"\n"
    );
    for (name, address) in records(names) {
        writeln!(conf, " local-data: \"{name}. 5 A {address}\"")?;
        writeln!(conf, " local-data-ptr: \"{address} 5 {name}\"")?;
    }
    conf.push_str("remote-control:\n control-enable: no\n");
    writeln!(
        conf,
        "forward-zone:\n name: \".\"\n forward-addr: {}@{}",
        upstream.ip(),
        upstream.port()
    )?;
    let path = files.join(format!("unbound-{names}.conf"));
    fs::write(&path, conf)?;
    let mut command = Command::new("unbound");
    command.arg("-d").arg("-c").arg(path);
    Ok(command)
}

/// knot only answers for its own zones.
pub(super) fn knot(port: u16, names: usize, files: &Path) -> Result<Command> {
    let soa = "@ SOA ns.weir. hostmaster.weir. 1 3600 600 86400 5\n@ NS ns.weir.\n";
    let mut zone = format!("$TTL 5\n{soa}ns A 127.0.0.1\n");
    let mut reverse = format!("$TTL 5\n{soa}");
    for (name, address) in records(names) {
        writeln!(zone, "{name}. A {address}")?;
        let [_, b, c, d] = address.octets();
        writeln!(reverse, "{d}.{c}.{b} PTR {name}.")?;
    }
    let directory = files.join(format!("knot-{port}"));
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("weir.zone"), zone)?;
    fs::write(directory.join("reverse.zone"), reverse)?;
    let at = directory.display();
    let conf = format!(
        "server:\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  \
         background-workers: 1\n  rundir: {at}\ndatabase:\n  storage: {at}\n\
         zone:\n  - domain: {DOMAIN}\n    file: {at}/weir.zone\n    zonefile-sync: -1\n  \
         - domain: 10.in-addr.arpa\n    file: {at}/reverse.zone\n    zonefile-sync: -1\n"
    );
    let path = directory.join("knot.conf");
    fs::write(&path, conf)?;
    let mut command = Command::new("knotd");
    command.arg("-c").arg(path);
    Ok(command)
}
