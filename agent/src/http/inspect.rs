//! Questions that cost the agent something, and actions: for the admin socket alone.

use std::net::{IpAddr, SocketAddr};

use http_body_util::Full;
use hyper::{Method, Response, StatusCode, body::Bytes};
use weir_mesh::Protocol;

use super::{Door, Refused, Routes, bad, failure, json, unavailable, value_in};
use crate::{
    api::{self, FlowBook, FlowFilter},
    reconciler::Asked,
};

/// What is listed unless a limit is given.
const USUAL: usize = 100;

impl Routes {
    /// The answer, if the path is one of these.
    pub(super) async fn inspect(
        &self,
        method: &Method,
        path: &str,
        query: &str,
        door: Door,
    ) -> Option<Response<Full<Bytes>>> {
        let acts = ["/api/v1/flows/kill", "/api/v1/drain", "/api/v1/undrain"].contains(&path);
        let reads = ["/api/v1/trace", "/api/v1/flows", "/api/v1/drops/packets", "/api/v1/drained"];
        if !acts && !reads.contains(&path) {
            return None;
        }
        if door == Door::Port {
            let problem =
                "only over the admin socket: weir trace, weir flows, weir monitor, weir drain";
            return Some(failure(StatusCode::FORBIDDEN, problem));
        }
        if acts != (*method == Method::POST) {
            let problem = if acts { "this changes something: use POST" } else { "use GET" };
            return Some(failure(StatusCode::METHOD_NOT_ALLOWED, problem));
        }
        // Whoever opens the data plane answers nothing meanwhile.
        let data_plane = ["/api/v1/trace", "/api/v1/flows", "/api/v1/flows/kill"].contains(&path);
        if data_plane && !self.observer.now().await.opened {
            let problem = "the data plane is being opened; weir status says how that goes";
            return Some(failure(StatusCode::SERVICE_UNAVAILABLE, problem));
        }
        let answer = match path {
            "/api/v1/trace" => self.trace(query).await,
            "/api/v1/flows" => self.flows(query).await,
            "/api/v1/drops/packets" => self.dropped().await,
            "/api/v1/drained" => self.drained(),
            "/api/v1/drain" => self.drain(query).await,
            "/api/v1/undrain" => self.undrain(query).await,
            _ => self.kill(query).await,
        };
        Some(answer.unwrap_or_else(|(status, problem)| failure(status, &problem)))
    }

    async fn trace(&self, query: &str) -> Result<Response<Full<Bytes>>, Refused> {
        let client: IpAddr = parsed(query, "client", "an IP address")?
            .ok_or_else(|| bad("client=: write an IP address".to_owned()))?;
        let to: SocketAddr = parsed(query, "to", "an address and a port")?
            .ok_or_else(|| bad("to=: write an address and a port".to_owned()))?;
        let protocol = match value_in(query, "protocol") {
            None | Some("tcp") => Protocol::Tcp,
            Some("udp") => Protocol::Udp,
            Some(other) => return Err(bad(format!("protocol={other}: write tcp or udp"))),
        };
        let client_port = parsed(query, "port", "a port from 1 to 65535")?;
        let asked = Asked { protocol, client, client_port, to };
        let traced = self.observer.trace(asked).await.map_err(unavailable)?;
        let now = self.observer.now().await;
        if now.report.generation.is_none() {
            return Err(unavailable("there is no snapshot yet; weir status says why"));
        }
        Ok(json(&api::trace(&now, &asked, &traced)))
    }

    async fn flows(&self, query: &str) -> Result<Response<Full<Bytes>>, Refused> {
        let (filter, limit) = (filter_in(query)?, limit_in(query)?.unwrap_or(USUAL));
        self.with_flows(move |book| book.list(&filter, limit)).await.map(|flows| json(&flows))
    }

    /// Addresses of clients are nobody's business but the operator's.
    async fn dropped(&self) -> Result<Response<Full<Bytes>>, Refused> {
        let now = self.observer.now().await;
        let packets = match now.opened {
            true => self.observer.last_drops().await.map_err(unavailable)?,
            false => Vec::new(),
        };
        Ok(json(&api::dropped_packets(&now, &packets)))
    }

    async fn kill(&self, query: &str) -> Result<Response<Full<Bytes>>, Refused> {
        let (filter, limit) = (filter_in(query)?, limit_in(query)?.unwrap_or(api::MOST_FLOWS));
        if filter.is_empty() && value_in(query, "all") != Some("true") {
            let problem =
                "nothing says which flows: name service, client, backend or state, or all";
            return Err(bad(problem.to_owned()));
        }
        let killed = self.with_flows(move |book| book.kill(&filter, limit)).await?;
        tracing::info!(killed = killed.killed, query, "flows were ended on request");
        Ok(json(&killed))
    }

    /// One pass over the tables at a time, on a thread that may wait.
    async fn with_flows<T: Send + 'static>(
        &self,
        work: impl FnOnce(&FlowBook) -> Result<T, String> + Send + 'static,
    ) -> Result<T, Refused> {
        let _alone = self.passes.lock().await;
        let source = self.observer.flows().await.map_err(unavailable)?;
        let Some(source) = source else {
            let problem = "the userspace proxy serves this node, whose connections are not listed: \
                           weir services shows how many there are";
            return Err(unavailable(problem));
        };
        let snapshot = self.observer.now().await.view.snapshot.unwrap_or_default();
        let work = tokio::task::spawn_blocking(move || work(&FlowBook::new(source, &snapshot)));
        work.await.map_err(unavailable)?.map_err(bad)
    }
}

fn filter_in(query: &str) -> Result<FlowFilter, Refused> {
    Ok(FlowFilter {
        service: value_in(query, "service").map(str::to_owned),
        client: value_in(query, "client").map(str::parse).transpose().map_err(bad)?,
        backend: value_in(query, "backend").map(str::to_owned),
        state: value_in(query, "state").map(api::stage).transpose().map_err(bad)?,
    })
}

fn limit_in(query: &str) -> Result<Option<usize>, Refused> {
    let limit: Option<usize> = parsed(query, "limit", "a whole number")?;
    match limit {
        Some(limit) if limit == 0 || limit > api::MOST_FLOWS => {
            Err(bad(format!("limit={limit}: write a number from 1 to {}", api::MOST_FLOWS)))
        }
        limit => Ok(limit),
    }
}

fn parsed<T: std::str::FromStr>(query: &str, key: &str, right: &str) -> Result<Option<T>, Refused> {
    let Some(text) = value_in(query, key) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| bad(format!("{key}={text}: write {right}")))
}
