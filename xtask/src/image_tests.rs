use std::{
    ffi::CString,
    io::{self, Read as _},
    ptr,
};

use flate2::read::GzDecoder;

use super::*;

fn image(files: Vec<Entry>) -> Image {
    Image {
        reference: "localhost/thing:1.2".to_owned(),
        entrypoint: vec!["/bin/thing".to_owned()],
        labels: BTreeMap::from([("org.opencontainers.image.title".to_owned(), "thing".to_owned())]),
        files,
        ..Image::default()
    }
}

fn files() -> Vec<Entry> {
    vec![
        Entry::symlink("/bin/other", "thing"),
        Entry::bytes("bin/thing", 0o755, *b"program"),
        Entry::directory("/tmp/", 0o1777),
        Entry::bytes(format!("/etc/{}/conf", "deep".repeat(40)), 0o600, *b"x"),
    ]
}

/// A tar's entries in their order: path → (header, content).
fn unpack(tar: impl io::Read) -> Vec<(String, tar::Header, Vec<u8>)> {
    let mut archive = tar::Archive::new(tar);
    archive
        .entries()
        .expect("a tar")
        .map(|entry| {
            let mut entry = entry.expect("an entry");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("an entry's content");
            (entry.path().expect("a path").to_string_lossy().into_owned(), entry.header().clone(), bytes)
        })
        .collect()
}

/// Reads an archive back, as an importer does: checks every digest and size on the way from the index to the layer.
struct Imported {
    files: BTreeMap<String, Vec<u8>>,
    listed: Value,
    manifest: Value,
    config: Value,
    layer: Vec<u8>,
}

