//! The kernel programs without a host: loaded, filled, and run on single packets by
//! `BPF_PROG_TEST_RUN`. For packet cases and for measuring; nothing is attached.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use aya::{
    Ebpf,
    programs::{Program, TestRun as _, TestRunOptions},
};
use weir_abi::Config;
use weir_mesh::{Installed, MapOp};

use crate::{
    AttachMode, Options, Stats,
    error::{Error, Tried as _},
    kernel,
    maps::Maps,
    object,
    records::wide,
    store::Store,
    uninstall,
};

/// Loaded programs and their maps, gone on drop.
pub struct Trial {
    options: Options,
    store: Store,
    object: Ebpf,
}

/// What a run of a program on a packet gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// The program's return value: -1 go on, 2 drop, 7 redirect.
    pub verdict: i32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// How long one repetition took, as the kernel measured it.
    pub took: Duration,
}

static TRIALS: AtomicU32 = AtomicU32::new(0);

impl Trial {
    /// Loads the programs, for a host with these addresses.
    ///
    /// # Errors
    /// As for [`Dataplane::open`](crate::Dataplane::open).
    pub fn new(config: Config, addresses: &[IpAddr]) -> Result<Self, Error> {
        let number = TRIALS.fetch_add(1, Ordering::Relaxed);
        let pin = format!("/sys/fs/bpf/weir-trial-{}-{number}", std::process::id());
        let options = Options {
            pin: PathBuf::from(pin),
            cgroup: PathBuf::new(),
            uplinks: Vec::new(),
            address: IpAddr::from([127, 0, 0, 1]),
            addresses: addresses.to_vec(),
            tunnel_port: 0,
            tunnel_device: String::new(),
            attach: AttachMode::Auto,
            flow_capacity: Some(1 << 18),
        };
        let what = || format!("make {}", options.pin.display());
        std::fs::create_dir_all(options.maps_dir()).tried(what)?;
        let opened = open(&options);
        let (object, store) = opened.inspect_err(|_| {
            uninstall::remove_tree(&options.pin);
        })?;
        let trial = Self { options, store, object };
        let hz = trial.store.clock.hz;
        let csum_ipv6_flag = kernel::csum_ipv6_flag(&trial.object)?;
        trial.store.maps.config.set(0, Config { hz, csum_ipv6_flag, ..config });
        for addr in addresses {
            let what = || format!("add the address {addr}");
            trial.store.maps.local.set(&wide(*addr), &1).tried(what)?;
        }
        Ok(trial)
    }

    /// Applies one operation.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn apply(&mut self, op: &MapOp) -> Result<(), Error> {
        self.store.apply(op)
    }

    /// What the maps hold.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn installed(&self) -> Result<Installed, Error> {
        self.store.installed()
    }

    /// What the kernel has counted.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn stats(&self) -> Result<Stats, Error> {
        self.store.stats()
    }

    /// Runs a program on a packet that starts with an Ethernet header.
    ///
    /// # Errors
    /// When there is no such program, or the kernel refuses the packet.
    pub fn run(&self, program: &str, packet: &[u8], repeat: u32) -> Result<Ran, Error> {
        let what = || format!("run {program} on a packet of {} bytes", packet.len());
        let Some(Program::SchedClassifier(program)) = self.object.program(program) else {
            return Err(Error::new(what(), "the object has no such program"));
        };
        let mut out = vec![0u8; packet.len() + 256];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            repeat,
            ..TestRunOptions::new()
        };
        let result = program.test_run(options).tried(what)?;
        out.truncate(result.data_size_out as usize);
        Ok(Ran { verdict: result.return_value as i32, packet: out, took: result.duration })
    }
}

fn open(options: &Options) -> Result<(Ebpf, Store), Error> {
    let mut object = object::load(options)?;
    object::verify(&mut object)?;
    let maps = Maps::open(&mut object)?;
    let clock = kernel::clock(&object)?;
    Ok((object, Store::new(maps, clock)))
}

impl Drop for Trial {
    fn drop(&mut self) {
        for error in uninstall::remove_tree(&self.options.pin).1 {
            tracing::warn!(%error, "A trial left something behind");
        }
    }
}
