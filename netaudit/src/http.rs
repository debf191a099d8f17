//! `/metrics`, `/usage`, `/healthz` and `/readyz`.
//!
//! Handlers hold no state: each asks the agent's loop, which owns everything, and waits for its answer.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};

use crate::{metrics::Format, store};

/// What a handler asks of the agent's loop.
#[derive(Debug)]
pub enum Request {
    /// All metrics.
    Metrics(Format, oneshot::Sender<String>),
    /// Whether it does its work.
    Readiness(oneshot::Sender<Readiness>),
    /// What was found on flows, as JSON.
    Findings(oneshot::Sender<String>),
    /// The use of rules.
    Usage(oneshot::Sender<UsageDocuments>),
}

/// What an agent knows of the use of rules, as documents of rows.
#[derive(Debug)]
pub struct UsageDocuments {
    /// Where more of them are, in files.
    pub directory: Option<PathBuf>,
    /// Those of now.
    pub text: Vec<Vec<u8>>,
}

/// Whether the agent does its work, and what it lacks.
#[derive(Debug)]
pub struct Readiness {
    /// What is missing for being ready: nothing if empty.
    pub missing: Vec<String>,
    /// What is not as it should be, though the agent does its work.
    pub degraded: Vec<String>,
}

/// Binds the address. A port in use is said with the address and what to do.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: choose another address with --listen, or end what listens there")
    })
}

/// Serves until the listener fails.
pub async fn serve(listener: TcpListener, agent: mpsc::Sender<Request>) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/findings", get(findings))
        .route("/usage", get(usage))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(agent);
    axum::serve(listener, router).await.context("the HTTP server ended")
}

async fn metrics(State(agent): State<mpsc::Sender<Request>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::accepted(accept);
    match ask(&agent, |answer| Request::Metrics(format, answer)).await {
        Some(text) => ([(header::CONTENT_TYPE, format.content_type())], text).into_response(),
        None => ending(),
    }
}

/// What was found, as `netaudit findings` reads it.
async fn findings(State(agent): State<mpsc::Sender<Request>>) -> Response {
    match ask(&agent, Request::Findings).await {
        Some(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        None => ending(),
    }
}

/// All rows, as `netaudit usage` reads them.
async fn usage(State(agent): State<mpsc::Sender<Request>>) -> Response {
    let Some(UsageDocuments { directory, text }) = ask(&agent, Request::Usage).await else { return ending() };
    let stored = match directory {
        Some(path) => tokio::task::spawn_blocking(move || store::texts(&path)).await,
        None => Ok(Ok(Vec::new())),
    };
    match stored {
        Ok(Ok(stored)) => {
            let body: Vec<u8> = stored.into_iter().chain(text).flatten().collect();
            ([(header::CONTENT_TYPE, "application/jsonl")], body).into_response()
        }
        Ok(Err(error)) => {
            let text = format!("{:#}\n", anyhow::Error::from(error));
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
        Err(_) => ending(),
    }
}

/// Alive means that the loop still answers.
async fn healthz(State(agent): State<mpsc::Sender<Request>>) -> Response {
    match ask(&agent, Request::Readiness).await {
        Some(_) => "ok\n".into_response(),
        None => ending(),
    }
}

async fn readyz(State(agent): State<mpsc::Sender<Request>>) -> Response {
    let Some(readiness) = ask(&agent, Request::Readiness).await else { return ending() };
    let lines =
        |word: &str, what: &[String]| what.iter().map(|what| format!("{word}: {what}\n")).collect::<String>();
    let text = lines("missing", &readiness.missing) + &lines("degraded", &readiness.degraded);
    if readiness.missing.is_empty() {
        format!("ready\n{text}").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

async fn ask<T>(
    agent: &mpsc::Sender<Request>,
    request: impl FnOnce(oneshot::Sender<T>) -> Request,
) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    agent.send(request(answer)).await.ok()?;
    answered.await.ok()
}

fn ending() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the agent is ending\n").into_response()
}
