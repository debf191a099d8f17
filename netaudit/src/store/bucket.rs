//! A bucket of an object store that speaks S3: where files of flows go, and are read from by parts.
//!
//! ```text
//! s3://BUCKET/PREFIX / flows / date=2026-01-31 / hour=07 / <run>-<first>-<last>.parquet    as in the directory of a flow store
//!                    / objects / date=2026-01-31 / hour=07 / …                             its history, of which nothing is folded
//!                    / snapshots / date=2026-01-31 / hour=07 / …                           of which these tell what still held
//!                    / usage / <node> / usage-….jsonl                                       the use of rules, as in a state directory
//! ```
//!
//! Credentials are found as `object_store` does it: in the environment (`AWS_ACCESS_KEY_ID`, …), by the ServiceAccount's token, or
//! from the instance. What is told of a fault has none of them.

mod client;

use std::{fmt, fs::File, io::Read as _, ops::Range, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{
    BackoffConfig, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, PutPayload, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
    path::Path as Key,
};
use tokio::runtime::Runtime;

use crate::causes::with_causes;
use client::Connector;

/// How a URL of a bucket begins.
pub const SCHEME: &str = "s3://";

/// Bytes of one request at most, and so what an upload has in memory: the least that S3 takes as a part of an object.
const PART: usize = 5 << 20;

/// How long one request may take, and its answer.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Which bucket, and how it is reached.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Access {
    /// Where the object store is; else `$AWS_ENDPOINT_URL`, else AWS's of the region.
    pub endpoint: Option<String>,
    /// The region of the bucket; else `$AWS_REGION`, else `us-east-1`.
    pub region: Option<String>,
    /// Whether the bucket is part of the host's name, and not of the path.
    pub virtual_hosted: bool,
}

/// A bucket, or what is below a prefix in it.
#[derive(Clone)]
pub struct Bucket {
    store: Arc<AmazonS3>,
    prefix: Key,
    url: Arc<str>,
    /// The endpoint, or else the region: where a bucket of that name is.
    place: Arc<str>,
    runtime: Arc<Own>,
}

/// A runtime that can be let go anywhere, also where nobody may block.
struct Own(Option<Runtime>);

impl Own {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        match &self.0 {
            Some(runtime) => runtime.block_on(future),
            None => unreachable!("it is taken when it is dropped"),
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never what it is opened with.
        write!(f, "Bucket({})", self.url)
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.url)
    }
}

/// An object of a bucket.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Object {
    /// Its key, below the bucket's prefix.
    pub key: String,
    /// Its bytes.
    pub bytes: u64,
}

/// The bucket and the prefix of a URL.
///
/// # Errors
///
/// It is none.
pub fn parse_url(url: &str) -> anyhow::Result<(String, Key)> {
    let wrong = || format!("{url:?} names no bucket: give one such as s3://bucket or s3://bucket/prefix");
    let rest = url.strip_prefix(SCHEME).with_context(wrong)?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    ensure!((3..=63).contains(&bucket.len()) && bucket.bytes().all(is_letter), wrong());
    let prefix = Key::parse(prefix.trim_end_matches('/')).with_context(wrong)?;
    Ok((bucket.to_owned(), prefix))
}

impl Bucket {
    /// The bucket of a URL. It is not asked for anything yet.
    ///
    /// # Errors
    ///
    /// The URL, the endpoint or the credentials cannot be right.
    pub fn open(url: &str, access: &Access) -> anyhow::Result<Self> {
        Self::open_with(url, access, PATIENCE, None)
    }

