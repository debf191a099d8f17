//! The thread that sends requests, one after the other.

use std::{
    fs,
    path::PathBuf,
    sync::{atomic::Ordering, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use axum::http::{
    HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri,
    header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry_proto::tonic::{collector::logs::v1::ExportLogsServiceResponse, resource::v1::Resource};
use prost::Message as _;

use super::{Batch, Settings, Shared, record};
use crate::causes::with_causes;

/// Where receivers take logs.
const PATH: &str = "/v1/logs";

/// How long a receiver may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long after a failure the first new attempt is made; then twice as long, each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// And how long at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How often whoever waits looks whether the agent ends.
const LOOK: Duration = Duration::from_millis(20);

/// Sends requests to one receiver.
pub(super) struct Sender {
    to: Uri,
    headers: Option<PathBuf>,
    resource: Resource,
    clients: Clients,
    runtime: tokio::runtime::Runtime,
}

enum Clients {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

/// What became of a request.
enum Answer {
    /// It was taken, but for so many records.
    Taken { rejected: u64, why: String },
    /// It will never be taken.
    Refused(String),
    /// It may be taken later; perhaps it is said when.
    Later(String, Option<Duration>),
}

impl Sender {
    pub fn new(settings: &Settings) -> anyhow::Result<Self> {
        let Settings { endpoint, headers, node, .. } = settings;
        let base = endpoint.trim_end_matches('/');
        let whole = if base.ends_with(PATH) { base.to_owned() } else { format!("{base}{PATH}") };
        let wrong = || format!("{endpoint:?} is no endpoint: give one such as http://collector:4318");
        let to: Uri = whole.parse().with_context(wrong)?;
        ensure!(to.authority().is_some(), wrong());
        let clients = match to.scheme_str() {
            Some("http") => Clients::Plain(Client::builder(TokioExecutor::new()).build_http()),
            Some("https") => {
                let tls = HttpsConnectorBuilder::new()
                    .with_native_roots()
                    .context("no certificate authorities ($SSL_CERT_FILE can name them)")?;
                let connector = tls.https_only().enable_http1().build();
                Clients::Tls(Client::builder(TokioExecutor::new()).build(connector))
            }
            _ => anyhow::bail!(wrong()),
        };
        if let Some(file) = headers {
            read_headers(file)?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let resource = record::resource(node);
        Ok(Self { to, headers: headers.clone(), resource, clients, runtime })
    }

    fn send(&self, body: Bytes) -> Answer {
        let mut request = Request::post(self.to.clone())
            .header(CONTENT_TYPE, "application/x-protobuf")
            .header(USER_AGENT, concat!("netaudit/", env!("CARGO_PKG_VERSION")));
        if let (Some(file), Some(to)) = (&self.headers, request.headers_mut()) {
            match read_headers(file) {
                Ok(headers) => to.extend(headers),
                // It is being replaced, or was lost: nothing is sent without.
                Err(error) => return Answer::Later(format!("{error:#}"), None),
            }
        }
        let request = match request.body(Full::new(body)) {
            Ok(request) => request,
            Err(error) => return Answer::Refused(error.to_string()),
        };
        let answer = async {
            let answer = match &self.clients {
                Clients::Plain(client) => client.request(request).await,
                Clients::Tls(client) => client.request(request).await,
            };
            let (head, body) = answer.map_err(|error| with_causes(&error))?.into_parts();
            let body = body.collect().await.map_err(|error| with_causes(&error))?.to_bytes();
            Ok::<_, String>((head, body))
        };
        match self.runtime.block_on(async { tokio::time::timeout(PATIENCE, answer).await }) {
            Err(_) => Answer::Later(format!("{}: no answer within {PATIENCE:?}", self.to), None),
            Ok(Err(fault)) => Answer::Later(format!("{}: {fault}", self.to), None),
            Ok(Ok((head, body))) => answered(&self.to, head.status, &head.headers, body),
        }
    }
}

fn answered(to: &Uri, status: StatusCode, headers: &HeaderMap, body: Bytes) -> Answer {
    if status.is_success() {
        let partial = ExportLogsServiceResponse::decode(body).ok().and_then(|answer| answer.partial_success);
        let partial = partial.unwrap_or_default();
        let rejected = u64::try_from(partial.rejected_log_records).unwrap_or(0);
        return Answer::Taken { rejected, why: partial.error_message };
    }
    let fault = format!("{to} answers {status}");
    // As OTLP has it.
    match status.as_u16() {
        429 | 502 | 503 | 504 => {
            let after = headers.get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
            Answer::Later(fault, after.map(Duration::from_secs))
        }
        _ => Answer::Refused(fault),
    }
}

/// Sends what comes, until nothing comes any more.
pub(super) fn run(sender: &Sender, batches: &mpsc::Receiver<Batch>, shared: &Shared) {
    for batch in batches {
        let (records, bytes) = (batch.records.len() as u64, batch.bytes());
        let body = Bytes::from(batch.into_body(&sender.resource));
        let mut pause = FIRST_PAUSE;
        let was_sent = loop {
            match sender.send(body.clone()) {
                Answer::Taken { rejected, why } => {
                    let rejected = rejected.min(records);
                    shared.taken.fetch_add(records - rejected, Ordering::Relaxed);
                    shared.rejected.fetch_add(rejected, Ordering::Relaxed);
                    match rejected {
                        0 => shared.works(),
                        _ => shared.fails(&format!("{} takes a part only: {why}", sender.to)),
                    }
                    break true;
                }
                Answer::Refused(fault) => {
                    shared.refused.fetch_add(records, Ordering::Relaxed);
                    shared.fails(&fault);
                    break true;
                }
                Answer::Later(fault, after) => {
                    shared.fails(&fault);
                    if shared.is_ending()
                        || !rest(after.unwrap_or(pause).clamp(FIRST_PAUSE, LONGEST_PAUSE), shared)
                    {
                        break false;
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        };
        if !was_sent {
            // What still waits is told as not sent by whoever ends us.
            return;
        }
        shared.queued.fetch_sub(bytes, Ordering::Relaxed);
        shared.queued_records.fetch_sub(records, Ordering::Relaxed);
    }
}

/// Waits; returns whether the agent does not end.
fn rest(pause: Duration, shared: &Shared) -> bool {
    let until = Instant::now() + pause;
    while Instant::now() < until {
        if shared.is_ending() {
            return false;
        }
        thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
    }
    true
}

/// Headers, `Name: value` a line; empty lines and those that begin with # are none. Faults never have a value in them.
fn read_headers(file: &PathBuf) -> anyhow::Result<HeaderMap> {
    let text = fs::read_to_string(file)
        .with_context(|| format!("cannot read the file of headers {}", file.display()))?;
    let mut headers = HeaderMap::new();
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    for (number, line) in lines {
        let wrong = || format!("line {number} of {} is no header: give `Name: value`", file.display());
        let (name, value) = line.split_once(':').with_context(wrong)?;
        let name: HeaderName = name.trim().parse().with_context(wrong)?;
        let mut value = HeaderValue::from_str(value.trim()).ok().with_context(wrong)?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}
