//! Lists of an API server that break off half way. The server is a named fake: it says on loopback what a test tells it to, as a
//! real one cannot be made to break off at a place that is known.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use netaudit::{
    cluster::Kind,
    watch::{Update, api},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Says to each request, by its path with the query, what `answer` does, or nothing more.
fn fake_api_server(answer: impl Fn(&str) -> Option<(u16, Value)> + Send + Sync + 'static) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let answer = Arc::new(answer);
    // Ends with the process: nobody tells it when the test ends.
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let answer = answer.clone();
            thread::spawn(move || drop(talk(&connection, &*answer)));
        }
    });
    Ok(port)
}

fn talk(connection: &TcpStream, answer: &dyn Fn(&str) -> Option<(u16, Value)>) -> Result<()> {
    let mut lines = BufReader::new(connection).lines();
    while let Some(request) = lines.next() {
        let request = request?;
        while !lines.next().context("a header")??.is_empty() {}
        let path = request.split(' ').nth(1).context("a path")?;
        let Some((status, body)) = answer(path) else {
            // A watch on which nothing happens.
            thread::sleep(Duration::from_secs(60));
            return Ok(());
        };
        let body = body.to_string();
        let head = "content-type: application/json\r\ncontent-length";
        write!(&mut &*connection, "HTTP/1.1 {status} x\r\n{head}: {}\r\n\r\n{body}", body.len())?;
    }
    Ok(())
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name, "uid": name, "resourceVersion": "1"},
           "spec": {}, "status": {}})
}

/// What a list told before it broke off, and the next one has no more, is told as gone; also where it was never known otherwise.
#[tokio::test]
async fn what_a_list_told_before_it_broke_off_does_not_stay() -> Result<()> {
    let broken = std::sync::atomic::AtomicBool::new(false);
    let list = |more: &str, pods: &[Value]| {
        json!({"kind": "PodList", "apiVersion": "v1", "items": pods,
               "metadata": {"resourceVersion": "5", "continue": more}})
    };
    let port = fake_api_server(move |path| {
        use std::sync::atomic::Ordering::SeqCst;
        if path.contains("watch=true") {
            return None;
        }
        if path.contains("continue=") {
            broken.store(true, SeqCst);
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500,
                                "message": "etcd is gone", "reason": "InternalError"});
            return Some((500, status));
        }
        Some(match broken.load(SeqCst) {
            false => (200, list("more", &[pod("stays"), pod("goes")])),
            true => (200, list("", &[pod("stays"), pod("comes")])),
        })
    })?;
    let config = kube::Config::new(format!("http://127.0.0.1:{port}").parse()?);
    let client = kube::Client::try_from(config)?;
    let (updates, mut told) = mpsc::channel(100);
    let follow = tokio::spawn(api::follow(client, Kind::Pod, Duration::from_secs(60), true, updates));
    let mut said = Vec::new();
    let mut has_listed = false;
    // A second without news after the whole list is its end.
    let wait = |has_listed: bool| Duration::from_secs(if has_listed { 1 } else { 30 });
    while let Ok(Some(update)) = tokio::time::timeout(wait(has_listed), told.recv()).await {
        said.push(match update {
            Update::Seen(content) => format!("seen {}", content.key.name),
            Update::Fault { error, .. } => {
                assert!(error.contains("etcd is gone"), "{error}");
                "fault".to_owned()
            }
            Update::Reset { objects, .. } => {
                has_listed = true;
                format!("all {}", objects.len())
            }
            Update::Delete(key) => format!("gone {}", key.name),
            other => format!("{other:?}"),
        });
    }
    follow.abort();
    assert_eq!(said, ["seen stays", "seen goes", "fault", "seen stays", "seen comes", "all 2", "gone goes"]);
    Ok(())
}
