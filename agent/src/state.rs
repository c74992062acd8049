//! The last good snapshot on disk. It outlives the agent, so that a start with a broken or missing
//! source goes on with what was, marked stale.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use weir_mesh::{MeshSnapshot, NodeName};

/// Version of the file's format; another one is not read.
const FORMAT: u32 = 1;

/// Keeps one snapshot in one file.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
    node: NodeName,
    pin: PathBuf,
}

/// A snapshot from disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Restored {
    /// What was good when it was written.
    pub snapshot: MeshSnapshot,
    /// When that was.
    pub written: SystemTime,
}

/// Why a state file was not taken. Each is harmless: the agent starts without it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is there and cannot be read.
    #[error("{path} cannot be read: {cause}; let the agent read it, or set state.path")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// It is damaged, or of another version of weir.
    #[error("{path} is no state of this version of weir ({cause}); it will be written anew")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        cause: String,
    },
    /// It belongs to another agent.
    #[error(
        "{path} belongs to the agent of node {node} with pins in {pin}; set state.path so that \
         each agent has its own"
    )]
    OtherAgent {
        /// The file.
        path: PathBuf,
        /// The node that wrote it.
        node: NodeName,
        /// That agent's pin directory.
        pin: PathBuf,
    },
    /// It cannot be written.
    #[error("{path} cannot be written: {cause}; make room, or set state.path")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct OnDisk<S> {
    format: u32,
    node: NodeName,
    pin: PathBuf,
    written_unix: u64,
    snapshot: S,
}

impl StateFile {
    /// The state of the agent of this node with these pins.
    pub fn new(path: PathBuf, node: NodeName, pin: PathBuf) -> Self {
        Self { path, node, pin }
    }

    /// What was kept; `None` if nothing was.
    pub fn load(&self) -> Result<Option<Restored>, Error> {
        let path = || self.path.clone();
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(Error::Unreadable { path: path(), cause }),
        };
        let foreign = |cause: String| Error::Foreign { path: path(), cause };
        let state: OnDisk<MeshSnapshot> =
            serde_json::from_slice(&text).map_err(|error| foreign(error.to_string()))?;
        if state.format != FORMAT {
            return Err(foreign(format!("format {} where {FORMAT} belongs", state.format)));
        }
        if (&state.node, &state.pin) != (&self.node, &self.pin) {
            return Err(Error::OtherAgent { path: path(), node: state.node, pin: state.pin });
        }
        let written = UNIX_EPOCH + std::time::Duration::from_secs(state.written_unix);
        Ok(Some(Restored { snapshot: state.snapshot, written }))
    }

    /// Replaces what is kept, whole or not at all.
    pub fn store(&self, snapshot: &MeshSnapshot) -> Result<(), Error> {
        let written = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let state = OnDisk {
            format: FORMAT,
            node: self.node.clone(),
            pin: self.pin.clone(),
            written_unix: written.as_secs(),
            snapshot,
        };
        write_whole(&self.path, |file| Ok(serde_json::to_writer(file, &state)?))
            .map_err(|cause| Error::Unwritable { path: self.path.clone(), cause })
    }
}

/// What the other nodes of a Swarm said last, beside the last good snapshot at `state`.
pub(crate) fn peers_file(state: &Path) -> PathBuf {
    state.with_extension("peers.json")
}

/// What is drained by hand, beside the last good snapshot at `state`.
pub(crate) fn drained_file(state: &Path) -> PathBuf {
    state.with_extension("drained.json")
}

/// All files that an agent keeps its state in, if they are there, and what is left of those that it was
/// ended in the middle of writing.
pub(crate) fn all_files(state: &Path) -> Vec<PathBuf> {
    let kept = [state.to_owned(), peers_file(state), drained_file(state)];
    let directory = state.parent().into_iter().flat_map(fs::read_dir);
    let names = directory.flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let is_draft = |path: &PathBuf| kept.iter().any(|kept| is_draft_of(path, kept));
    let drafts: Vec<PathBuf> = names.filter(is_draft).collect();
    kept.into_iter().chain(drafts).collect()
}

/// Where a file is written before it takes the place of the one at `path`.
fn draft_of(path: &Path, pid: u32) -> PathBuf {
    path.with_extension(format!("{pid}.new"))
}

fn is_draft_of(draft: &Path, path: &Path) -> bool {
    let pid = |draft: &Path| draft.file_stem().map(Path::new)?.extension()?.to_str()?.parse().ok();
    pid(draft).is_some_and(|pid| draft_of(path, pid) == draft)
}

/// Writes a file next to `path` and renames it there.
pub(crate) fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut io::BufWriter<fs::File>) -> io::Result<()>,
) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let draft = draft_of(path, std::process::id());
    let mut file = io::BufWriter::new(fs::File::create(&draft)?);
    let written = write(&mut file)
        .and_then(|()| file.flush())
        .and_then(|()| file.get_ref().sync_all())
        .and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        fs::remove_file(&draft).ok();
    }
    written
}

#[cfg(test)]
mod tests {
    use weir_mesh::Generation;

    use super::*;

    fn state(directory: &tempfile::TempDir, node: &str) -> StateFile {
        let path = directory.path().join("deeper/state.json");
        StateFile::new(path, NodeName::new(node), "/sys/fs/bpf/weir".into())
    }

    fn snapshot() -> MeshSnapshot {
        MeshSnapshot { generation: Generation(7), ..MeshSnapshot::default() }
    }

    #[test]
    fn what_was_stored_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let state = state(&directory, "n1");
        assert_eq!(state.load().unwrap(), None);
        state.store(&snapshot()).unwrap();
        assert_eq!(state.load().unwrap().unwrap().snapshot, snapshot());
    }

    #[test]
    fn the_state_of_another_node_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        state(&directory, "n2").store(&snapshot()).unwrap();
        let error = state(&directory, "n1").load().unwrap_err().to_string();
        assert!(error.contains("belongs to the agent of node n2"), "{error}");
        assert!(error.contains("set state.path"), "{error}");
    }

    #[test]
    fn a_damaged_state_is_not_taken_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let state = state(&directory, "n1");
        state.store(&snapshot()).unwrap();
        fs::write(&state.path, "{\"format\":1,").unwrap();
        assert!(state.load().unwrap_err().to_string().contains("no state of this version"));
    }

    #[test]
    fn all_files_of_an_agent_are_found_and_none_of_another_s() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let state = path("state-a.json");
        let own = [
            state.clone(),
            peers_file(&state),
            drained_file(&state),
            draft_of(&state, 7),
            draft_of(&peers_file(&state), 8),
            draft_of(&drained_file(&state), 9),
        ];
        let others =
            ["state.json", "state-a.new", "state-a.b.new", "state-ab.7.new", "7.new"].map(path);
        own.iter().chain(&others).for_each(|path| fs::write(path, "").unwrap());
        let mut found = all_files(&state);
        found.sort();
        let mut expected = own.to_vec();
        expected.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_full_or_forbidden_place_is_named() {
        let state = StateFile::new("/proc/none/s.json".into(), NodeName::new("n"), "/p".into());
        let error = state.store(&snapshot()).unwrap_err().to_string();
        assert!(error.starts_with("/proc/none/s.json cannot be written"), "{error}");
    }
}
