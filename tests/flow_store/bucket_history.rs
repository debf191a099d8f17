//! The history of objects goes into the bucket beside the flows, and all commands that ask it do so there.

use std::process::Output;

use netaudit::store::flows::{UploadCounts, table::OBJECTS};
use tar::Archive;

use super::{
    bucket::{netaudit, said, uploads},
    s3::{KEY, S3, SECRET},
    *,
};
use crate::{
    command::self_signed,
    history::{asking::story, exporting::verified},
};

const URL: &str = "s3://flows/history";

fn opened(
    store: &Path,
    run: &str,
    from: Timestamp,
    age: Duration,
    bucket: &str,
    server: &S3,
) -> Result<FlowStore> {
    let begin =
        Beginning { node: "node-1".into(), run: run.into(), from, lost: Lost::default(), goes_on: false };
    FlowStore::open(store, Retention { age, ..FOREVER }, Some(server.open(bucket)?), &begin)
}

fn uploaded(store: &FlowStore) -> Result<UploadCounts> {
    eventually("upload", || Ok(uploads(store).uploaded > 0 && uploads(store).waiting == 0))?;
    Ok(uploads(store))
}

pub(super) fn ended(store: &Path) -> Result<()> {
    eventually("end of the earlier one", || Ok(std::fs::File::open(store.join("lock"))?.try_lock().is_ok()))
}

/// What a command said, with its status; the names of stores are those of both alike.
fn told(output: &Output, name: &str) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    format!("{:?}\n{out}{}", output.status.code(), said(output)).replace(name, "STORE")
}

#[test]
fn whoever_asks_the_bucket_is_told_the_same_as_who_asks_the_directory() -> Result<()> {
    let Some(weed) = weed_or_skip("a history in a bucket") else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    let server = S3::start(&weed, &directory.path().join("s3"))?;
    let store = directory.path().join("store");
    let ids = story(&store)?;
    let at = |seconds: i64| Timestamp::from_seconds(1_767_225_600 + seconds);
    let kept = opened(&store, "run-z", at(900), FOREVER.age, URL, &server)?;
    let counts = uploaded(&kept)?;
    assert_eq!((counts.failed, counts.lost, counts.history_lost), (0, 0, 0));
    drop(kept);
    ended(&store)?;
    let name = store.to_str().context("a name")?;
    let mut commands: Vec<Vec<String>> = Vec::new();
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    for seconds in [0, 20, 105, 160, 205, 305] {
        commands.push(words(&format!("who 10.0.0.1 --at {} --flow-store", at(seconds))));
    }
    commands.extend(ids.iter().map(|id| words(&format!("why {id} --flow-store"))));
    for pod in ["shop/db-0", "shop/web-0"] {
        commands.push(words(&format!("timeline {pod} --since {} --until {} --flow-store", at(0), at(310))));
    }
    for command in &commands {
        let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        arguments.push(name);
        let here = netaudit(server.port(), SECRET, &arguments)?;
        arguments.pop();
        arguments.push(URL);
        let there = netaudit(server.port(), SECRET, &arguments)?;
        assert_eq!(told(&there, URL), told(&here, name), "{command:?}");
    }
    let who = netaudit(
        server.port(),
        SECRET,
        &["who", "10.0.0.1", "--at", &at(20).to_string(), "--flow-store", URL],
    )?;
    assert!(told(&who, URL).contains("Pod shop/web-0"), "{}", told(&who, URL));

    // And so is the evidence.
    let bundle = |stores: &str, file: &str| -> Result<Vec<(String, Vec<u8>)>> {
        let file = directory.path().join(file);
        let path = file.to_str().context("a name")?;
        let (since, until) = (at(0).to_string(), at(310).to_string());
        let arguments =
            ["export", "--incident", "INC-7", stores, "--since", &since, "--until", &until, "--out", path];
        let output = netaudit(server.port(), SECRET, &arguments)?;
        anyhow::ensure!(output.status.success(), "{}", said(&output));
        anyhow::ensure!(verified(&file, &[]).status == 0);
        let mut found = Vec::new();
        for entry in Archive::new(std::fs::File::open(&file)?).entries()? {
            let mut entry = entry?;
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content)?;
            found.push((entry.path()?.display().to_string(), content));
        }
        // When it was made and where from is told there, and the digest of that.
        found.retain(|(name, _)| !name.starts_with("manifest"));
        Ok(found)
    };
    assert!(bundle(URL, "there.tar")? == bundle(name, "here.tar")?, "two bundles of one history differ");

    // With other credentials nothing is told as empty.
    let who = netaudit(server.port(), "another", &["who", "10.0.0.1", "--at", "1h", "--flow-store", URL])?;
    assert!(who.status.code() == Some(2) && said(&who).contains("credentials are wrong"), "{}", said(&who));
    Ok(())
}

