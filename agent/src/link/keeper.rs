//! Keeps the identity up to date while certificates rotate.

use std::sync::Arc;

use tokio::sync::watch;
use tracing::{info, warn};
use weir_mesh::cluster::NodeId;

use super::{
    Settings,
    identity::{Error, Files},
    tls::Tls,
};

/// What is known of this node's identity.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The last that was good.
    pub tls: Option<Arc<Tls>>,
    /// What is wrong with the files now.
    pub trouble: Option<String>,
}

/// Reads the files now, and again whenever they change: they are looked at now and then.
/// Without files there is only the trouble that says so. The last good identity stays while the
/// files are no good. Ends when nobody listens.
pub fn keep(
    mut files: watch::Receiver<Option<Files>>,
    settings: &Settings,
) -> watch::Receiver<Known> {
    let mut seen = None;
    let mut first = Known::default();
    let (interval, node) = (settings.look, settings.node.clone());
    let now = files.borrow_and_update().clone();
    look(now, node.as_ref(), &mut seen, &mut first);
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = sender.closed() => return,
                changed = files.changed() => if changed.is_err() { return },
            }
            let now = files.borrow_and_update().clone();
            sender.send_if_modified(|known| look(now, node.as_ref(), &mut seen, known));
        }
    });
    receiver
}

type Seen = Option<(Files, [Vec<u8>; 3])>;

/// Whether anything changed. The files are small and few: reading them is as quick as asking when
/// they were written, and never wrong.
fn look(files: Option<Files>, node: Option<&NodeId>, seen: &mut Seen, known: &mut Known) -> bool {
    let Some(files) = files else {
        let trouble = "no certificates: this node is in no Swarm, and link.ca, link.certificate \
                       and link.key are not set";
        let changed = known.tls.is_some() || known.trouble.as_deref() != Some(trouble);
        *known = Known { tls: None, trouble: Some(trouble.into()) };
        *seen = None;
        return changed;
    };
    let found = Some((files.clone(), files.fingerprint()));
    // While there is trouble it is looked at again: it may be in more than the bytes.
    if found == *seen && known.trouble.is_none() {
        return false;
    }
    let same = found == *seen;
    *seen = found;
    match load(&files, node) {
        Ok(tls) => {
            info!(node = %tls.who.node, role = %tls.who.role, cluster = %tls.who.cluster,
                  days_left = tls.who.left().as_secs() / 86_400, "the link has an identity");
            *known = Known { tls: Some(Arc::new(tls)), trouble: None };
            true
        }
        Err(error) => {
            let trouble = error.to_string();
            let news = known.trouble.as_ref() != Some(&trouble);
            if news && !same {
                warn!(%trouble, "the link's certificates were not taken");
            }
            known.trouble = Some(trouble);
            news
        }
    }
}

fn load(files: &Files, node: Option<&NodeId>) -> Result<Tls, Error> {
    let identity = files.read()?;
    let (named, path) = (&identity.who.node, &files.certificate);
    if let Some(node) = node.filter(|node| *node != named) {
        let (path, node, named) = (path.clone(), node.clone(), named.clone());
        return Err(Error::Stranger { path, node, named });
    }
    Tls::new(&identity).map_err(|error| Error::Unfit {
        path: files.certificate.clone(),
        problem: error.to_string(),
    })
}
