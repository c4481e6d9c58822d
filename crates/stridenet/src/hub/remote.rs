//! What the hub says about a file, and the requests for it.

use super::{Hub, HubError, Reference, is_name};
use std::time::Duration;
use ureq::http::Response;
use ureq::{Agent, Body};

/// The most redirections that are followed.
const MOST_REDIRECTIONS: usize = 8;
/// How long the hub may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one request may go on; a longer file takes several.
const LONGEST_REQUEST: Duration = Duration::from_secs(300);

/// A file as the hub describes it.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    /// Where its bytes are.
    pub(super) url: String,
    /// The commit that it belongs to.
    pub(super) commit: String,
    pub(super) checksum: Checksum,
    /// Bytes.
    pub(super) size: u64,
}

/// A checksum in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Checksum {
    /// SHA-256 of the bytes: large files.
    Sha256(String),
    /// git's SHA-1 of a blob, which begins with its length: small files.
    GitBlob(String),
}

impl Checksum {
    fn parse(tag: &str) -> Option<Self> {
        let tag = tag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
        match (tag.len(), tag.chars().all(|digit| digit.is_ascii_hexdigit())) {
            (64, true) => Some(Checksum::Sha256(tag)),
            (40, true) => Some(Checksum::GitBlob(tag)),
            _ => None,
        }
    }

    pub(super) fn digits(&self) -> &str {
        let (Checksum::Sha256(digits) | Checksum::GitBlob(digits)) = self;
        digits
    }
}

/// A hub that can be asked.
pub(super) struct Server<'a> {
    hub: &'a Hub,
    agent: Agent,
}

impl<'a> Server<'a> {
    pub(super) fn new(hub: &'a Hub) -> Self {
        let config = Agent::config_builder()
            // Followed here, so that the token stays with the hub, and because the hub describes a file while redirecting.
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_recv_body(Some(LONGEST_REQUEST))
            .user_agent(concat!("stridenet/", env!("CARGO_PKG_VERSION")))
            .build();
        Server { hub, agent: config.into() }
    }

    fn endpoint(&self) -> &str {
        self.hub.endpoint.trim_end_matches('/')
    }

    /// Asks about a file; nothing where there is none.
    pub(super) fn describe(&self, reference: &Reference, file: &str) -> Result<Option<Remote>, HubError> {
        let Reference { organisation, name, revision } = reference;
        let mut url = format!("{}/{organisation}/{name}/resolve/{revision}/{file}", self.endpoint());
        for _ in 0..MOST_REDIRECTIONS {
            let request = self.agent.head(&url);
            let response = self.authorised(&url, request).call().map_err(|error| offline(&url, &error))?;
            let location = location(&url, &response)?;
            match response.status().as_u16() {
                404 => return Ok(None),
                status @ (401 | 403) => return Err(HubError::Forbidden { url, status }),
                // Where the large files are, somewhere else; a redirection within the hub is only another name.
                300..=399 => {
                    let Some(location) = location else { return Err(answer(&url, &response)) };
                    if header(&response, "x-linked-etag").is_none() && same_origin(&url, &location) {
                        url = location;
                        continue;
                    }
                    return remote(&url, &response, location).map(Some);
                }
                200 => return remote(&url, &response, url.clone()).map(Some),
                _ => return Err(answer(&url, &response)),
            }
        }
        Err(HubError::Answer { url, found: "redirections without an end".into(), expected: "a file" })
    }

    /// Asks for the bytes of a file from `start` on.
    pub(super) fn bytes(&self, url: &str, start: u64) -> Result<Response<Body>, HubError> {
        let mut url = url.to_owned();
        for _ in 0..MOST_REDIRECTIONS {
            let mut request = self.agent.get(&url);
            if start > 0 {
                request = request.header("range", format!("bytes={start}-"));
            }
            let response = self.authorised(&url, request).call().map_err(|error| offline(&url, &error))?;
            match (response.status().as_u16(), location(&url, &response)?) {
                (300..=399, Some(location)) => url = location,
                (200 | 206 | 416, _) => return Ok(response),
                (status @ (401 | 403), _) => return Err(HubError::Forbidden { url, status }),
                _ => return Err(answer(&url, &response)),
            }
        }
        Err(HubError::Answer { url, found: "redirections without an end".into(), expected: "a file" })
    }