/// In the directory what is old is folded; in the bucket it stays as it was told.
#[test]
fn what_is_folded_here_is_whole_there() -> Result<()> {
    let Some(weed) = weed_or_skip("a folded history in a bucket") else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    let server = S3::start(&weed, &directory.path().join("s3"))?;
    let store = directory.path().join("store");
    let at = |seconds: i64| Timestamp::from_seconds(1_767_225_600 + seconds);
    story(&store)?;
    let kept = opened(&store, "run-x", at(400), FOREVER.age, URL, &server)?;
    uploaded(&kept)?;
    let keys = |url: &str| -> Result<Vec<String>> {
        let objects = server.open(url)?.list(&["objects".to_owned()])?;
        Ok(objects.into_iter().map(|object| object.key).collect())
    };
    let before = keys(URL)?;
    assert!(before.len() >= 2, "{before:?}");
    drop(kept);
    ended(&store)?;
    // Of what is so old only what still holds is kept.
    let hour = Duration::from_secs(3_600);
    let kept = opened(&store, "run-y", at(500), hour, URL, &server)?;
    let folded = || -> Result<Vec<PathBuf>> {
        let files = files::list(&store, &OBJECTS)?.into_iter().map(|file| file.path);
        Ok(files.filter(|path| path.to_str().is_some_and(|path| path.ends_with("-folded.parquet"))).collect())
    };
    eventually("folding", || Ok(folded()?.len() == 1))?;
    let own = || anyhow::Ok(files::list(&store, &OBJECTS)?.len() as u64 - 1);
    eventually("the next look", || {
        anyhow::Ok(uploads(&kept).waiting == 0 && own()? <= keys(URL)?.len() as u64)
    })?;
    assert_eq!(uploads(&kept).history_lost, 0);
    let who = |name: &str| -> Result<String> {
        let time = at(20).to_string();
        let output =
            netaudit(server.port(), SECRET, &["who", "10.0.0.1", "--at", &time, "--flow-store", name])?;
        Ok(told(&output, name))
    };
    let here = who(store.to_str().context("a name")?)?;
    assert!(here.contains("nothing is known of"), "{here}");
    let there = who(URL)?;
    assert!(there.contains("Pod shop/web-0"), "{there}");
    let after = keys(URL)?;
    assert!(before.iter().all(|key| after.contains(key)), "{before:?} {after:?}");
    assert!(!after.iter().any(|key| key.contains("folded")), "{after:?}");
    drop(kept);
    ended(&store)?;
    // Nor after another start. To another bucket it goes as it is: there is nothing else of that time.
    let kept = opened(&store, "run-w", at(600), hour, URL, &server)?;
    eventually("a look", || Ok(kept.counts().files > 0 && uploads(&kept).waiting == 0))?;
    std::thread::sleep(Duration::from_millis(500));
    assert!(!keys(URL)?.iter().any(|key| key.contains("folded")));
    drop(kept);
    ended(&store)?;
    let kept = opened(&store, "run-v", at(700), hour, "s3://flows/other", &server)?;
    uploaded(&kept)?;
    assert!(keys("s3://flows/other")?.iter().any(|key| key.contains("folded")));
    Ok(())
}