impl Imported {
    fn read(archive: &Path) -> Self {
        let files: BTreeMap<String, Vec<u8>> = unpack(fs::File::open(archive).expect("the archive"))
            .into_iter()
            .map(|(path, _, bytes)| (path, bytes))
            .collect();
        let json = |bytes: &[u8]| -> Value { serde_json::from_slice(bytes).expect("JSON") };
        assert_eq!(json(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
        let listed = json(&files["index.json"])["manifests"][0].clone();
        let follow = |descriptor: &Value| -> Vec<u8> {
            let digest = descriptor["digest"].as_str().expect("a digest");
            let bytes = files[&format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))].clone();
            assert_eq!(super::digest(&bytes), digest);
            assert_eq!(descriptor["size"], bytes.len());
            bytes
        };
        let manifest = json(&follow(&listed));
        let config = json(&follow(&manifest["config"]));
        let mut layer = Vec::new();
        GzDecoder::new(&*follow(&manifest["layers"][0])).read_to_end(&mut layer).expect("gzip");
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&layer)]));
        Self { listed, manifest, config, layer, files }
    }
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Names in a directory.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn the_archive_reads_back() {
    let directory = directory();
    let to = directory.path().join("thing.oci.tar");
    let image = Image {
        architecture: Architecture::Arm64,
        command: vec!["--now".to_owned()],
        environment: vec!["A=b".to_owned()],
        user: Some("65532:65532".to_owned()),
        created: Some(1_700_000_000),
        ..image(files())
    };
    let digest = image.write_archive(&to).expect("an archive");
    assert_eq!(names(directory.path()), ["thing.oci.tar"]);

    let read = Imported::read(&to);
    assert_eq!(read.listed["digest"], digest);
    assert_eq!(read.listed["platform"], json!({ "architecture": "arm64", "os": "linux" }));
    assert_eq!(
        read.listed["annotations"],
        json!({ "io.containerd.image.name": "localhost/thing:1.2", "org.opencontainers.image.ref.name": "1.2" })
    );
    assert_eq!(read.manifest["annotations"], json!({ "org.opencontainers.image.title": "thing" }));
    assert_eq!(read.config["architecture"], "arm64");
    assert_eq!(read.config["created"], "2023-11-14T22:13:20Z");
    assert_eq!(
        read.config["config"],
        json!({
            "Entrypoint": ["/bin/thing"], "Cmd": ["--now"], "Env": ["A=b"], "User": "65532:65532", "WorkingDir": "/",
            "Labels": { "org.opencontainers.image.title": "thing" },
        })
    );
    // Docker's own list names the same blobs.
    let docker: Value = serde_json::from_slice(&read.files["manifest.json"]).expect("JSON");
    assert_eq!(docker[0]["RepoTags"], json!(["localhost/thing:1.2"]));
    let path = |descriptor: &Value| {
        descriptor["digest"].as_str().expect("a digest").replace("sha256:", "blobs/sha256/")
    };
    assert_eq!(docker[0]["Config"], path(&read.manifest["config"]));
    assert_eq!(docker[0]["Layers"], json!([path(&read.manifest["layers"][0])]));

    let entries = unpack(&*read.layer);
    let listed: Vec<(&str, u32)> = entries
        .iter()
        .map(|(path, header, _)| (path.trim_end_matches('/'), header.mode().expect("a mode")))
        .collect();
    let deep = format!("etc/{}", "deep".repeat(40));
    assert_eq!(
        listed,
        [
            ("bin", 0o755),
            ("bin/other", 0o777),
            ("bin/thing", 0o755),
            ("etc", 0o755),
            (&deep, 0o755),
            (&format!("{deep}/conf"), 0o600),
            ("tmp", 0o1777),
        ]
    );
    for (path, header, _) in &entries {
        let owner = (header.uid().expect("a uid"), header.gid().expect("a gid"));
        assert_eq!((owner, header.mtime().expect("a time")), ((0, 0), 1_700_000_000), "{path}");
    }
    assert_eq!(entries[1].1.link_name().expect("a link").expect("a target"), Path::new("thing"));
    assert_eq!(entries[2].2, b"program");
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let directory = directory();
    let [first, second, third] = ["1", "2", "3"].map(|name| directory.path().join(name));
    let program = directory.path().join("program");
    let from = |mut files: Vec<Entry>| {
        files.push(Entry::file("/program", 0o755, &program));
        image(files)
    };
    fs::write(&program, "x").expect("a file");
    let digest = from(files()).write_archive(&first).expect("an archive");
    // Neither order nor the file's own mode and time matter.
    fs::remove_file(&program).expect("the file");
    fs::write(&program, "x").expect("a file");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o600)).expect("its mode");
    let again = from(files().into_iter().rev().collect()).write_archive(&second).expect("an archive");
    assert_eq!(digest, again);
    assert_eq!(fs::read(&first).expect("it"), fs::read(&second).expect("it"));
    // Every bit of the content does.
    fs::write(&program, "y").expect("a file");
    assert_ne!(digest, from(files()).write_archive(&third).expect("an archive"));
}

#[test]
fn without_a_date_files_are_of_1970() {
    let directory = directory();
    let to = directory.path().join("it");
    image(files()).write_archive(&to).expect("an archive");
    let read = Imported::read(&to);
    assert_eq!(read.config.get("created"), None);
    assert!(unpack(&*read.layer).iter().all(|(_, header, _)| header.mtime().ok() == Some(0)));
}

