//! Offloads of an interface, by the ethtool ioctl.
//!
//! A veth with offloads on carries packets of 64 KiB without checksums, one without them carries
//! what a wire would: a data plane has to be right for both.

use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};

use crate::netns::Netns;

/// What the lab does with the offloads of its veths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offloads {
    /// As the kernel makes a veth.
    #[default]
    Kernel,
    /// Transmit checksum, TSO, GSO and GRO on.
    On,
    /// The same four off.
    Off,
}

const SIOCETHTOOL: libc::c_ulong = 0x8946;
// linux/ethtool.h; checksums first, because segmentation depends on them.
const SET_TX_CHECKSUM: u32 = 0x17;
const SET_TSO: u32 = 0x1f;
const SET_GSO: u32 = 0x24;
const SET_GRO: u32 = 0x2c;

#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

impl Netns {
    /// Sets the offloads of one interface.
    pub fn set_offloads(&self, interface: &str, offloads: Offloads) -> Result<()> {
        let on = match offloads {
            Offloads::Kernel => return Ok(()),
            Offloads::On => 1,
            Offloads::Off => 0,
        };
        self.run(|| {
            [SET_TX_CHECKSUM, SET_TSO, SET_GSO, SET_GRO]
                .into_iter()
                .try_for_each(|command| set(interface, command, on))
        })
        .with_context(|| format!("offloads of {interface} to {offloads:?}"))
    }
}

fn set(interface: &str, command: u32, data: u32) -> Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let mut value = EthtoolValue { command, data };
    // SAFETY: ifreq is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes().take(room)) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: both structures live until the call returns and have the kernel's layout.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("command {command:#x}"));
    }
    Ok(())
}
