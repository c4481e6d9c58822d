//! Models that are named as `hf://ORGANISATION/NAME`, fetched from a server of the test's own, and refused without the feature.

mod common;

use common::{Folder, command, refuse};

const MODEL: &str = "hf://someone/tiny";

#[cfg(not(feature = "hub"))]
#[test]
fn a_program_without_fetching_says_how_to_get_one_that_fetches() {
    let folder = Folder::new();
    for arguments in [
        &["predict", MODEL, "image.png"][..],
        &["evaluate", MODEL],
        &["inspect", MODEL],
        &["import", MODEL, &folder.text("model")],
        &["export", MODEL, &folder.text("model")],
        &["bench", "infer", MODEL],
    ] {
        refuse(2, arguments, &[MODEL, "built without fetching", "--features hub"]);
    }
    // What the variables of the fetching program say changes nothing.
    let mut command = command(&["inspect", MODEL]);
    let answer: common::Answer = command.env("HF_ENDPOINT", "http://127.0.0.1:9").output().unwrap().into();
    assert_eq!(answer.code, Some(2), "{answer:?}");
}

#[cfg(feature = "hub")]
mod fetching {
    use super::*;
    use common::{Answer, check_refusal};
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};

    /// Answers one request for the files of the model as the hub does, small files only: git's checksum is their tag.
    fn answer(stream: &TcpStream, files: &[(&str, Vec<u8>, String)]) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let request: Vec<&str> = line.split_whitespace().collect();
        let mut header = String::from("x");
        while !header.trim().is_empty() {
            header.clear();
            reader.read_line(&mut header)?;
        }
        let mut stream = stream;
        let file = files.iter().find(|(name, ..)| {
            request.get(1) == Some(&format!("/someone/tiny/resolve/main/{name}").as_str())
        });
        let Some((_, bytes, tag)) = file else {
            return write!(stream, "HTTP/1.1 404 x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        };
        write!(
            stream,
            "HTTP/1.1 200 x\r\nX-Repo-Commit: {}\r\nETag: \"{tag}\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            "0".repeat(40),
            bytes.len()
        )?;
        if request[0] == "GET" {
            stream.write_all(bytes)?;
        }
        Ok(())
    }

    /// Serves these files, each under the checksum that `git hash-object` gives it; returns the address.
    fn serve(files: Vec<(&'static str, Vec<u8>)>, folder: &Folder) -> String {
        let tagged = files.into_iter().map(|(name, bytes)| {
            folder.write("blob", &bytes);
            let hash = std::process::Command::new("git").args(["hash-object", &folder.text("blob")]).output();
            let tag = String::from_utf8(hash.unwrap().stdout).unwrap().trim().to_owned();
            assert_eq!(tag.len(), 40, "{tag}");
            (name, bytes, tag)
        });
        let files: Vec<_> = tagged.collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            // A client that leaves early is no failure of the test.
            listener.incoming().flatten().for_each(|stream| drop(answer(&stream, &files)));
        });
        address
    }

    #[test]
    fn a_model_is_fetched_by_its_name_and_kept() {
        let folder = Folder::new();
        folder.images("data", 4);
        folder.train("data", "run", &[]);
        let file = |name: &str| folder.read(&format!("run/best/{name}"));
        let files = ["config.json", "model.safetensors"].map(|name| (name, file(name)));
        let address = serve(files.into(), &folder);
        let ask = |arguments: &[&str], endpoint: &str| -> Answer {
            let mut command = command(arguments);
            command.env("HF_ENDPOINT", endpoint).env("XDG_CACHE_HOME", folder.path("cache"));
            command.env_remove("HF_TOKEN").output().unwrap().into()
        };
        let image = folder.text("data/dark/000.png");
        let predict = ["predict", MODEL, &image, "--json"];
        let fetched = ask(&predict, &address);
        assert_eq!(fetched.code, Some(0), "{fetched:?}");
        let own = common::succeed(&["predict", &folder.text("run"), &image, "--json"]).json();
        assert_eq!(fetched.json()["predictions"], own["predictions"]);
        // The hub is gone, the model stays.
        let kept = ask(&predict, "http://127.0.0.1:9");
        assert_eq!(kept.json()["predictions"], own["predictions"]);
        assert!(kept.stderr.contains("taking the model that was fetched earlier"), "{kept:?}");
        let imported = ask(&["import", MODEL, &folder.text("model"), "--json"], &address);
        assert_eq!(imported.code, Some(0), "{imported:?}");
        assert!(folder.read("model/model.safetensors") == file("model.safetensors"));
        check_refusal(&ask(&["inspect", "hf://someone/absent"], &address), 1, &["someone/absent"]);
        refuse(2, &["inspect", "hf://nobody"], &["hf://nobody"]);
    }
}
