//! Threads that carry traffic, each with a runtime of its own.

use std::{future::Future, io, thread};

use tokio::{
    runtime::{self, Handle},
    sync::oneshot,
};

/// One thread. Dropping it ends everything that runs there.
#[derive(Debug)]
pub(crate) struct Worker {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Worker {
    pub(crate) fn start(number: usize) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let body = move || {
            // An error is a sender that is gone, which is the same.
            runtime.block_on(stopped).ok();
        };
        let thread = thread::Builder::new().name(format!("proxy-{number}")).spawn(body)?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(work);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // What panicked there was told when it did.
            thread.join().ok();
        }
    }
}