    /// The same, with another patience, and with credentials (key and secret) instead of those that are found.
    ///
    /// # Errors
    ///
    /// The URL, the endpoint or the credentials cannot be right.
    pub fn open_with(
        url: &str,
        access: &Access,
        patience: Duration,
        credentials: Option<(&str, &str)>,
    ) -> anyhow::Result<Self> {
        let (bucket, prefix) = parse_url(url)?;
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(200),
                max_backoff: Duration::from_secs(5),
                base: 2.0,
            },
            max_retries: 3,
            retry_timeout: patience * 2,
        };
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_retry(retry)
            .with_http_connector(Connector { patience });
        if let Some(region) = &access.region {
            builder = builder.with_region(region);
        }
        if access.virtual_hosted {
            builder = builder.with_virtual_hosted_style_request(true);
        }
        if let Some((key, secret)) = credentials {
            builder = builder.with_access_key_id(key).with_secret_access_key(secret);
        }
        if let Some(endpoint) = &access.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
        }
        if let Some(endpoint) = builder.get_config_value(&AmazonS3ConfigKey::Endpoint) {
            match endpoint.split_once("://").map(|(scheme, _)| scheme) {
                Some("https") => {}
                // Whoever writes it down wants it.
                Some("http") => builder = builder.with_allow_http(true),
                _ => bail!("the endpoint {endpoint:?} must begin with https:// or http://"),
            }
        }
        let place = [AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::Region];
        let place = place.iter().find_map(|key| builder.get_config_value(key)).unwrap_or_default();
        let store = builder.build().map_err(|error| anyhow::anyhow!("{url}: {}", describe(&error)))?;
        // One thread: it waits most of the time.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("bucket")
            .enable_all()
            .build()?;
        let url = url.trim_end_matches('/').into();
        Ok(Self {
            store: Arc::new(store),
            prefix,
            url,
            place: place.into(),
            runtime: Arc::new(Own(Some(runtime))),
        })
    }

    fn key(&self, key: &str) -> anyhow::Result<Key> {
        let key = Key::parse(key).with_context(|| format!("{key:?} is no key"))?;
        Ok(self.prefix.parts().chain(key.parts()).collect())
    }

    /// Its URL and where that is: two object stores may have buckets of one name.
    pub fn whole_name(&self) -> String {
        format!("{} {}", self.url, self.place)
    }

    /// The URL of an object.
    pub fn url_of(&self, key: &str) -> String {
        format!("{}/{key}", self.url)
    }

    fn told(&self, key: &str, error: &object_store::Error) -> anyhow::Error {
        let missing = matches!(error, object_store::Error::NotFound { .. });
        let error = anyhow::anyhow!("{}: {}", self.url_of(key), describe(error));
        if missing { error.context(Gone) } else { error }
    }

    /// All objects below each of these prefixes, in order.
    ///
    /// # Errors
    ///
    /// They cannot be listed.
    pub fn list(&self, prefixes: &[String]) -> anyhow::Result<Vec<Object>> {
        let depth = self.prefix.parts().count();
        let lists = prefixes.iter().map(|prefix| async move {
            let of = self.key(prefix)?;
            let found: Vec<_> =
                self.store.list(Some(&of)).try_collect().await.map_err(|error| self.told(prefix, &error))?;
            anyhow::Ok(found)
        });
        let lists = futures::stream::iter(lists).buffered(8);
        let found: Vec<Vec<_>> = self.runtime.block_on(lists.try_collect())?;
        let object = |found: object_store::ObjectMeta| Object {
            key: found.location.parts().skip(depth).collect::<Key>().to_string(),
            bytes: found.size,
        };
        let mut objects: Vec<Object> = found.into_iter().flatten().map(object).collect();
        objects.sort();
        Ok(objects)
    }

    /// The last bytes of each of these objects: so many, or all.
    pub fn tails(&self, objects: &[Object], most: u64) -> Vec<anyhow::Result<Bytes>> {
        let tail = |object: &Object| {
            let (key, from) = (object.key.clone(), object.bytes.saturating_sub(most));
            let range = from..object.bytes;
            async move { self.range(&key, range).await }
        };
        let tails: Vec<_> = objects.iter().map(tail).collect();
        self.runtime.block_on(futures::stream::iter(tails).buffered(16).collect())
    }

    async fn range(&self, key: &str, range: Range<u64>) -> anyhow::Result<Bytes> {
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        let got = self.store.get_opts(&self.key(key)?, options).await;
        match got {
            Ok(got) => got.bytes().await.map_err(|error| self.told(key, &error)),
            Err(error) => Err(self.told(key, &error)),
        }
    }

    /// Parts of an object; those that are next to one another are asked for as one.
    ///
    /// # Errors
    ///
    /// They cannot be read.
    pub fn ranges(&self, key: &str, ranges: &[Range<u64>]) -> anyhow::Result<Vec<Bytes>> {
        let of = self.key(key)?;
        self.runtime.block_on(self.store.get_ranges(&of, ranges)).map_err(|error| self.told(key, &error))
    }

    /// Uploads a file, in parts where it is large. An object of that name is replaced, and is there as a whole or not at all.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is not taken.
    pub fn upload(&self, file: &Path, key: &str) -> anyhow::Result<u64> {
        let unread = || format!("cannot read {}", file.display());
        let mut from = File::open(file).with_context(unread)?;
        let to = self.key(key)?;
        let mut next = || -> anyhow::Result<Bytes> {
            let mut part = Vec::with_capacity(PART);
            from.by_ref().take(PART as u64).read_to_end(&mut part).with_context(unread)?;
            Ok(part.into())
        };
        let first = next()?;
        if first.len() < PART {
            let bytes = first.len() as u64;
            let put = self.store.put(&to, PutPayload::from(first));
            self.runtime.block_on(put).map_err(|error| self.told(key, &error))?;
            return Ok(bytes);
        }
        self.runtime.block_on(async {
            let mut upload = self.store.put_multipart(&to).await.map_err(|error| self.told(key, &error))?;
            let mut part = first;
            let mut bytes = 0;
            let uploaded: anyhow::Result<()> = async {
                while !part.is_empty() {
                    bytes += part.len() as u64;
                    // One at a time: memory is dear, and nobody waits.
                    upload
                        .put_part(std::mem::take(&mut part).into())
                        .await
                        .map_err(|error| self.told(key, &error))?;
                    part = next()?;
                }
                upload.complete().await.map_err(|error| self.told(key, &error))?;
                Ok(())
            }
            .await;
            if uploaded.is_err() {
                // Where that fails too, the bucket's lifecycle removes parts that were never put together.
                let _ = upload.abort().await;
            }
            uploaded.map(|()| bytes)
        })
    }
}

