//! Network namespaces without names.
//!
//! Nothing is bind-mounted: the only things that hold a namespace are our file descriptor and the
//! processes in it. When they are gone the kernel frees it, whatever way we ended.

use std::fs::File;
use std::future::Future;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::Handle;

/// A network namespace, held open by a file descriptor. Clones share it.
#[derive(Debug, Clone)]
pub struct Netns {
    file: Arc<File>,
    inode: u64,
}

impl Netns {
    /// Makes an empty namespace (with `lo`, down) on a thread that ends at once.
    pub fn new() -> Result<Self> {
        let file = thread::spawn(unshared_namespace)
            .join()
            .map_err(|_| anyhow!("the thread that makes a network namespace panicked"))??;
        let inode = file.metadata().context("stat of a network namespace")?.ino();
        Ok(Self { file: Arc::new(file), inode })
    }

    /// The inode number of the namespace: what `readlink /proc/PID/ns/net` shows.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs `work` on a thread inside the namespace and gives back its result.
    ///
    /// Sockets, `/proc/sys/net` and threads made by `work` belong to the namespace. Processes do
    /// too, but they must be started through [`crate::process`]: they would die with this thread.
    ///
    /// # Panics
    /// When `work` panics, or the process has lost the right to enter its own namespaces.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let outcome = thread::scope(|scope| scope.spawn(|| self.inside(work)).join());
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts a thread inside the namespace that may outlive the caller.
    pub fn thread<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<T>> {
        let netns = self.clone();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || netns.inside(work))
            .context("start a thread in a network namespace")
    }

    /// Runs a future inside the namespace, on a runtime of one thread.
    pub fn block_on<T, F>(&self, work: impl FnOnce() -> F + Send) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>>,
    {
        self.run(|| runtime()?.block_on(async { work().await }))
    }

    /// Runs a future with an rtnetlink handle whose socket was made inside the namespace.
    pub fn netlink<T, F>(&self, work: impl FnOnce(Handle) -> F + Send) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>>,
    {
        self.block_on(|| async {
            let (connection, handle, _) = rtnetlink::new_connection().context("rtnetlink")?;
            let driver = tokio::spawn(connection);
            let result = work(handle).await;
            driver.abort();
            result
        })
    }

    /// The descriptor, for `setns` in a child and for moving interfaces.
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// A file that stands for the namespace, for as long as this process lives and holds it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.raw_fd()).into()
    }

    fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        if let Err(error) = setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET) {
            panic!("enter the network namespace net:[{}]: {error}", self.inode);
        }
        work()
    }
}

fn unshared_namespace() -> Result<File> {
    unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET); the lab needs root")?;
    File::open("/proc/thread-self/ns/net").context("/proc/thread-self/ns/net")
}

/// A runtime on the current thread: everything it drives stays in the thread's namespace.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio runtime")
}
