//! The reconciler's own thread, and the handle through which the rest of the agent speaks to it.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};
use weir_loader::{Check, DroppedPacket, Error};
use weir_mesh::Space;
use weir_proxy::Proxy;

use super::{
    Asked, Ceded, FlowSource, Intercept, Kernel, ReconcileReport, Reconciler, Settings,
    StatsReport, TaskAnswers, Traced,
};
use crate::{config::Config, plane, probes::Held, snapshots::View, upgrade::Heritage};

enum Message {
    View(View),
    Spaces(Vec<Space>),
    Cede(Ceded),
    Intercept(Intercept),
    Stats(oneshot::Sender<Result<StatsReport, Error>>),
    Answers(oneshot::Sender<Result<Vec<TaskAnswers>, Error>>),
    LastDrops(oneshot::Sender<Result<Vec<DroppedPacket>, Error>>),
    Dump(oneshot::Sender<Result<String, Error>>),
    Leave(oneshot::Sender<Option<Proxy>>),
    Trace(Asked, oneshot::Sender<Result<Traced, Error>>),
    Flows(oneshot::Sender<Result<Option<FlowSource>, Error>>),
    Stop,
}

/// Speaks to the reconciler's thread. When the last one goes, the thread ends; what is in the
/// kernel stays there.
#[derive(Clone)]
pub struct Handle {
    messages: mpsc::Sender<Message>,
    report: watch::Receiver<ReconcileReport>,
}

/// Why an answer did not come.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The thread has ended.
    #[error("the reconciler has ended; the agent's log says why")]
    Gone,
    /// The kernel did not answer.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// The thread, to be joined at the end.
pub struct Thread(thread::JoinHandle<()>);

/// A reconciler that has been started.
pub struct Started {
    /// Whether the data plane could be opened, once that is known, and which tasks of this node it
    /// held already.
    pub opening: oneshot::Receiver<Result<Held, Error>>,
    /// Speaks to it.
    pub handle: Handle,
    /// Its thread.
    pub thread: Thread,
}

/// Opens the data plane on a thread of its own and begins to reconcile. Netlink in the loader
/// blocks, which an async runtime forbids; hence it is opened there, too.
pub fn spawn(
    config: Arc<Config>,
    obstacles: Vec<Check>,
    heritage: Heritage,
    settings: Settings,
) -> io::Result<Started> {
    spawn_with(move || plane::open(&config, &obstacles, &heritage), settings)
}

/// The same with any data plane.
pub(crate) fn spawn_with<K: Kernel + 'static>(
    open: impl FnOnce() -> Result<K, Error> + Send + 'static,
    settings: Settings,
) -> io::Result<Started> {
    let (messages, inbox) = mpsc::channel();
    let (report_in, report) = watch::channel(ReconcileReport::default());
    let (opened, opening) = oneshot::channel();
    let body = move || {
        let reconciler =
            open().and_then(|kernel| Reconciler::new(kernel, settings, Instant::now()));
        match reconciler {
            Ok(reconciler) => {
                report_in.send_replace(reconciler.report().clone());
                opened.send(Ok(reconciler.held())).ok();
                run(reconciler, &inbox, &report_in);
            }
            Err(error) => drop(opened.send(Err(error))),
        }
    };
    let thread = thread::Builder::new().name("reconciler".into()).spawn(body)?;
    Ok(Started { opening, handle: Handle { messages, report }, thread: Thread(thread) })
}

fn run<K: Kernel>(
    mut reconciler: Reconciler<K>,
    inbox: &mpsc::Receiver<Message>,
    report: &watch::Sender<ReconcileReport>,
) {
    loop {
        reconciler.work(Instant::now());
        report.send_replace(reconciler.report().clone());
        let wait = reconciler.next_due().saturating_duration_since(Instant::now());
        let mut next = match inbox.recv_timeout(wait.max(SHORTEST_WAIT)) {
            Ok(message) => Some(message),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        };
        while let Some(message) = next {
            match message {
                Message::Spaces(spaces) => reconciler.see_spaces(spaces, Instant::now()),
                Message::Cede(to) => reconciler.cede(to, Instant::now()),
                Message::Intercept(of) => reconciler.intercept(of, Instant::now()),
                Message::View(view) => reconciler.take(view, Instant::now()),
                // Whoever asked may have gone meanwhile.
                Message::Stats(answer) => drop(answer.send(reconciler.stats())),
                Message::Answers(answer) => drop(answer.send(reconciler.answers())),
                Message::LastDrops(answer) => drop(answer.send(reconciler.last_drops())),
                Message::Dump(answer) => drop(answer.send(reconciler.dump())),
                Message::Leave(answer) => return drop(answer.send(reconciler.leave())),
                Message::Trace(asked, answer) => drop(answer.send(reconciler.trace(&asked))),
                Message::Flows(answer) => drop(answer.send(reconciler.flow_source())),
                Message::Stop => return,
            }
            next = inbox.try_recv().ok();
        }
    }
}

