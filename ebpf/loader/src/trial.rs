//! The kernel programs without a host: loaded, filled, and run on single packets by
//! `BPF_PROG_TEST_RUN`. For packet cases and for measuring; nothing is attached.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Array, ProgramArray},
    programs::{Program, SchedClassifier, TestRun as _, TestRunOptions},
};
use weir_abi::{Config, DropReason, trial::Template};
use weir_mesh::{Installed, MapOp};

use crate::{
    AttachMode, DroppedPacket, FlowTables, Options, Stats,
    error::{Error, Tried as _},
    kernel,
    maps::Maps,
    object,
    records::wide,
    store::Store,
    uninstall,
};

/// Loaded programs and their maps, gone on drop, or with the process.
pub struct Trial {
    store: Store,
    object: Ebpf,
    /// Programs that only trials have.
    extra: Ebpf,
}

/// Where a packet is said to come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// The interface on which it arrived; 0: this host made it.
    pub ingress_ifindex: u32,
    /// The node that sent it through the tunnel, and the tag, for `tun_in_case`.
    pub tunnel: (u16, u32),
}

/// Programs that only trials have.
static EXTRA: &[u8] = include_bytes_aligned!("../object/trial.bpf.o");

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

/// What trials run of the product's programs: those that need no tunnel header and no socket.
const RUNNABLE: [&str; 4] = ["nic_in", "task_out", "tun_out", "probe"];

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
        let loaded = load(&options);
        // The two objects share maps by their pins. That is all they are for: from here on the process holds
        // the maps, and whatever ends it, nothing is left.
        if let Some(error) = uninstall::remove_tree(&options.pin).1.into_iter().next() {
            return Err(error);
        }
        let (mut object, mut extra) = loaded?;
        object::verify(&mut object, |name| RUNNABLE.contains(&name))?;
        object::verify(&mut extra, |_| true)?;
        let maps = Maps::open(&mut object)?;
        let clock = kernel::clock(&object)?;
        let trial = Self { store: Store::new(maps, clock)?, object, extra };
        let hz = trial.store.clock.hz;
        let csum_ipv6_flag = kernel::csum_ipv6_flag(&trial.object)?;
        trial.store.maps.config.set(0, Config { hz, csum_ipv6_flag, ..config })?;
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

    /// How many instructions the verifier went through, by program; loads all. With more than a
    /// million the kernel refuses one (`BPF_COMPLEXITY_LIMIT_INSNS`).
    ///
    /// # Errors
    /// When the kernel refuses a program, or does not say.
    pub fn verified(&mut self) -> Result<Vec<(String, u32)>, Error> {
        object::verify(&mut self.object, |name| !RUNNABLE.contains(&name))?;
        let count = |(name, program): (&str, &Program)| {
            let info = program.info().tried(|| format!("ask what {name} is"))?;
            Ok((name.to_owned(), info.verified_instruction_count().unwrap_or_default()))
        };
        self.object.programs().map(count).collect()
    }

    /// How often packets were not forwarded, by reason; quicker than [`Trial::stats`].
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn drops(&self, reason: DropReason) -> Result<u64, Error> {
        let read = self.store.maps.drops.get(reason as u32);
        Ok(read.tried(|| "read why packets were dropped".to_owned())?.iter().sum())
    }

    /// The last packets that were not forwarded.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn last_drops(&self) -> Result<Vec<DroppedPacket>, Error> {
        self.store.last_drops()
    }

    /// The flow tables.
    ///
    /// # Errors
    /// When they cannot be opened once more.
    pub fn flow_tables(&self) -> Result<FlowTables, Error> {
        self.store.flow_tables(kernel::jiffies(&self.object)?)
    }

    /// Runs a program on a packet that starts with an Ethernet header.
    ///
    /// # Errors
    /// When there is no such program, or the kernel refuses the packet.
    pub fn run(&self, program: &str, packet: &[u8], arrival: Arrival) -> Result<Ran, Error> {
        self.repeat(program, packet, arrival, 1)
    }

    /// How long a program takes for a packet, over `repeat` packets. Each is restored from
    /// `template` first; what that costs is to be measured with the program `nothing`, and
    /// subtracted.
    ///
    /// # Errors
    /// As for [`Trial::run`].
    pub fn measure(
        &mut self,
        program: &str,
        template: Template,
        arrival: Arrival,
        repeat: u32,
    ) -> Result<Ran, Error> {
        let what = || format!("measure {program}");
        let target = self.program(program)?.fd().tried(what)?.try_clone().tried(what)?;
        let cells = self.extra.map_mut("TARGET").ok_or_else(|| missing("TARGET"))?;
        let mut cells = ProgramArray::try_from(cells).tried(what)?;
        cells.set(0, &target, 0).tried(what)?;
        let cells = self.extra.map_mut("TEMPLATE").ok_or_else(|| missing("TEMPLATE"))?;
        let mut cells = Array::<_, Plain>::try_from(cells).tried(what)?;
        cells.set(0, Plain(template), 0).tried(what)?;
        // The kernel reads the ethertype before the wrapper writes the packet.
        let frame: Vec<u8> = template.frame.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.repeat("wrap", &frame, arrival, repeat)
    }

    fn program(&self, name: &str) -> Result<&SchedClassifier, Error> {
        match self.object.program(name).or_else(|| self.extra.program(name)) {
            Some(Program::SchedClassifier(program)) => Ok(program),
            _ => Err(missing(name)),
        }
    }

    fn repeat(
        &self,
        program: &str,
        packet: &[u8],
        arrival: Arrival,
        repeat: u32,
    ) -> Result<Ran, Error> {
        let context = arrival.context();
        let mut out = vec![0u8; packet.len() + 256];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::new()
        };
        let what = || format!("run {program} on a packet of {} bytes", packet.len());
        let result = self.program(program)?.test_run(options).tried(what)?;
        out.truncate(result.data_size_out as usize);
        Ok(Ran { verdict: result.return_value as i32, packet: out, took: result.duration })
    }
}

impl Arrival {
    /// The first bytes of `struct __sk_buff`.
    fn context(self) -> [u8; 72] {
        const INGRESS_IFINDEX: usize = 36;
        const CB: usize = 48;
        let mut context = [0u8; 72];
        let mut put = |at: usize, word: u32| {
            context[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        };
        put(INGRESS_IFINDEX, self.ingress_ifindex);
        put(CB, self.tunnel.0.into());
        put(CB + 4, self.tunnel.1);
        context
    }
}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Plain(Template);

#[expect(unsafe_code, reason = "a promise about a type")]
// SAFETY: numbers without padding.
unsafe impl aya::Pod for Plain {}

fn missing(name: &str) -> Error {
    Error::new(format!("find {name}"), "the objects have nothing of this name")
}

fn load(options: &Options) -> Result<(Ebpf, Ebpf), Error> {
    let object = object::load(options)?;
    let mut loader = EbpfLoader::new();
    loader.default_map_pin_directory(options.maps_dir());
    let extra = loader.load(EXTRA).tried(|| "load the programs of trials".to_owned())?;
    Ok((object, extra))
}
