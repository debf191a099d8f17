//! Asking a running agent.

use std::time::Duration;

use anyhow::{Context as _, bail};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

/// How long an agent may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// How long its answer may be, in bytes.
const LONGEST_ANSWER: usize = 1 << 30;

/// What the agent at `source` answers for `path`.
///
/// # Errors
///
/// When it is no `http://` URL, or the agent does not answer, with what it says instead.
pub(super) fn ask(source: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    if !source.starts_with("http://") {
        bail!(
            "{source}: only http:// is spoken here; for another way fetch {path} with what speaks it (kubectl get --raw, curl) and name the file"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(fetch(source, path)).with_context(|| format!("cannot ask the agent at {source}"))
}

async fn fetch(source: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    let asked = match source.trim_end_matches('/') {
        url if url.ends_with(path) => url.to_owned(),
        url => format!("{url}{path}"),
    };
    let uri: axum::http::Uri = asked.parse().with_context(|| format!("{asked} is no URL"))?;
    let client = Client::builder(TokioExecutor::new()).build_http::<axum::body::Body>();
    let answer = async {
        let response = client.get(uri).await?;
        let status = response.status();
        let body = axum::body::to_bytes(axum::body::Body::new(response.into_body()), LONGEST_ANSWER).await?;
        if !status.is_success() {
            bail!("it answers {status}: {}", super::one_line(String::from_utf8_lossy(&body).trim_end()));
        }
        Ok(body.to_vec())
    };
    let answered = tokio::time::timeout(ANSWER_WITHIN, answer).await;
    answered.map_err(|_| anyhow::anyhow!("no answer within {ANSWER_WITHIN:?}"))?
}
