//! A small, strict checker of markup for the tests: what passes is well-formed XML and so parses the same everywhere.

use std::collections::HashSet;

/// Checks nesting, quoting, entities and ids of a document or fragment with one root.
pub(crate) fn check(text: &str) -> Result<(), String> {
    let mut rest = text.strip_prefix("<!DOCTYPE html>").unwrap_or(text).trim();
    let mut open: Vec<&str> = Vec::new();
    let mut ids = HashSet::new();
    let mut roots = 0;
    while let Some(start) = rest.find('<') {
        check_text(&rest[..start])?;
        if open.is_empty() && !rest[..start].trim().is_empty() {
            return Err(format!("text outside the root: {:?}", &rest[..start]));
        }
        let after = &rest[start + 1..];
        let end = tag_end(after)?;
        let tag = &after[..end];
        rest = &after[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            match open.pop() {
                Some(opened) if opened == name => {}
                opened => return Err(format!("</{name}> closes {opened:?}")),
            }
            continue;
        }
        let (tag, closed) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let name_end = tag.find(char::is_whitespace).unwrap_or(tag.len());
        let (name, attributes) = tag.split_at(name_end);
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(format!("odd element name {name:?}"));
        }
        check_attributes(name, attributes, &mut ids)?;
        roots += usize::from(open.is_empty());
        if !closed {
            open.push(name);
        }
    }
    check_text(rest)?;
    match (open.as_slice(), roots, rest.trim()) {
        ([], 1, "") => Ok(()),
        (open, roots, rest) => Err(format!("left open: {open:?}, {roots} roots, then {rest:?}")),
    }
}

/// The `>` that ends a tag, which may stand inside quotes.
fn tag_end(text: &str) -> Result<usize, String> {
    let mut quoted = false;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Ok(index),
            b'<' => return Err(format!("< inside a tag: {:.60}", text)),
            _ => {}
        }
    }
    Err(format!("a tag without end: {:.60}", text))
}

fn check_attributes(element: &str, attributes: &str, ids: &mut HashSet<String>) -> Result<(), String> {
    let mut seen = HashSet::new();
    let mut rest = attributes;
    while !rest.trim().is_empty() {
        if !rest.starts_with(char::is_whitespace) {
            return Err(format!("no space before an attribute of {element}: {rest:?}"));
        }
        let (name, after) =
            rest.trim_start().split_once("=\"").ok_or(format!("{element}: unquoted {rest:?}"))?;
        let (value, after) = after.split_once('"').ok_or(format!("{element}: quote left open {rest:?}"))?;
        if name.contains(char::is_whitespace) || !seen.insert(name) {
            return Err(format!("{element}: attribute {name:?} without value or twice"));
        }
        check_text(value)?;
        if name == "id" && !ids.insert(value.to_string()) {
            return Err(format!("id {value:?} twice"));
        }
        rest = after;
    }
    Ok(())
}

fn check_text(text: &str) -> Result<(), String> {
    for after in text.split('&').skip(1) {
        let entity = after.split_once(';').map(|(entity, _)| entity);
        if !matches!(entity, Some("amp" | "lt" | "gt" | "quot" | "#39")) {
            return Err(format!("a bare &: {:.40}", after));
        }
    }
    match text.chars().find(|letter| letter.is_control() && !matches!(letter, '\n' | '\t')) {
        Some(letter) => Err(format!("control character {letter:?}")),
        None => Ok(()),
    }
}

#[test]
fn the_checker_finds_what_is_wrong() {
    check("<!DOCTYPE html>\n<a b=\"c&lt;>\"><d/>x &amp; y</a>\n").unwrap();
    for wrong in [
        "<a>",
        "<a></b>",
        "<a/><b/>",
        "<a>&</a>",
        "<a>&nbsp;</a>",
        "<a b=c/>",
        "<a b/>",
        "<a b=\"1\" b=\"2\"/>",
        "<a b=\"<\"/>",
        "<a id=\"x\"><b id=\"x\"/></a>",
        "<a>\u{7}</a>",
        "text",
        "<a/>text",
        "<a b=\"1\"c=\"2\"/>",
    ] {
        assert!(check(wrong).is_err(), "{wrong}");
    }
}
