//! Fetching from a hub, against a server of the test's own.

use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use stridenet::hub::{Fetched, Hub, HubError, Reference};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const MODEL: &str = "hf://timm/tiny.test";

/// What the server does wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Bodies end after so many bytes.
    Cut(usize),
    /// Ranges are ignored.
    Whole,
    /// Another part comes than was asked for.
    Shifted,
    /// A byte of the weights is another one.
    Flipped,
    /// Every request gets this status.
    Status(u16),
    /// No commit is named.
    Anonymous,
    /// Redirections never end.
    Loop,
    /// The weights are redirected to a less safe address.
    Unsafe,
}

struct State {
    files: HashMap<String, Vec<u8>>,
    fault: Fault,
    /// `METHOD path range authorised`, of each request.
    requests: Vec<String>,
}

struct Server {
    address: String,
    state: Arc<Mutex<State>>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Server {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|&(name, bytes)| (name.to_owned(), bytes.to_vec())).collect();
        let state = Arc::new(Mutex::new(State { files, fault: Fault::None, requests: Vec::new() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                // A client that leaves early is no failure of the test.
                std::thread::spawn(move || stream.map(|stream| answer(stream, &shared)));
            }
        });
        Server { address, state }
    }

    fn fault(&self, fault: Fault) {
        self.state.lock().unwrap().fault = fault;
    }

    /// The requests since the last call.
    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }
}

/// Answers the requests of one connection: like the hub, with large files behind a redirection.
fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
    let (mut start, mut authorised) = (None, false);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let header = header.trim().to_ascii_lowercase();
        if let Some(range) = header.strip_prefix("range: bytes=") {
            start = range.trim_end_matches('-').parse::<usize>().ok();
        }
        authorised |= header == "authorization: bearer secret";
        if header.is_empty() {
            break;
        }
    }
    let (files, fault) = {
        let mut state = state.lock().unwrap();
        let range = start.map_or(String::new(), |start| format!(" {start}-"));
        state.requests.push(format!("{method} {path}{range}{}", if authorised { " authorised" } else { "" }));
        (state.files.clone(), state.fault)
    };
    let name = path.rsplit('/').next().unwrap_or_default();
    let stored = path.starts_with("/storage/");
    let mut head = Vec::new();
    let mut body: &[u8] = &[];
    let flipped;
    match (fault, files.get(name)) {
        (Fault::Status(status), _) => head.push(format!("HTTP/1.1 {status} x")),
        (Fault::Loop, _) => head.extend(["HTTP/1.1 302 x".to_owned(), format!("Location: {path}")]),
        (_, None) => head.push("HTTP/1.1 404 x".to_owned()),
        (_, Some(bytes)) if name == "config.json" => {
            use sha1::Digest as _;
            let mut hasher = sha1::Sha1::new();
            hasher.update(format!("blob {}\0", bytes.len()));
            hasher.update(bytes);
            head.extend(["HTTP/1.1 200 x".to_owned(), format!("X-Repo-Commit: {COMMIT}")]);
            head.push(format!("ETag: W/\"{}\"", hex(&hasher.finalize())));
            body = bytes;
        }
        (_, Some(bytes)) if !stored => {
            let host = if fault == Fault::Unsafe { "ftp://localhost" } else { "" };
            head.extend(["HTTP/1.1 302 x".to_owned(), format!("Location: {host}/storage/{name}")]);
            if fault != Fault::Anonymous {
                head.push(format!("X-Repo-Commit: {COMMIT}"));
            }
            head.push(format!("X-Linked-ETag: \"{}\"", hex(&Sha256::digest(bytes))));
            head.push(format!("X-Linked-Size: {}", bytes.len()));
        }
        (_, Some(bytes)) => {
            body = bytes;
            if fault == Fault::Flipped {
                flipped = [&bytes[..bytes.len() - 1], &[!bytes[bytes.len() - 1]]].concat();
                body = &flipped;
            }
            match start.filter(|_| fault != Fault::Whole) {
                Some(start) => {
                    let start = start + usize::from(fault == Fault::Shifted);
                    head.push("HTTP/1.1 206 x".to_owned());
                    head.push(format!("Content-Range: bytes {start}-{}/{}", bytes.len() - 1, bytes.len()));
                    body = &body[start..];
                }
                None => head.push("HTTP/1.1 200 x".to_owned()),
            }
        }
    }
    head.extend([format!("Content-Length: {}", body.len()), "Connection: close".to_owned()]);
    write!(stream, "{}\r\n\r\n", head.join("\r\n"))?;
    if method == "GET" {
        let length = match fault {
            Fault::Cut(length) => body.len().min(length),
            _ => body.len(),
        };
        stream.write_all(&body[..length])?;
    }
    stream.flush()
}

