//! When to read the file: as soon as a writer is done with it, and now and then in case no event
//! says so.
//!
//! The watch is on the parent directory, so that a file which is replaced by a rename, vanishes and
//! returns keeps being seen. A writer that works in place is waited for until it closes the file:
//! half a file that happens to parse would take services away.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tracing::{info, warn};
use weir_mesh::Timeouts;

use super::Reader;
use crate::{
    config::FileSourceConfig,
    document::Fault,
    source::{Desired, SourceState, Trouble},
};

/// Reads one file and publishes what it says.
pub struct FileSource {
    path: PathBuf,
    poll: Duration,
    reader: Reader,
    stamp: Option<Stamp>,
    state: SourceState,
    output: watch::Sender<SourceState>,
}

/// What tells one version of the file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// What an event says about the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hint {
    /// A whole new version is there.
    Complete,
    /// Somebody is writing.
    Writing,
    /// Something happened; look whether it matters.
    Look,
}

/// A writer that has not closed the file is waited for this long after its last write.
const WRITER_WAIT: Duration = Duration::from_secs(3);
/// A change that no writer announced must stand still this long.
const SETTLE: Duration = Duration::from_millis(100);

impl FileSource {
    /// A source that has not looked yet, and where it will publish.
    pub fn new(
        config: &FileSourceConfig,
        defaults: Timeouts,
    ) -> (Self, watch::Receiver<SourceState>) {
        let state = SourceState::silent();
        let (output, input) = watch::channel(state.clone());
        let FileSourceConfig { path, poll } = config.clone();
        let reader = Reader::new(defaults);
        (Self { path, poll, reader, stamp: None, state, output }, input)
    }

    /// Reads now, then whenever the file changes or a message arrives on `reload`. Ends when
    /// nobody listens any more.
    pub async fn run(mut self, mut reload: mpsc::Receiver<()>) {
        let (hints_in, mut hints) = mpsc::unbounded_channel();
        let mut watcher = DirectoryWatch::new(self.path.clone(), hints_in);
        watcher.renew();
        self.read(Instant::now()).await;
        let mut look_at = Instant::now() + self.poll;
        let mut noticed: Option<Instant> = None;
        let mut writing = false;
        loop {
            tokio::select! {
                Some(hint) = hints.recv() => {
                    let now = Instant::now();
                    let since = *noticed.get_or_insert(now);
                    match hint {
                        Hint::Complete => {
                            (noticed, writing) = (None, false);
                            self.read(since).await;
                        }
                        Hint::Writing => (look_at, writing) = (now + WRITER_WAIT, true),
                        Hint::Look if writing => {}
                        Hint::Look => look_at = look_at.min(now + SETTLE),
                    }
                }
                () = sleep_until(look_at) => {
                    writing = false;
                    watcher.renew();
                    self.look(noticed.take().unwrap_or_else(Instant::now)).await;
                    look_at = Instant::now() + self.poll;
                }
                Some(()) = reload.recv() => self.read(Instant::now()).await,
                () = self.output.closed() => return,
            }
        }
    }

    /// Reads if the file is another than the one last read.
    async fn look(&mut self, noticed: Instant) {
        let stamp = stamp_of(&self.path);
        if stamp != self.stamp {
            tokio::time::sleep(SETTLE).await;
            if stamp_of(&self.path) == stamp {
                self.read(noticed).await;
            }
        } else if self.state.trouble.is_none() {
            self.state.confirmed = Some(Instant::now().into_std());
            self.output.send_replace(self.state.clone());
        }
    }

    async fn read(&mut self, noticed: Instant) {
        self.stamp = stamp_of(&self.path);
        let path = self.path.clone();
        let had_one = self.state.desired.is_some();
        let mut reader = self.reader.take();
        let reading = tokio::task::spawn_blocking(move || {
            let reading = read_file(&path, &mut reader, had_one);
            (reading, reader)
        });
        let Ok((reading, reader)) = reading.await else { return };
        self.reader = reader;
        self.state.readings += 1;
        self.state.noticed = noticed.into_std();
        match reading {
            Ok(desired) => self.accept(desired),
            Err(trouble) => self.reject(trouble),
        }
        self.output.send_replace(self.state.clone());
    }

    fn accept(&mut self, desired: Arc<Desired>) {
        if self.state.trouble.take().is_some() {
            info!(file = %self.path.display(), "the file is good again");
        }
        self.state.confirmed = Some(Instant::now().into_std());
        self.state.desired = Some(desired);
    }

