//! A real S3 server (SeaweedFS) on free ports of loopback, and a way to it that can be cut, slow or dead.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netaudit::store::bucket::{Access, Bucket};

/// Who may do everything there.
pub(super) const KEY: &str = "netaudit";
pub(super) const SECRET: &str = "the-secret-of-netaudit";

/// The server.
pub(super) struct S3 {
    weed: PathBuf,
    directory: PathBuf,
    /// Of master, volumes, filer and S3: each with one for gRPC; and of S3 with TLS.
    ports: [u16; 9],
    /// Its certificate and key, where it speaks TLS too.
    certificate: Option<(PathBuf, PathBuf)>,
    child: Option<Child>,
}

impl S3 {
    /// Runs it, with a bucket `flows`.
    pub fn start(weed: &Path, directory: &Path) -> Result<Self> {
        Self::start_with(weed, directory, None)
    }

    /// The same, with a certificate and its key for [`S3::tls_port`].
    pub fn start_with(
        weed: &Path,
        directory: &Path,
        certificate: Option<(PathBuf, PathBuf)>,
    ) -> Result<Self> {
        let listeners = (0..9).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
        let mut ports = [0; 9];
        for (port, listener) in ports.iter_mut().zip(&listeners) {
            *port = listener.local_addr()?.port();
        }
        drop(listeners);
        fs::create_dir_all(directory.join("volumes"))?;
        let identity = serde_json::json!({"identities": [{
            "name": "netaudit", "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List"],
        }]});
        fs::write(directory.join("s3.json"), identity.to_string())?;
        let mut server =
            Self { weed: weed.to_owned(), directory: directory.to_owned(), ports, certificate, child: None };
        server.run()?;
        server.make_bucket("flows")?;
        Ok(server)
    }

    /// Runs it again, as it was.
    pub fn run(&mut self) -> Result<()> {
        let path = |name: &str| self.directory.join(name).display().to_string();
        let names = ["master", "volume", "filer", "s3"];
        let mut arguments: Vec<String> = names
            .iter()
            .zip(self.ports[..8].chunks(2))
            .flat_map(|(name, ports)| {
                [format!("-{name}.port={}", ports[0]), format!("-{name}.port.grpc={}", ports[1])]
            })
            .collect();
        arguments.extend([
            format!("-dir={}", path("volumes")),
            "-ip=127.0.0.1".to_owned(),
            "-ip.bind=127.0.0.1".to_owned(),
            "-master.telemetry=false".to_owned(),
            "-master.volumeSizeLimitMB=64".to_owned(),
            "-volume.max=8".to_owned(),
            "-filer".to_owned(),
            format!("-filer.localSocket={}", path("filer.sock")),
            "-s3".to_owned(),
            "-s3.iam=false".to_owned(),
            "-s3.autoCreateBucket=false".to_owned(),
            "-s3.port.iceberg=0".to_owned(),
            "-s3.port.lance=0".to_owned(),
            format!("-s3.config={}", path("s3.json")),
        ]);
        if let Some((certificate, key)) = &self.certificate {
            arguments.extend([
                format!("-s3.port.https={}", self.ports[8]),
                format!("-s3.cert.file={}", certificate.display()),
                format!("-s3.key.file={}", key.display()),
            ]);
        }
        let log = File::options().create(true).append(true).open(self.directory.join("log"))?;
        let child = Command::new(&self.weed)
            .arg("server")
            .args(arguments)
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        // A bucket that does not exist is told only by a server whose parts all work.
        while !self.answers()? {
            ensure!(Instant::now() < deadline, "no S3 server:\n{}", self.log());
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn log(&self) -> String {
        let text = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(15).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn answers(&self) -> Result<bool> {
        let bucket =
            self.bucket("s3://no-such-bucket", self.ports[6], Duration::from_secs(5), (KEY, SECRET))?;
        Ok(bucket
            .list(&["flows".to_owned()])
            .is_err_and(|error| format!("{error:#}").contains("NoSuchBucket")))
    }

    pub fn make_bucket(&self, name: &str) -> Result<()> {
        let mut shell = Command::new(&self.weed)
            .args(["shell", &format!("-master=127.0.0.1:{}.{}", self.ports[0], self.ports[1])])
            .current_dir(&self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        shell
            .stdin
            .take()
            .context("stdin")?
            .write_all(format!("s3.bucket.create -name {name}\nexit\n").as_bytes())?;
        let output = shell.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        ensure!(text.contains("create bucket"), "{text}");
        let deadline = Instant::now() + Duration::from_secs(20);
        let bucket = self.open(&format!("s3://{name}"))?;
        while let Err(error) = bucket.list(&["flows".to_owned()]) {
            ensure!(Instant::now() < deadline, "no bucket: {error:#}\n{text}");
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Ends it, at once.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.ports[6]
    }

    /// Where it listens with TLS.
    pub fn tls_port(&self) -> u16 {
        self.ports[8]
    }

    /// A bucket of it.
    pub fn open(&self, url: &str) -> Result<Bucket> {
        self.bucket(url, self.port(), Duration::from_secs(20), (KEY, SECRET))
    }

    /// The same, at another port, with other credentials and patience.
    pub fn bucket(
        &self,
        url: &str,
        port: u16,
        patience: Duration,
        credentials: (&str, &str),
    ) -> Result<Bucket> {
        let access = Access { endpoint: Some(format!("http://127.0.0.1:{port}")), ..Access::default() };
        Bucket::open_with(url, &access, patience, Some(credentials))
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.kill();
        // It leaves sockets named by its ports, and no flag puts all of them elsewhere.
        for name in ["master-grpc", "volume-grpc", "filer-grpc", "filer", "s3-grpc", "s3"] {
            for port in self.ports {
                let _ = fs::remove_file(format!("/tmp/seaweedfs-{name}-{port}.sock"));
            }
        }
    }
}

/// What a way does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// Passes everything on.
    Pass = 0,
    /// Cuts a connection after a mebibyte to the server.
    Cut = 1,
    /// Takes connections and says nothing.
    Stall = 2,
    /// Passes on a bit every 50 ms.
    Slow = 3,
}

/// A way to a server.
pub(super) struct Way {
    pub port: u16,
    mode: Arc<AtomicU8>,
    answered: Arc<AtomicU64>,
}

impl Way {
    pub fn to(server: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let (mode, answered) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicU64::new(0)));
        let (of_thread, counted) = (mode.clone(), answered.clone());
        // Ends with the process: nobody tells it when the test ends.
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", server))) else {
                    continue;
                };
                let (Ok(from_client), Ok(from_server)) = (client.try_clone(), server.try_clone()) else {
                    continue;
                };
                let (there, back) = (of_thread.clone(), of_thread.clone());
                let counted = counted.clone();
                thread::spawn(move || pass(from_client, server, &there, None));
                thread::spawn(move || pass(from_server, client, &back, Some(&counted)));
            }
        });
        Ok(Self { port, mode, answered })
    }

    pub fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::SeqCst);
    }

    /// Bytes that came back from the server since this was last asked.
    pub fn answered(&self) -> u64 {
        self.answered.swap(0, Ordering::SeqCst)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, mode: &AtomicU8, counted: Option<&AtomicU64>) {
    let mut passed = 0;
    let mut part = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut part) {
        passed += count as u64;
        let is = |it: Mode| mode.load(Ordering::SeqCst) == it as u8;
        while is(Mode::Stall) {
            thread::sleep(Duration::from_millis(20));
        }
        if is(Mode::Cut) && counted.is_none() && passed > 1 << 20 {
            break;
        }
        if is(Mode::Slow) {
            thread::sleep(Duration::from_millis(50));
        }
        if let Some(counted) = counted {
            counted.fetch_add(count as u64, Ordering::SeqCst);
        }
        if to.write_all(&part[..count]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
