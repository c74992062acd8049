//! The file source follows its file through everything that editors, tools and accidents do to it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::PathBuf, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use weir::{
    config::FileSourceConfig,
    source::{SourceState, file::FileSource},
};
use weir_mesh::Timeouts;

/// A source that watches `mesh.toml` in a directory of its own.
struct Watched {
    directory: tempfile::TempDir,
    state: watch::Receiver<SourceState>,
    reload: mpsc::Sender<()>,
}

/// Long enough that only an event can explain what is seen before.
const NO_POLL: Duration = Duration::from_secs(600);

impl Watched {
    fn start(first: Option<&str>, poll: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mesh.toml");
        if let Some(text) = first {
            fs::write(&path, text).unwrap();
        }
        let config = FileSourceConfig { path, poll };
        let (source, state) = FileSource::new(&config, Timeouts::default());
        let (reload, requests) = mpsc::channel(1);
        tokio::spawn(source.run(requests));
        Self { directory, state, reload }
    }

    async fn ready(first: &str) -> Self {
        let mut watched = Self::start(Some(first), NO_POLL);
        watched.until(|state| state.desired.is_some()).await;
        watched
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("mesh.toml")
    }

    async fn until(&mut self, wanted: impl FnMut(&SourceState) -> bool) -> SourceState {
        let state = timeout(Duration::from_secs(20), self.state.wait_for(wanted)).await;
        state.expect("in time").expect("a source").clone()
    }

    async fn until_services(&mut self, names: &[&str]) -> SourceState {
        self.until(|state| services(state) == names).await
    }
}

fn services(state: &SourceState) -> Vec<&str> {
    let services = state.desired.iter().flat_map(|desired| desired.services.keys());
    services.map(|name| name.as_str()).collect()
}

fn mesh(services: &[&str]) -> String {
    services.iter().map(|name| format!("[[service]]\nname = \"{name}\"\n")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_in_place_is_seen_at_once() {
    let mut watched = Watched::ready(&mesh(&["web"])).await;
    fs::write(watched.path(), mesh(&["web", "zoo"])).unwrap();
    let state = watched.until_services(&["web", "zoo"]).await;
    assert!(state.trouble.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rename_over_the_file_is_seen_at_once_and_again() {
    let mut watched = Watched::ready(&mesh(&["web"])).await;
    for name in ["a", "b", "c"] {
        let draft = watched.directory.path().join("draft");
        fs::write(&draft, mesh(&[name])).unwrap();
        fs::rename(&draft, watched.path()).unwrap();
        watched.until_services(&[name]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_vanishes_keeps_the_last_good_state_and_says_so() {
    let mut watched = Watched::ready(&mesh(&["web"])).await;
    fs::remove_file(watched.path()).unwrap();
    let state = watched.until(|state| state.trouble.is_some()).await;
    assert_eq!(services(&state), ["web"]);
    let trouble = state.trouble.unwrap();
    assert_eq!(trouble.reason, "missing");
    assert!(trouble.summary().contains("mesh.toml: has vanished; put it there"), "{trouble:?}");

    fs::write(watched.path(), mesh(&["back"])).unwrap();
    let state = watched.until_services(&["back"]).await;
    assert!(state.trouble.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_vanishes_and_returns_is_watched_again() {
    let mut watched = Watched::start(None, Duration::from_millis(100));
    let directory = watched.directory.path().to_owned();
    fs::remove_dir(&directory).unwrap();
    watched.until(|state| state.trouble.is_some()).await;
    fs::create_dir(&directory).unwrap();
    fs::write(watched.path(), mesh(&["web"])).unwrap();
    watched.until_services(&["web"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_written_file_keeps_the_last_good_state_and_names_the_line() {
    let mut watched = Watched::ready(&mesh(&["web"])).await;
    fs::write(watched.path(), "[[service]]\nname = \"we").unwrap();
    let state = watched.until(|state| state.trouble.is_some()).await;
    assert_eq!(services(&state), ["web"]);
    assert_eq!(state.errors["invalid"], 1);
    let summary = state.trouble.unwrap().summary();
    assert!(summary.contains("mesh.toml:2: not valid TOML"), "{summary}");
}

/// Half of this file is a good file: reading it would take `zoo` away for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_who_is_not_done_is_waited_for() {
    use std::io::Write;
    let mut watched = Watched::ready(&mesh(&["web", "zoo"])).await;
    let mut file = fs::File::create(watched.path()).unwrap();
    write!(file, "{}", mesh(&["web"])).unwrap();
    file.flush().unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(services(&watched.state.borrow()), ["web", "zoo"]);
    write!(file, "{}", mesh(&["yak", "zoo"])).unwrap();
    drop(file);
    let state = watched.until_services(&["web", "yak", "zoo"]).await;
    assert_eq!(state.readings, 2, "nothing in between was read");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_file_keeps_the_last_good_state_and_says_how_to_mean_it() {
    let mut watched = Watched::ready(&mesh(&["web"])).await;
    fs::write(watched.path(), "\n").unwrap();
    let state = watched.until(|state| state.trouble.is_some()).await;
    assert_eq!(services(&state), ["web"]);
    let trouble = state.trouble.unwrap();
    assert_eq!(trouble.reason, "empty");
    assert!(trouble.summary().ends_with("write: service = []"), "{}", trouble.summary());

    fs::write(watched.path(), "service = []\n").unwrap();
    watched.until(|state| state.trouble.is_none() && services(state).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_text_keeps_the_last_good_state() {
    let mut watched = Watched::ready(&mesh(&["web"])).await;
    fs::write(watched.path(), [0xff, 0xfe, 0x00]).unwrap();
    let state = watched.until(|state| state.trouble.is_some()).await;
    assert_eq!(services(&state), ["web"]);
    assert!(state.trouble.unwrap().summary().contains("is not UTF-8 text"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_swapped_is_seen() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for (version, name) in [("v1", "old"), ("v2", "new")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("mesh.toml"), mesh(&[name])).unwrap();
    }
    std::os::unix::fs::symlink("v1", at("current")).unwrap();
    std::os::unix::fs::symlink("current/mesh.toml", at("mesh.toml")).unwrap();
    let config = FileSourceConfig { path: at("mesh.toml"), poll: NO_POLL };
    let (source, state) = FileSource::new(&config, Timeouts::default());
    let (reload, requests) = mpsc::channel(1);
    tokio::spawn(source.run(requests));
    let mut watched = Watched { directory, state, reload };
    watched.until_services(&["old"]).await;
    let at = |name: &str| watched.directory.path().join(name);
    std::os::unix::fs::symlink("v2", at("next")).unwrap();
    fs::rename(at("next"), at("current")).unwrap();
    watched.until_services(&["new"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_reads_the_file_whether_or_not_it_changed() {
    let mut watched = Watched::ready(&mesh(&["web"])).await;
    let before = watched.state.borrow().readings;
    watched.reload.send(()).await.unwrap();
    let state = watched.until(|state| state.readings > before).await;
    assert_eq!(services(&state), ["web"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_file_never_was_there_says_where_it_looks() {
    let mut watched = Watched::start(None, NO_POLL);
    let state = watched.until(|state| state.readings > 0).await;
    let summary = state.trouble.unwrap().summary();
    assert!(summary.contains("does not exist; put it there, or set source.file.path"), "{summary}");
}
