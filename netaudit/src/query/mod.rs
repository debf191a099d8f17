//! The agent's own answers to who asks for flows, for those whom the cluster lets: off unless an address is given.
//!
//! ```text
//! GET /flows?namespace=shop&since=1h   Authorization: Bearer TOKEN
//!     │ TokenReview ───────────────► who asks, or 401
//!     │ SubjectAccessReview ───────► get pods/flows in each namespace that is asked for, or 403
//!     └─► the flow store of this node ─► JSON lines of flows whose subject is there, then whether any is missing
//! ```
//!
//! It listens on loopback addresses only, since a token must not cross a network in the clear: `kubectl port-forward` leads
//! there. Nothing is kept of a token or of an answer: who loses a right has lost it at once.

mod access;
mod flows;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context as _, ensure};
use axum::{
    Router,
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, sync::Semaphore};

pub use access::Access;
use access::Refusal;

/// Questions that are answered at once: each reads files beside the agent's work, and asks the API server first.
const MOST_AT_ONCE: usize = 2;

/// What the server knows.
struct Shared {
    access: Access,
    store: PathBuf,
    places: Arc<Semaphore>,
}

/// Binds the address.
///
/// # Errors
///
/// It is no loopback address, or in use.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    ensure!(
        address.ip().is_loopback(),
        "questions are not answered on {address}: those who ask send a token, which must not cross a network in the clear. Choose a \
         port of 127.0.0.1 or [::1], and let people come by kubectl port-forward"
    );
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: choose another address with --query-listen, or end what listens there")
    })
}

/// Serves until the listener fails: the flows of the store in `store`, to whom `access` lets.
///
/// # Errors
///
/// The listener failed.
pub async fn serve(listener: TcpListener, access: Access, store: PathBuf) -> anyhow::Result<()> {
    let shared = Shared { access, store, places: Arc::new(Semaphore::new(MOST_AT_ONCE)) };
    let router = Router::new().route("/flows", get(flows)).with_state(Arc::new(shared));
    axum::serve(listener, router).await.context("the server of questions ended")
}

async fn flows(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    // Before anybody is asked who this is: whoever floods this must not flood the API server.
    let place = shared.places.clone().try_acquire_owned().map_err(|_| Refusal::Busy)?;
    let user = shared.access.user(token(&headers)?).await?;
    let question = flows::Question::read(query.as_deref().unwrap_or_default()).map_err(Refusal::Question)?;
    shared.access.allow(&user, question.namespaces()).await?;
    // Not what else was asked: it may be an address or a name that this agent does not tell.
    tracing::info!(user = user.name(), namespaces = ?question.namespaces(), "flows are asked for");
    let body = question.answer(shared.store.clone(), place);
    Ok(([(header::CONTENT_TYPE, "application/jsonl")], body).into_response())
}

/// The token of whoever asks (RFC 6750, 2.1).
fn token(headers: &HeaderMap) -> Result<&str, Refusal> {
    let value = headers.get(header::AUTHORIZATION).ok_or(Refusal::NoToken)?;
    let (scheme, token) =
        value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(Refusal::NoToken)?;
    if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
        return Err(Refusal::NoToken);
    }
    Ok(token.trim())
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::NoToken | Self::NotAuthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::Question(_) => StatusCode::BAD_REQUEST,
            Self::Busy | Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        let text = format!("{self}\n");
        match status {
            StatusCode::UNAUTHORIZED => {
                (status, [(header::WWW_AUTHENTICATE, "Bearer")], text).into_response()
            }
            status => (status, text).into_response(),
        }
    }
}