    fn reject(&mut self, trouble: Trouble) {
        *self.state.errors.entry(trouble.reason).or_default() += 1;
        if self.state.trouble.as_ref() != Some(&trouble) {
            warn!(
                reason = trouble.reason,
                error = trouble.summary(),
                "the file was not taken, the last good state stays"
            );
        }
        self.state.trouble = Some(trouble);
    }
}

fn read_file(path: &Path, reader: &mut Reader, had_one: bool) -> Result<Arc<Desired>, Trouble> {
    let text = fs::read(path).map_err(|error| unreadable(path, &error, had_one))?;
    let whole = |reason, problem: String, remedy: &str| Trouble {
        reason,
        faults: [Fault::of_file(path, problem, remedy)].into(),
    };
    let Ok(text) = String::from_utf8(text) else {
        return Err(whole("invalid", "is not UTF-8 text".into(), "write it as UTF-8"));
    };
    if text.trim().is_empty() {
        let remedy = "to publish nothing on purpose, write: service = []";
        return Err(whole("empty", "is empty".into(), remedy));
    }
    reader
        .read(&path.display().to_string(), &text)
        .map_err(|faults| Trouble { reason: "invalid", faults: faults.into() })
}

fn unreadable(path: &Path, error: &io::Error, had_one: bool) -> Trouble {
    let (reason, problem) = match (error.kind(), had_one) {
        (io::ErrorKind::NotFound, true) => ("missing", "has vanished".to_owned()),
        (io::ErrorKind::NotFound, false) => ("missing", "does not exist".to_owned()),
        _ => ("unreadable", format!("cannot be read: {error}")),
    };
    let remedy = match reason {
        "missing" => "put it there, or set source.file.path to where it is",
        _ => "let the agent read it, or set source.file.path to another file",
    };
    Trouble { reason, faults: [Fault::of_file(path, problem, remedy)].into() }
}

fn stamp_of(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

/// The watch on the parent directory, set again when the directory is another.
struct DirectoryWatch {
    path: PathBuf,
    hints: mpsc::UnboundedSender<Hint>,
    watched: Option<(Stamp, RecommendedWatcher)>,
    complained: bool,
}

impl DirectoryWatch {
    fn new(path: PathBuf, hints: mpsc::UnboundedSender<Hint>) -> Self {
        Self { path, hints, watched: None, complained: false }
    }

    fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }

    fn renew(&mut self) {
        let now = stamp_of(self.directory());
        let same = |(then, _): &(Stamp, _)| {
            now.is_some_and(|now| (now.device, now.inode) == (then.device, then.inode))
        };
        if self.watched.as_ref().is_some_and(same) {
            return;
        }
        self.watched = None;
        let Some(now) = now else { return };
        match self.watch() {
            Ok(watcher) => {
                self.watched = Some((now, watcher));
                self.complained = false;
            }
            Err(error) if !self.complained => {
                self.complained = true;
                let directory = self.directory().display();
                warn!(%directory, %error, "cannot watch the directory, only polling the file");
            }
            Err(_) => {}
        }
    }

    fn watch(&self) -> notify::Result<RecommendedWatcher> {
        let (path, hints) = (self.path.clone(), self.hints.clone());
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            let hint = event.map_or(Some(Hint::Look), |event| hint(&event, &path));
            if let Some(hint) = hint {
                // Nobody listens any more: the source has ended.
                hints.send(hint).ok();
            }
        })?;
        watcher.watch(self.directory(), RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }
}

fn hint(event: &Event, path: &Path) -> Option<Hint> {
    let ours = event.paths.iter().any(|changed| changed.file_name() == path.file_name());
    let renamed_here = |mode| matches!(mode, RenameMode::To | RenameMode::Both);
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) if ours => Some(Hint::Complete),
        EventKind::Modify(ModifyKind::Name(mode)) if ours && renamed_here(mode) => {
            Some(Hint::Complete)
        }
        EventKind::Modify(ModifyKind::Data(_)) if ours => Some(Hint::Writing),
        // The file may be a symbolic link into a directory that was swapped.
        EventKind::Modify(ModifyKind::Name(_)) => Some(Hint::Look),
        EventKind::Access(_) => None,
        _ => ours.then_some(Hint::Look),
    }
}
