//! What an operator drains by hand: asked, and changed over the admin socket alone.

use http_body_util::Full;
use hyper::{Response, StatusCode, body::Bytes};
use weir_mesh::MeshSnapshot;

use super::{Refused, Routes, bad, json, unavailable, value_in};
use crate::{
    document::missing,
    drain::{DrainedTask, Drains, Error},
};

/// What is not to be drained any more.
enum What {
    Node,
    Tasks(Vec<DrainedTask>),
    All,
}

impl Routes {
    pub(super) fn drained(&self) -> Result<Response<Full<Bytes>>, Refused> {
        Ok(json(&*self.drains()?.now()))
    }

    pub(super) async fn drain(&self, query: &str) -> Result<Response<Full<Bytes>>, Refused> {
        let drains = self.drains()?;
        let snapshot = self.observer.now().await.view.snapshot;
        let known = snapshot.clone().unwrap_or_default();
        let task = match value_in(query, "task") {
            Some(name) => Some(in_mesh(&known, name, value_in(query, "service"))?),
            None if value_in(query, "node") == Some("true") => None,
            None => return Err(bad("name a task, or node=true".to_owned())),
        };
        let changed = drains.change(|drained| {
            // Those that have left the mesh are forgotten: in a Swarm none comes back.
            if let Some(snapshot) = &snapshot {
                drained.tasks.retain(|task| task.is_in(snapshot));
            }
            drained.node |= task.is_none();
            drained.tasks.extend(task);
        });
        changed.await.map(|drained| json(&*drained)).map_err(refused)
    }

    pub(super) async fn undrain(&self, query: &str) -> Result<Response<Full<Bytes>>, Refused> {
        let drains = self.drains()?;
        let flag = |key| value_in(query, key) == Some("true");
        let what = match value_in(query, "task") {
            Some(name) => What::Tasks(by_hand(drains, name, value_in(query, "service"))?),
            None if flag("node") => What::Node,
            None if flag("all") => What::All,
            None => return Err(bad("name a task, node=true or all=true".to_owned())),
        };
        let changed = drains.change(|drained| match what {
            What::Node => drained.node = false,
            What::Tasks(tasks) => drained.tasks.retain(|task| !tasks.contains(task)),
            What::All => *drained = Default::default(),
        });
        changed.await.map(|drained| json(&*drained)).map_err(refused)
    }

    fn drains(&self) -> Result<&Drains, Refused> {
        let drains = self.observer.drains().map(|drains| &**drains);
        drains.ok_or_else(|| unavailable("the agent is starting"))
    }
}

fn refused(error: Error) -> Refused {
    (StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}

/// The one task of this name.
fn in_mesh(
    snapshot: &MeshSnapshot,
    name: &str,
    service: Option<&str>,
) -> Result<DrainedTask, Refused> {
    let services = snapshot.services.values();
    let wanted = services.filter(|it| service.is_none_or(|wanted| it.name.as_str() == wanted));
    let tasks = wanted.flat_map(|service| {
        service.tasks.iter().map(|task| DrainedTask {
            service: service.name.clone(),
            task: task.name.clone(),
            node: task.node.clone(),
        })
    });
    let all: Vec<DrainedTask> = tasks.collect();
    let mut found = all.iter().filter(|one| one.task.as_str() == name);
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only.clone()),
        (Some(one), Some(other)) => Err(bad(format!(
            "there is a task \"{name}\" of {} and one of {}: name the service",
            one.service, other.service
        ))),
        (None, _) => Err(bad(missing("task", name, all.iter().map(|task| task.task.as_str())))),
    }
}

/// Tasks that are drained; they may have left the mesh.
fn by_hand(
    drains: &Drains,
    name: &str,
    service: Option<&str>,
) -> Result<Vec<DrainedTask>, Refused> {
    let drained = drains.now();
    let named = drained.tasks.iter().filter(|task| {
        task.task.as_str() == name && service.is_none_or(|wanted| task.service.as_str() == wanted)
    });
    let named: Vec<DrainedTask> = named.cloned().collect();
    match named.is_empty() {
        true => Err(bad(format!(
            "task \"{name}\" is not drained by hand; weir drain list shows what is"
        ))),
        false => Ok(named),
    }
}
