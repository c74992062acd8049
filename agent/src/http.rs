//! The HTTP server: the same read-only routes on the metrics port and on the admin socket. The socket
//! also answers what costs the agent something, and takes actions: flows to be ended, drains, an upgrade.

mod drain;
mod inspect;
mod page;
mod port;
mod scrape;
#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Mutex, Semaphore, mpsc, oneshot},
};
use tracing::{debug, warn};

pub use port::Port;
use scrape::Scrapes;

use crate::{api, dns::view::QueryView, health, metrics::Metrics, observe::Observer, upgrade};

/// What the routes answer from.
pub struct Routes {
    /// Makes observations.
    pub observer: Observer,
    /// Tells them as metrics.
    pub metrics: Arc<Metrics>,
    /// Takes upgrades that somebody asks for.
    pub upgrades: mpsc::Sender<upgrade::Request>,
    /// Held by whoever goes through the flow tables.
    passes: Mutex<()>,
    scrapes: Scrapes,
}

/// Why a server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The port.
    #[error("http.listen = \"{address}\": {cause}; choose another address or port, or \"off\"")]
    Listen {
        /// Where it was to listen.
        address: SocketAddr,
        /// Why it cannot.
        cause: io::Error,
    },
    /// The admin socket.
    #[error("socket.path = {path:?}: {cause}; choose a path in a directory that weir may write")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why it cannot be made.
        cause: io::Error,
    },
    /// A file that is no socket, at the path of the admin socket.
    #[error(
        "socket.path = {path:?}: there is a file that is no socket; remove it or choose another path"
    )]
    NoSocket {
        /// Its path.
        path: PathBuf,
    },
}

/// Connections served at once; more wait.
const MOST_CONNECTIONS: usize = 128;
/// A client that does not send its request within this time is let go.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Listens on the metrics port.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|cause| Error::Listen { address, cause })
}

/// Makes the admin socket. One that a dead agent left is replaced: the caller holds the lock that
/// says no live agent has it.
pub fn bind_socket(path: &Path) -> Result<UnixListener, Error> {
    let failed = |cause| Error::Socket { path: path.to_owned(), cause };
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            fs::remove_file(path).map_err(failed)?
        }
        Ok(_) => return Err(Error::NoSocket { path: path.to_owned() }),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

impl Routes {
    /// Answers from these.
    pub fn new(
        observer: Observer,
        metrics: Arc<Metrics>,
        upgrades: mpsc::Sender<upgrade::Request>,
    ) -> Self {
        Self { observer, metrics, upgrades, passes: Mutex::new(()), scrapes: Scrapes::default() }
    }