fn weights() -> Vec<u8> {
    (0..300_000u32).map(|at| (at * 7 / 3) as u8).collect()
}

fn hub(server: &Server, cache: &Path) -> Hub {
    Hub { endpoint: server.address.clone(), cache: cache.to_path_buf(), token: None }
}

fn fetch(hub: &Hub) -> Result<Fetched, HubError> {
    hub.fetch(&MODEL.parse::<Reference>().unwrap(), &mut |_| true)
}

/// Every file below a folder, by its name.
fn files(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path)
            } else {
                names.push(path.file_name().unwrap().to_str().unwrap().to_owned())
            }
        }
    }
    names.sort();
    names
}

const BOTH: [(&str, &[u8]); 1] = [("config.json", b"{\"architecture\": \"resnet18\"}")];

fn server() -> Server {
    let weights = weights();
    Server::new(&[BOTH[0], ("model.safetensors", &weights)])
}

#[test]
fn a_model_is_fetched_once_and_found_again_without_the_hub() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let mut hub = hub(&server, cache.path());
    hub.token = Some("secret".into());
    let mut seen = Vec::new();
    let fetched = hub
        .fetch(&MODEL.parse().unwrap(), &mut |progress| {
            seen.push((progress.file.to_owned(), progress.done, progress.total));
            true
        })
        .unwrap();
    assert_eq!(fetched.folder, cache.path().join("timm--tiny.test").join(COMMIT));
    assert_eq!(fetched.offline, None);
    assert_eq!(std::fs::read(fetched.folder.join("model.safetensors")).unwrap(), weights());
    assert_eq!(std::fs::read(fetched.folder.join("config.json")).unwrap(), BOTH[0].1);
    assert_eq!(files(cache.path()), ["config.json", "main.commit", "model.safetensors"]);
    assert_eq!(seen.last(), Some(&("model.safetensors".to_owned(), 300_000, 300_000)));
    assert!(seen.is_sorted_by_key(|(file, done, _)| (file.clone(), *done)));
    let first = server.requests();
    assert!(first.iter().all(|request| request.ends_with(" authorised")), "{first:?}");
    assert_eq!(first.iter().filter(|request| request.starts_with("GET")).count(), 2, "{first:?}");
    // Again: the hub is asked for the commit, and for no bytes.
    assert_eq!(fetch(&hub).unwrap().folder, fetched.folder);
    assert!(server.requests().iter().all(|request| request.starts_with("HEAD")));
    // Nobody there.
    hub.endpoint = "http://127.0.0.1:1".into();
    let offline = fetch(&hub).unwrap();
    assert_eq!(offline.folder, fetched.folder);
    assert!(offline.offline.unwrap().contains("http://127.0.0.1:1/timm/tiny.test/resolve/main/config.json"));
    let error = hub.fetch(&"hf://timm/other".parse().unwrap(), &mut |_| true).unwrap_err().to_string();
    assert!(error.contains("cannot fetch http://127.0.0.1:1/timm/other") && !error.contains('\n'), "{error}");
}

