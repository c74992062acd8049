//! The metrics port has a thread of its own, with less of the processor than what carries clients: however
//! often it is asked, nothing else of the agent waits for it, and no task of the node goes short.

use std::{
    io,
    net::TcpListener,
    sync::Arc,
    thread::{self, JoinHandle},
};

use tokio::{runtime, sync::oneshot};
use tracing::error;

use super::Routes;

/// What the thread is called.
const NAME: &str = "weir-port";
/// A tenth of what others get, where all want more than there is (`sched(7)`).
const NICE: libc::c_int = 10;

/// A port that is served; closed on drop.
#[derive(Debug)]
pub struct Port {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Port {
    /// Serves a port that is listened on.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn open(listener: TcpListener, routes: Arc<Routes>) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serve = async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => tokio::select! {
                    () = routes.serve(listener) => {}
                    // However it comes.
                    _ = stopped => {}
                },
                Err(error) => error!(%error, "the metrics port is not served"),
            }
        };
        let thread = thread::Builder::new().name(NAME.to_owned()).spawn(move || {
            stand_back();
            runtime.block_on(serve);
            // Whoever still reads a file has no socket.
            runtime.shutdown_background();
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the thread of the metrics port panicked");
        }
    }
}

/// Lets the others of this processor go first. One that may not goes on as it is.
fn stand_back() {
    // SAFETY: takes numbers. 0: this thread (setpriority(2), "C library/kernel differences").
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}