    /// Serves the metrics port for ever.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let routes = self.clone();
                    tokio::spawn(async move {
                        routes.connection(stream, Door::Port).await;
                        drop(permit);
                    });
                }
                Err(error) => refused(&error).await,
            }
        }
    }

    /// Serves the admin socket for ever.
    pub async fn serve_socket(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(self.clone().connection_of(stream))),
                Err(error) => refused(&error).await,
            }
        }
    }

    async fn connection_of(self: Arc<Self>, stream: tokio::net::UnixStream) {
        self.connection(stream, Door::Socket).await;
    }

    async fn connection(self: &Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin, door: Door) {
        let answer = service_fn(|request: Request<Incoming>| async move {
            Ok::<_, Infallible>(self.answer(&request, door).await)
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), answer);
        if let Err(error) = served.await {
            debug!(%error, "a connection ended early");
        }
    }

    async fn answer<B>(&self, request: &Request<B>, door: Door) -> Response<Full<Bytes>> {
        let (method, uri) = (request.method(), request.uri());
        if method == Method::POST && uri.path() == "/api/v1/upgrade" && door == Door::Socket {
            return self.upgrade().await;
        }
        let query = uri.query().unwrap_or_default();
        if let Some(answer) = self.inspect(method, uri.path(), query, door).await {
            return answer;
        }
        if method != Method::GET && method != Method::HEAD {
            let mut response = failure(StatusCode::METHOD_NOT_ALLOWED, "read-only: use GET");
            response
                .headers_mut()
                .insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match uri.path() {
            "/metrics" => self.scrape(request.headers()).await,
            "/healthz" => text(StatusCode::OK, "ok\n".into()),
            "/readyz" => self.readiness().await,
            "/api/v1/status" => json(&api::status(&self.observer.now().await)),
            "/api/v1/services" => {
                let now = self.observer.now_with_counters().await;
                json(&api::services(&now, uri.query().and_then(name_in)))
            }
            "/api/v1/tasks" => {
                let now = self.observer.now_with_counters().await;
                json(&api::tasks(&now, uri.query().and_then(name_in)))
            }
            "/api/v1/drops" => json(&api::drops(&self.observer.now_with_counters().await)),
            "/api/v1/nodes" => json(&api::nodes(&self.observer.now().await)),
            "/api/v1/state" => match self.observer.dump().await {
                Ok(dump) => json(&api::StateDump { dump }),
                Err(error) => failure(StatusCode::SERVICE_UNAVAILABLE, &error),
            },
            path if path.starts_with(DNS) => self.dns(&path[DNS.len()..], query, door).await,
            "/" if !page::wanted(request.headers()) => text(StatusCode::OK, INDEX.into()),
            path => page::file(path).unwrap_or_else(|| {
                failure(StatusCode::NOT_FOUND, "no such path; / lists what there is")
            }),
        }
    }

    async fn upgrade(&self) -> Response<Full<Bytes>> {
        let (answer, answered) = oneshot::channel();
        if self.upgrades.try_send(answer).is_err() {
            return failure(
                StatusCode::CONFLICT,
                "the agent does not run yet, or is upgrading already",
            );
        }
        match answered.await {
            Ok(Ok(pid)) => json(&api::Upgrade { pid }),
            Ok(Err(error)) => failure(StatusCode::INTERNAL_SERVER_ERROR, &error),
            Err(_) => failure(StatusCode::SERVICE_UNAVAILABLE, "the agent is ending"),
        }
    }

    async fn dns(&self, path: &str, query: &str, door: Door) -> Response<Full<Bytes>> {
        let Some(dns) = self.observer.dns() else {
            let problem = "there is no DNS server; set dns.listen";
            return failure(StatusCode::SERVICE_UNAVAILABLE, problem);
        };
        match path {
            "" => json(&dns.view()),
            "/records" => json(&dns.records()),
            "/cache" => json(&dns.cache()),
            "/upstreams" => json(&dns.upstreams()),
            // Whoever may only read does not make us ask others.
            "/query" if door == Door::Port => {
                failure(StatusCode::FORBIDDEN, "ask over the admin socket: weir dns query")
            }
            "/query" => {
                let kind = value_in(query, "type").unwrap_or("A");
                let from = match value_in(query, "from").map(str::parse) {
                    Some(Ok(from)) => Some(from),
                    Some(Err(_)) => return failure(StatusCode::BAD_REQUEST, "from= no IP address"),
                    None => None,
                };
                let name = value_in(query, "name").unwrap_or_default();
                match weir_dns::inspect::ask(&dns.handler, name, kind, from).await {
                    Ok(said) => json(&QueryView::from(said)),
                    Err(unasked) => failure(StatusCode::BAD_REQUEST, &unasked.to_string()),
                }
            }
            _ => failure(StatusCode::NOT_FOUND, "no such path; / lists what there is"),
        }
    }

    /// One line for each subsystem that is not ready.
    async fn readiness(&self) -> Response<Full<Bytes>> {
        let subsystems = health::subsystems(&self.observer.now().await);
        let lines: String = subsystems
            .iter()
            .filter(|subsystem| !subsystem.ready)
            .map(|subsystem| format!("{}: {}\n", subsystem.name, subsystem.reason))
            .collect();
        if lines.is_empty() {
            text(StatusCode::OK, "ready\n".into())
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, lines)
        }
    }
}

const INDEX: &str = "weir agent\n\
    /                 this, and the status page to a browser\n\
    /metrics          OpenMetrics\n\
    /healthz          200 while the agent runs\n\
    /readyz           200 when clients may be sent here; 503 names what is not ready\n\
    /api/v1/status    JSON, as are the following\n\
    /api/v1/services  ?name=NAME for one\n\
    /api/v1/tasks     ?name=NAME for those of one service\n\
    /api/v1/nodes\n\
    /api/v1/drops     why packets were not forwarded\n\
    /api/v1/state\n\
    /api/v1/dns       also /records, /cache, /upstreams\n";

/// Below this is what concerns the DNS server.
const DNS: &str = "/api/v1/dns";

/// By which way somebody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// The port for metrics and health.
    Port,
    /// The admin socket.
    Socket,
}

/// The `name=` of a query. Names of services need no escapes.
fn name_in(query: &str) -> Option<&str> {
    value_in(query, "name")
}

fn value_in<'q>(query: &'q str, key: &str) -> Option<&'q str> {
    let mut parts = query.split('&').filter_map(|part| part.split_once('='));
    parts.find(|(found, _)| *found == key).map(|(_, value)| value)
}

/// An answer that is an error.
type Refused = (StatusCode, String);

fn bad(problem: String) -> Refused {
    (StatusCode::BAD_REQUEST, problem)
}

fn unavailable(problem: impl ToString) -> Refused {
    (StatusCode::SERVICE_UNAVAILABLE, problem.to_string())
}

/// Out of file descriptors, most likely; trying again at once would only spin.
async fn refused(error: &io::Error) {
    warn!(%error, "cannot accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn json(body: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(body) {
        Ok(body) => response(StatusCode::OK, "application/json", body.into()),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn failure(status: StatusCode, error: &str) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(&api::Failure { error: error.to_owned() }).unwrap_or_default();
    response(status, "application/json", body.into())
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", body.into())
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