#[test]
fn broken_connections_are_continued() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    server.fault(Fault::Cut(100_000));
    let fetched = fetch(&hub(&server, cache.path())).unwrap();
    assert_eq!(std::fs::read(fetched.folder.join("model.safetensors")).unwrap(), weights());
    let ranges: Vec<String> =
        server.requests().into_iter().filter(|request| request.contains("GET /storage")).collect();
    assert_eq!(
        ranges,
        [
            "GET /storage/model.safetensors",
            "GET /storage/model.safetensors 100000-",
            "GET /storage/model.safetensors 200000-"
        ]
    );
}

#[test]
fn an_interruption_keeps_what_was_fetched() {
    for fault in [Fault::None, Fault::Whole] {
        let (server, cache) = (server(), tempfile::tempdir().unwrap());
        let hub = hub(&server, cache.path());
        let error = hub.fetch(&MODEL.parse().unwrap(), &mut |progress| progress.done < 60_000).unwrap_err();
        assert!(error.to_string().contains("model.safetensors was interrupted"), "{error}");
        let left = files(cache.path());
        assert!(
            left.iter().any(|name| name.ends_with(".part"))
                && !left.contains(&"model.safetensors".to_owned())
        );
        let part = files(cache.path()).into_iter().find(|name| name.ends_with(".part")).unwrap();
        let part = cache.path().join("timm--tiny.test").join(COMMIT).join(part);
        let there = std::fs::metadata(&part).unwrap().len();
        // The interruption is seen after the read that passes the mark, of at most 64 KiB.
        assert!((60_000..60_000 + 65_536).contains(&there), "{there}");
        server.requests();
        server.fault(fault);
        let fetched = fetch(&hub).unwrap();
        assert_eq!(std::fs::read(fetched.folder.join("model.safetensors")).unwrap(), weights());
        let requests = server.requests();
        let range = format!(" {there}-");
        assert!(requests.iter().any(|request| request.ends_with(&range)), "{requests:?}");
        assert_eq!(files(cache.path()), ["config.json", "main.commit", "model.safetensors"]);
    }
}

#[test]
fn what_is_not_as_promised_is_not_kept() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    for (fault, parts) in [
        (
            Fault::Flipped,
            ["/storage/model.safetensors sent bytes with the checksum", "they were deleted, try again"],
        ),
        (Fault::Status(500), ["answers with HTTP status 500", "try again later"]),
        (Fault::Status(401), ["needs permission (HTTP status 401)", "HF_TOKEN"]),
        (
            Fault::Status(404),
            ["has neither model.safetensors nor pytorch_model.bin", "check the model's name"],
        ),
        (Fault::Anonymous, ["answers with none, expected the commit", "another hub"]),
        (Fault::Loop, ["redirections without an end", "expected a file"]),
        (Fault::Unsafe, ["a redirection to \"ftp://localhost/storage/model.safetensors\"", "as safe"]),
        (Fault::Cut(0), ["cannot fetch", "what was fetched is kept"]),
    ] {
        server.fault(fault);
        let error = fetch(&hub).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{fault:?}: {error}");
        }
        assert!(!error.contains('\n'), "{error}");
        assert!(!files(cache.path()).contains(&"model.safetensors".to_owned()), "{fault:?}");
    }
    server.fault(Fault::None);
    fetch(&hub).unwrap();
}

#[test]
fn another_part_than_asked_for_is_not_appended() {
    let (server, cache) = (server(), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    hub.fetch(&MODEL.parse().unwrap(), &mut |progress| progress.done < 60_000).unwrap_err();
    server.fault(Fault::Shifted);
    // Begins anew, which needs no range.
    let fetched = fetch(&hub).unwrap();
    assert_eq!(std::fs::read(fetched.folder.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn weights_may_be_a_pytorch_file() {
    let weights = weights();
    let (server, cache) = (Server::new(&[("pytorch_model.bin", &weights)]), tempfile::tempdir().unwrap());
    let fetched = fetch(&hub(&server, cache.path())).unwrap();
    assert_eq!(files(&fetched.folder), ["pytorch_model.bin"]);
    assert_eq!(std::fs::read(fetched.folder.join("pytorch_model.bin")).unwrap(), weights);
}
