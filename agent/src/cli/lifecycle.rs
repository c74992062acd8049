//! `weir agent` and `weir uninstall`: the two commands that change the kernel.

use std::{fs, io, time::Duration};

use serde::Serialize;
use weir_loader::Dataplane;

use super::{
    ConfigArgs, Failed, Format, OutputArgs,
    table::{print, print_json},
};
use crate::{
    app::{self, Ended},
    health::Condition,
    lock::Lock,
    logging::Logging,
    memory,
};

pub(super) fn agent(args: ConfigArgs) -> Result<Condition, Failed> {
    let mut config = args.load()?;
    let logging = Logging::start(&config.log);
    memory::keep_small();
    let origin = app::Origin { file: args.config, overrides: args.overrides };
    loop {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start the async runtime: {error}"))?;
        match runtime.block_on(app::run(config, origin.clone(), logging.clone())) {
            Ok(Ended::Moved(new)) => {
                // Its sockets must be closed before they are opened anew.
                runtime.shutdown_timeout(CLOSING);
                config = *new;
            }
            outcome => {
                // Nothing that still reads a file may hold up the end.
                runtime.shutdown_background();
                return outcome.map(|_| Condition::Ok).map_err(|error| format!("{error:#}"));
            }
        }
    }
}

/// How long an agent that begins anew waits for what the one before still does.
const CLOSING: Duration = Duration::from_secs(5);

#[derive(Serialize)]
struct Removal {
    removed: Vec<String>,
    errors: Vec<String>,
}

pub(super) fn uninstall(args: &ConfigArgs, output: &OutputArgs) -> Result<Condition, Failed> {
    let config = args.load()?;
    // Held to the end, so that no agent starts meanwhile.
    let running = |error| format!("uninstall is for when no agent runs: {error}");
    let pins = Lock::of_pins(&config.dataplane.pin).map_err(running)?;
    let socket = Lock::of_socket(&config.socket).map_err(running)?;
    let (mut removed, errors) = Dataplane::uninstall(&config.dataplane_options());
    let mut errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    for file in [&config.state, &config.socket] {
        match fs::remove_file(file) {
            Ok(()) => removed.push(file.display().to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => errors.push(format!("remove {}: {error}", file.display())),
        }
    }
    for lock in [socket, pins] {
        lock.remove().unwrap_or_else(|error| errors.push(format!("remove a lock file: {error}")));
    }
    let condition = if errors.is_empty() { Condition::Ok } else { Condition::Failed };
    if output.output == Format::Json {
        print_json(&Removal { removed, errors })?;
        return Ok(condition);
    }
    for line in &removed {
        print(&format!("removed {line}\n"));
    }
    for line in &errors {
        eprintln!("weir: {line}");
    }
    if removed.is_empty() && errors.is_empty() {
        print(&format!("nothing to remove in {}\n", config.dataplane.pin.display()));
    }
    Ok(condition)
}