/// An object that is not there (any more).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gone;

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is not there")
    }
}

/// What a fault is, without what was signed and with which key: an answer repeats that.
fn describe(error: &object_store::Error) -> String {
    let text = with_causes(error);
    let code = between(&text, "<Code>", "</Code>").unwrap_or_default();
    let plain = text.split(['<', '\n']).next().unwrap_or_default().trim_end_matches([':', ' ']);
    let hint = match (error, code) {
        (_, "NoSuchBucket") => "there is no such bucket",
        (_, "SignatureDoesNotMatch" | "InvalidAccessKeyId" | "ExpiredToken" | "InvalidToken") => {
            "the credentials are wrong or have expired"
        }
        (object_store::Error::Unauthenticated { .. }, _) => "the credentials are not known there",
        (object_store::Error::PermissionDenied { .. }, _) => "these credentials may not do that",
        (object_store::Error::NotFound { .. }, _) => "there is no such object",
        _ => return plain.to_owned(),
    };
    if code.is_empty() { hint.to_owned() } else { format!("{hint} ({code})") }
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(from)?;
    rest.split_once(to).map(|(inner, _)| inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_bucket_and_perhaps_a_prefix() {
        let parsed = |url: &str| parse_url(url).map(|(bucket, prefix)| (bucket, prefix.to_string()));
        let both = |bucket: &str, prefix: &str| (bucket.to_owned(), prefix.to_owned());
        assert_eq!(parsed("s3://flows").unwrap(), both("flows", ""));
        assert_eq!(parsed("s3://flows/").unwrap(), both("flows", ""));
        assert_eq!(parsed("s3://my-flows/a/b/").unwrap(), both("my-flows", "a/b"));
        for wrong in ["flows", "s3://", "s3://ab", "s3:///x", "gs://flows", "s3://flows/../x", "s3://Flows!"]
        {
            let error = format!("{:#}", parse_url(wrong).unwrap_err());
            assert!(error.contains("s3://bucket/prefix"), "{wrong}: {error}");
        }
    }

    #[test]
    fn an_endpoint_says_whether_it_is_encrypted() {
        let access = Access { endpoint: Some("s3.example.com".to_owned()), ..Access::default() };
        let error = format!("{:#}", Bucket::open("s3://flows", &access).unwrap_err());
        assert!(error.contains("must begin with https:// or http://"), "{error}");
    }

    #[test]
    fn what_is_told_of_a_fault_has_nothing_that_was_signed() {
        let answer = "Client error with status 403 Forbidden: <?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code>\
            <CanonicalRequest>x-amz-security-token:SECRET</CanonicalRequest></Error>";
        let error = object_store::Error::PermissionDenied { path: "x".to_owned(), source: answer.into() };
        let told = describe(&error);
        assert_eq!(told, "the credentials are wrong or have expired (SignatureDoesNotMatch)");
        let error = object_store::Error::Generic { store: "S3", source: answer.into() };
        assert!(!describe(&error).contains("SECRET"));
    }
}