    /// The request with the token, if it goes to the hub itself.
    fn authorised<B>(&self, url: &str, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.hub.token {
            Some(token) if same_origin(url, self.endpoint()) => {
                request.header("authorization", format!("Bearer {token}"))
            }
            _ => request,
        }
    }
}

/// What a hub that answers says about the file, whose bytes are at `bytes`.
fn remote(url: &str, response: &Response<Body>, bytes: String) -> Result<Remote, HubError> {
    let either = |first, second| header(response, first).or_else(|| header(response, second));
    let missing = |expected| HubError::Answer { url: url.to_owned(), found: "none".into(), expected };
    let commit = header(response, "x-repo-commit").filter(|commit| is_name(commit));
    let commit = commit.ok_or_else(|| missing("the commit of the model (X-Repo-Commit)"))?;
    let checksum = either("x-linked-etag", "etag").and_then(Checksum::parse);
    let checksum = checksum.ok_or_else(|| missing("a checksum of the file (X-Linked-ETag, ETag)"))?;
    let size = either("x-linked-size", "content-length").and_then(|size| size.parse().ok());
    let size = size.ok_or_else(|| missing("the size of the file (X-Linked-Size, Content-Length)"))?;
    Ok(Remote { url: bytes, commit: commit.to_owned(), checksum, size })
}

fn header<'r>(response: &'r Response<Body>, name: &str) -> Option<&'r str> {
    response.headers().get(name)?.to_str().ok()
}

/// The whole address that a response redirects to.
fn location(url: &str, response: &Response<Body>) -> Result<Option<String>, HubError> {
    let Some(location) = header(response, "location") else { return Ok(None) };
    let location = match location.starts_with('/') && !location.starts_with("//") {
        true => format!("{}{location}", origin(url)),
        false => location.to_owned(),
    };
    let safe =
        location.starts_with("https://") || (location.starts_with("http://") && url.starts_with("http://"));
    match safe {
        true => Ok(Some(location)),
        false => {
            let found = format!("a redirection to {location:?}");
            Err(HubError::Answer { url: url.to_owned(), found, expected: "one that is as safe" })
        }
    }
}

/// `https://host:port` of an address.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find(['/', '?', '#']).map_or(url.len(), |at| host + at);
    &url[..end]
}

fn same_origin(a: &str, b: &str) -> bool {
    origin(a).eq_ignore_ascii_case(origin(b))
}

fn answer(url: &str, response: &Response<Body>) -> HubError {
    let found = format!("HTTP status {}", response.status().as_u16());
    HubError::Answer { url: url.to_owned(), found, expected: "a file" }
}

/// A request that got no answer.
pub(super) fn offline(url: &str, reason: &dyn std::fmt::Display) -> HubError {
    let reason = reason.to_string().replace(char::is_control, " ");
    HubError::Offline { url: url.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_and_checksums() {
        assert_eq!(origin("https://hub.example:8080/a/b?c"), "https://hub.example:8080");
        assert_eq!(origin("http://hub.example"), "http://hub.example");
        assert!(same_origin("https://Hub.example/a", "https://hub.example"));
        assert!(!same_origin("https://hub.example.evil/a", "https://hub.example"));
        assert!(!same_origin("http://hub.example/a", "https://hub.example"));
        let digits = "0123456789ABCDEF".repeat(4);
        assert_eq!(Checksum::parse(&format!("\"{digits}\"")), Some(Checksum::Sha256(digits.to_lowercase())));
        assert_eq!(
            Checksum::parse(&format!("W/\"{}\"", &digits[..40])).unwrap().digits(),
            &digits.to_lowercase()[..40]
        );
        assert_eq!(Checksum::parse("\"5f-abc\""), None);
    }
}
