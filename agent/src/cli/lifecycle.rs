//! `weir agent` and `weir uninstall`: the two commands that change the kernel.

use std::{fs, io, process::ExitCode, time::Duration};

use schemars::JsonSchema;
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
    memory, state,
    upgrade::{self, Heritage, Outcome},
};

/// `take_over`: the agent before is at the other end of standard input.
pub(super) fn agent(args: ConfigArgs, take_over: bool) -> Result<ExitCode, Failed> {
    upgrade::note_program();
    let heritage = match take_over {
        true => Heritage::at_stdin().map_err(|error| format!("standard input: {error}"))?,
        false => Heritage::default(),
    };
    let mut config = args.load().inspect_err(|failed| heritage.refuse(failed))?;
    let logging = Logging::start(&config.log);
    memory::keep_small();
    heritage.await_word().map_err(|error| format!("there is nothing to take over: {error}"))?;
    let mut heritage = Some(heritage);
    let origin = app::Origin { file: args.config, overrides: args.overrides };
    loop {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start the async runtime: {error}"))?;
        let found = heritage.take().unwrap_or_default();
        let run = app::run(config.clone(), origin.clone(), logging.clone(), found);
        match runtime.block_on(run) {
            Ok(Ended::Moved(new)) => {
                // Its sockets must be closed before they are opened anew.
                runtime.shutdown_timeout(CLOSING);
                config = *new;
            }
            Ok(Ended::Succeeded(succession)) => {
                // As above; who reads a file for longer has no socket.
                runtime.shutdown_timeout(LEAVING);
                let kept = upgrade::keep(*succession, config.proxy.drain_timeout, take_over);
                match kept.map_err(|error| format!("cannot wait for the new agent: {error}"))? {
                    Outcome::Ended(code) => return Ok(ExitCode::from(code)),
                    Outcome::Back(kept) => {
                        heritage = kept.map(|(role, handover)| Heritage::kept(role, handover));
                    }
                }
            }
            outcome => {
                // Nothing that still reads a file may hold up the end.
                runtime.shutdown_background();
                return outcome.map(|_| ExitCode::SUCCESS).map_err(|error| format!("{error:#}"));
            }
        }
    }
}

/// How long an agent that begins anew waits for what the one before still does.
const CLOSING: Duration = Duration::from_secs(5);
/// The same for one in whose place another process goes on.
const LEAVING: Duration = Duration::from_secs(1);

#[derive(Serialize, JsonSchema)]
pub(super) struct Removal {
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
    let mut files = state::all_files(&config.state);
    files.push(config.socket.clone());
    for file in files {
        match fs::remove_file(&file) {
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