#[test]
fn contradictions_are_refused_by_name() {
    let thing = || Entry::bytes("/a/b", 0o644, *b"");
    for (entries, expected) in [
        (vec![thing(), Entry::directory("a//b", 0o755)], "the image has /a/b twice"),
        (vec![thing(), Entry::symlink("a", "/etc")], "the image has /a/b, but /a is no directory"),
        (vec![thing(), Entry::bytes("a", 0o644, *b"")], "the image has /a/b, but /a is no directory"),
        (vec![Entry::bytes("/a/../../b", 0o644, *b"")], "\"/a/../../b\" in an image must not have . or .."),
        (vec![Entry::directory("/", 0o755)], "\"/\" is no path for a file in an image"),
        (vec![Entry::symlink("/a/b", "../../etc")], "the link /a/b → ../../etc leads out of the image"),
        (vec![Entry::symlink("/a/b", "/../etc")], "the link /a/b → /../etc leads out of the image"),
        (vec![Entry::symlink("/a/b", "")], "the link /a/b in the image leads nowhere"),
    ] {
        let directory = directory();
        let error = image(entries).write_archive(&directory.path().join("it")).expect_err(expected);
        assert!(format!("{error:#}").contains(expected), "{error:#}");
        assert_eq!(names(directory.path()), [""; 0]);
    }
    // A link from the image's root, and one beside it, stay inside; a directory that is named keeps its mode.
    let directory = directory();
    let links = vec![
        thing(),
        Entry::directory("a", 0o700),
        Entry::symlink("/a/c", "/bin/busybox"),
        Entry::symlink("/a/d", "../e"),
    ];
    let to = directory.path().join("it");
    image(links).write_archive(&to).expect("an archive");
    let entries = unpack(&*Imported::read(&to).layer);
    assert_eq!(entries[0].1.mode().expect("a mode"), 0o700);
}

#[test]
fn names_need_a_tag() {
    for reference in ["thing", "localhost:5000/thing", ":1", "thing:"] {
        let image = Image { reference: reference.to_owned(), ..image(Vec::new()) };
        let error = image.archive().err().expect(reference);
        assert!(error.to_string().contains("has no tag"), "{error}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let directory = directory();
    let entries = vec![Entry::file("/a", 0o755, directory.path().join("nowhere"))];
    let error = image(entries).write_archive(&directory.path().join("it")).expect_err("no such file");
    let message = format!("{error:#}");
    assert!(message.contains("/nowhere for /a: No such file"), "{message}");
    assert_eq!(names(directory.path()), [""; 0]);
}

#[test]
fn what_was_there_stays_until_all_is_written() {
    let directory = directory();
    let to = directory.path().join("it");
    fs::write(&to, "before").expect("a file");
    let error = replace(&to, |out| {
        out.write_all(b"half")?;
        let mut full = fs::File::options().write(true).open("/dev/full")?;
        Ok(full.write_all(b"more")?)
    })
    .expect_err("/dev/full takes nothing");
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_eq!(
        (names(directory.path()), fs::read(&to).expect("it")),
        (vec!["it".to_owned()], b"before".to_vec())
    );
    // Nor is a device ever replaced.
    let error = image(files()).write_archive(Path::new("/dev/full")).expect_err("no regular file");
    assert_eq!(format!("{error:#}"), "writing /dev/full: it is there, and no regular file");
}

/// On a real file system without room, which takes root to make.
#[test]
fn no_room_is_an_error_and_leaves_nothing() {
    let directory = directory();
    let path = directory.path().to_owned();
    // A thread of its own, so that the mount is seen by nobody else and ends with it.
    std::thread::spawn(move || {
        if let Err(error) = small_file_system(&path) {
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
            println!("SKIPPED: mounting needs root");
            return;
        }
        let noise: Vec<u8> =
            (0..1u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        let error = image(vec![Entry::bytes("/noise", 0o644, noise)])
            .write_archive(&path.join("it"))
            .expect_err("no room");
        assert!(format!("{error:#}").contains("No space left"), "{error:#}");
        assert_eq!(names(&path), [""; 0]);
    })
    .join()
    .expect("the thread");
}

/// Mounts 64 KiB at `path`, for this thread alone.
fn small_file_system(path: &Path) -> io::Result<()> {
    let path = CString::new(path.to_str().expect("UTF-8")).expect("no zero byte");
    let check = |status: i32| if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: the pointers are to strings that end in a zero byte, or null where mount(2) takes none.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        check(libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), private, ptr::null()))?;
        check(libc::mount(c"none".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), 0, c"size=64k".as_ptr().cast()))
    }
}