/// What cannot be read here keeps nothing else from the bucket, and a bucket of the same name elsewhere has nothing of it.
#[test]
fn one_file_that_cannot_be_read_stops_no_other() -> Result<()> {
    let Some(weed) = weed_or_skip("a file that cannot be uploaded") else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    let server = S3::start(&weed, &directory.path().join("s3"))?;
    let store = directory.path().join("store");
    Made::new(6_000).segments(&store, 2_000)?;
    // Reading it is an error of the disk, as far as anybody can tell. It is older than all others.
    let bad = store.join("flows/date=2020-01-01/hour=00/bad.parquet");
    std::fs::create_dir_all(&bad)?;
    let kept = opened(&store, "later", t(0), FOREVER.age, "s3://flows/bad", &server)?;
    eventually("fault", || Ok(uploads(&kept).uploaded > 0 && uploads(&kept).waiting == 1))?;
    eventually("its name", || Ok(kept.upload_failing().is_some_and(|fault| fault.contains("bad.parquet"))))?;
    let files = parquet_files(&store)?.len();
    let there = server.open("s3://flows/bad")?.list(&["flows".to_owned()])?;
    assert_eq!(there.len(), files - 1);
    std::fs::remove_dir(&bad)?;
    eventually("all is well", || Ok(uploads(&kept).waiting == 0 && kept.upload_failing().is_none()))?;
    let done = uploads(&kept).uploaded;
    drop(kept);
    ended(&store)?;
    // The same URL at another object store.
    let other = S3::start(&weed, &directory.path().join("other"))?;
    let begin = Beginning {
        node: "node-1".into(),
        run: "last".into(),
        from: t(0),
        lost: Lost::default(),
        goes_on: false,
    };
    let bucket = other.bucket("s3://flows/bad", other.port(), Duration::from_secs(20), (KEY, SECRET))?;
    let kept = FlowStore::open(&store, FOREVER, Some(bucket), &begin)?;
    eventually("upload", || Ok(uploads(&kept).waiting == 0 && uploads(&kept).uploaded >= done))?;
    let again = other.open("s3://flows/bad")?.list(&["flows".to_owned()])?;
    assert!(there.iter().all(|object| again.contains(object)), "{there:?} {again:?}");
    Ok(())
}

/// What an object store says is believed only where its certificate is known.
#[test]
fn a_bucket_is_asked_over_tls_and_an_unknown_certificate_is_refused() -> Result<()> {
    let Some(weed) = weed_or_skip("a bucket over TLS") else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    let [certificate, key, other] =
        ["cert.pem", "key.pem", "other.pem"].map(|name| directory.path().join(name));
    self_signed(&other, &key)?;
    self_signed(&certificate, &key)?;
    let server = S3::start_with(&weed, &directory.path().join("s3"), Some((certificate.clone(), key)))?;
    let store = directory.path().join("store");
    let made = Made::new(500);
    made.segments(&store, 500)?;
    let kept = opened(&store, "later", t(0), FOREVER.age, "s3://flows/tls", &server)?;
    uploaded(&kept)?;
    let endpoint = format!("https://127.0.0.1:{}", server.tls_port());
    let count: u64 = made.lines()?.iter().map(|line| line["count"].as_u64().unwrap_or(1)).sum();
    let ask = |trusted: &Path| {
        std::process::Command::new(env!("CARGO_BIN_EXE_netaudit"))
            .args(["flows", "s3://flows/tls", "--count", "--endpoint", &endpoint])
            .env("AWS_ACCESS_KEY_ID", KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("SSL_CERT_FILE", trusted)
            .env_remove("SSL_CERT_DIR")
            .output()
    };
    let known = ask(&certificate)?;
    assert!(known.status.success(), "{}", said(&known));
    assert_eq!(String::from_utf8(known.stdout)?.trim(), count.to_string());
    let unknown = ask(&other)?;
    assert!(unknown.status.code() == Some(2) && said(&unknown).contains("certificate"), "{}", said(&unknown));
    Ok(())
}
