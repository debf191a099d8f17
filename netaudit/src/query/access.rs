//! Who asks, and what the cluster lets him see: TokenReview and SubjectAccessReview.

use std::time::Duration;

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};

use crate::causes::with_causes;

/// What one must be allowed in a namespace to see its flows: `get` of this subresource.
const RESOURCE: (&str, &str) = ("pods", "flows");

/// How long the API server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why somebody gets no answer. What it says names nothing that he may not know.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("say who you are: Authorization: Bearer TOKEN, such as kubectl create token makes one")]
    NoToken,
    #[error("the API server does not accept this token: it may have expired")]
    NotAuthenticated,
    #[error("{user} may not get pods/flows in {}", place(namespace.as_deref()))]
    Forbidden { user: String, namespace: Option<String> },
    #[error("{0}")]
    Question(String),
    #[error("too many questions at once: ask again in a moment")]
    Busy,
    #[error("who may ask cannot be known now: {0}")]
    Unavailable(String),
}

fn place(namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("the namespace {namespace}"),
        None => "all namespaces: name those that are asked for with namespace=NAME".to_owned(),
    }
}

/// Somebody whom the API server knows.
#[derive(Debug)]
pub(super) struct User(UserInfo);

impl User {
    pub fn name(&self) -> &str {
        self.0.username.as_deref().unwrap_or_default()
    }
}

/// Asks the API server.
#[derive(Clone)]
pub struct Access {
    client: Client,
}

impl Access {
    /// By the rights of `client`: to create TokenReviews and SubjectAccessReviews.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Whose token it is.
    pub(super) async fn user(&self, token: &str) -> Result<User, Refusal> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: None };
        let review = TokenReview { spec, ..TokenReview::default() };
        let status = create(&self.client, &review).await?.status.unwrap_or_default();
        match status.user {
            Some(user) if status.authenticated == Some(true) => Ok(User(user)),
            _ => Err(Refusal::NotAuthenticated),
        }
    }

    /// Whether he may see the flows of all of these namespaces; of all that there are where none is named.
    pub(super) async fn allow(&self, user: &User, namespaces: &[String]) -> Result<(), Refusal> {
        // Who may see all needs no right for each.
        if self.may(user, None).await? {
            return Ok(());
        }
        let forbidden = |namespace: Option<&String>| Refusal::Forbidden {
            user: user.name().to_owned(),
            namespace: namespace.cloned(),
        };
        if namespaces.is_empty() {
            return Err(forbidden(None));
        }
        for namespace in namespaces {
            if !self.may(user, Some(namespace)).await? {
                return Err(forbidden(Some(namespace)));
            }
        }
        Ok(())
    }

    async fn may(&self, user: &User, namespace: Option<&str>) -> Result<bool, Refusal> {
        let (resource, subresource) = RESOURCE;
        let asked = ResourceAttributes {
            verb: Some("get".to_owned()),
            resource: Some(resource.to_owned()),
            subresource: Some(subresource.to_owned()),
            namespace: namespace.map(str::to_owned),
            ..ResourceAttributes::default()
        };
        let UserInfo { extra, groups, uid, username } = user.0.clone();
        let spec = SubjectAccessReviewSpec {
            extra,
            groups,
            uid,
            user: username,
            resource_attributes: Some(asked),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let status = create(&self.client, &review).await?.status.unwrap_or_default();
        Ok(status.allowed && status.denied != Some(true))
    }
}

async fn create<R>(client: &Client, review: &R) -> Result<R, Refusal>
where
    R: kube::Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
        + serde::Serialize
        + serde::de::DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    let unavailable = |reason: String| {
        tracing::warn!(reason, "who asks for flows, and what he may see, cannot be known");
        Refusal::Unavailable(reason)
    };
    let api: Api<R> = Api::all(client.clone());
    match tokio::time::timeout(PATIENCE, api.create(&PostParams::default(), review)).await {
        Ok(Ok(review)) => Ok(review),
        Ok(Err(error)) => Err(unavailable(with_causes(&error))),
        Err(_) => Err(unavailable("the API server does not answer".to_owned())),
    }
}
