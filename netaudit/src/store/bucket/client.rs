//! How requests are made: by the HTTP client and the TLS that the watches use too.

use std::{io, time::Duration};

use async_trait::async_trait;
use http_body_util::BodyExt as _;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector as Tcp},
    rt::{TokioExecutor, TokioTimer},
};
use object_store::{
    ClientConfigKey, ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
        HttpService,
    },
};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a connection that nothing is asked on is kept.
const IDLE: Duration = Duration::from_secs(30);

/// Makes clients.
#[derive(Debug)]
pub(super) struct Connector {
    /// How long a request may take, with its answer.
    pub patience: Duration,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let allows_plain = options.get_config_value(&ClientConfigKey::AllowHttp).as_deref() == Some("true");
        let mut tcp = Tcp::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT.min(self.patience)));
        let plain = allows_plain.then(|| client(tcp.clone()));
        let tls = match HttpsConnectorBuilder::new().with_native_roots() {
            Ok(builder) => Some(client(builder.https_only().enable_http1().wrap_connector(tcp))),
            // Nobody is asked for a certificate where nothing is encrypted.
            Err(_) if allows_plain => None,
            Err(error) => {
                let source = format!("no certificate authorities ($SSL_CERT_FILE can name them): {error}");
                return Err(object_store::Error::Generic { store: "S3", source: source.into() });
            }
        };
        Ok(HttpClient::new(Service { plain, tls, patience: self.patience }))
    }
}

fn client<C>(connector: C) -> Client<C, HttpRequestBody>
where
    C: hyper_util::client::legacy::connect::Connect + Clone,
{
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .build(connector)
}

#[derive(Debug)]
struct Service {
    plain: Option<Client<Tcp, HttpRequestBody>>,
    tls: Option<Client<HttpsConnector<Tcp>, HttpRequestBody>>,
    patience: Duration,
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let is_tls = request.uri().scheme_str() == Some("https");
        let answer = async {
            let answer = match (is_tls, &self.plain, &self.tls) {
                (true, _, Some(tls)) => tls.request(request).await,
                (false, Some(plain), _) => plain.request(request).await,
                _ => {
                    let what =
                        "neither http without encryption is allowed, nor is anybody known to certify https";
                    return Err(HttpError::new(HttpErrorKind::Unknown, io::Error::other(what)));
                }
            };
            let (head, body) = answer.map_err(unanswered)?.into_parts();
            // Whole, within the time: answers are parts of objects, and pages of lists.
            let body =
                body.collect().await.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error))?;
            Ok(HttpResponse::from_parts(head, body.to_bytes().into()))
        };
        match tokio::time::timeout(self.patience, answer).await {
            Ok(answer) => answer,
            Err(_) => {
                let what = format!("no answer within {:?}", self.patience);
                Err(HttpError::new(HttpErrorKind::Timeout, io::Error::other(what)))
            }
        }
    }
}

fn unanswered(error: hyper_util::client::legacy::Error) -> HttpError {
    let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Interrupted };
    HttpError::new(kind, error)
}