/// Keeps a deadline in the past from spinning.
const SHORTEST_WAIT: Duration = Duration::from_micros(100);

impl Handle {
    /// How things stand, and when that changes.
    pub fn report(&self) -> watch::Receiver<ReconcileReport> {
        self.report.clone()
    }

    /// Hands on a snapshot; false if the reconciler has ended.
    pub fn take(&self, view: View) -> bool {
        self.messages.send(Message::View(view)).is_ok()
    }

    /// Leaves the clients of these ports on this node to another plane; before any snapshot that is
    /// handed on later. Always all of them.
    pub fn cede(&self, to: Ceded) {
        // A reconciler that has ended is noticed elsewhere.
        self.messages.send(Message::Cede(to)).ok();
    }

    /// Hands every new snapshot on until the writer ends.
    pub async fn follow(self, mut view: watch::Receiver<View>) {
        while view.changed().await.is_ok() {
            let next = view.borrow_and_update().clone();
            if self.messages.send(Message::View(next)).is_err() {
                return;
            }
        }
    }

    /// Hands on what a source sees of this node's own containers: their network namespaces, and the
    /// networks these are attached to. Always all of them; until the first word those that the kernel
    /// knows stay.
    pub fn see_spaces(&self, spaces: Vec<Space>) {
        // A reconciler that has ended is noticed elsewhere.
        self.messages.send(Message::Spaces(spaces)).ok();
    }

    /// Leads containers to the DNS server of this node when they ask Docker's resolver; before anything
    /// that is told later, an end included.
    pub fn intercept(&self, intercept: Intercept) {
        // A reconciler that has ended is noticed elsewhere.
        self.messages.send(Message::Intercept(intercept)).ok();
    }

    /// Counters of now.
    pub async fn stats(&self) -> Result<StatsReport, AskError> {
        self.ask(Message::Stats).await
    }

    /// What this node's own tasks have said to new connections.
    pub async fn answers(&self) -> Result<Vec<TaskAnswers>, AskError> {
        self.ask(Message::Answers).await
    }

    /// The last packets that were not forwarded, the latest at the end.
    pub async fn last_drops(&self) -> Result<Vec<DroppedPacket>, AskError> {
        self.ask(Message::LastDrops).await
    }

    /// The text form of the kernel's maps.
    pub async fn dump(&self) -> Result<String, AskError> {
        self.ask(Message::Dump).await
    }

    /// What the data plane would do with a flow.
    pub async fn trace(&self, asked: Asked) -> Result<Traced, AskError> {
        self.ask(|answer| Message::Trace(asked, answer)).await
    }

    /// The flows of the kernel; `None` where flows are sockets of the agent.
    pub async fn flows(&self) -> Result<Option<FlowSource>, AskError> {
        self.ask(Message::Flows).await
    }

    async fn ask<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Message,
    ) -> Result<T, AskError> {
        let (answer, receiver) = oneshot::channel();
        self.messages.send(message(answer)).map_err(|_| AskError::Gone)?;
        Ok(receiver.await.map_err(|_| AskError::Gone)??)
    }

    /// Ends the thread after what it is doing; answers with what goes on without it only if another
    /// agent takes it over.
    pub async fn leave(&self) -> Option<Proxy> {
        let (answer, receiver) = oneshot::channel();
        self.messages.send(Message::Leave(answer)).ok()?;
        receiver.await.ok()?
    }

    /// Ends the thread after what it is doing.
    pub fn stop(&self) {
        // Gone already is as good.
        self.messages.send(Message::Stop).ok();
    }
}

impl Thread {
    /// Waits for the end; false if the thread panicked.
    pub fn join(self) -> bool {
        self.0.join().is_ok()
    }
}
