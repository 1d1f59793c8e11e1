//! docs/security.md says what is so: every test that it names is there, every requirement of ASVS 5.0, level 1, is
//! answered, and what it says that the code does not do is not in the code.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The requirements of level 1: chapter, section, and the numbers within it.
const LEVEL_1: [(&str, &[u8]); 36] = [
    ("1.2", &[1, 2, 3, 4, 5]),
    ("1.3", &[1, 2]),
    ("1.5", &[1]),
    ("2.1", &[1]),
    ("2.2", &[1, 2]),
    ("2.3", &[1]),
    ("3.2", &[1, 2]),
    ("3.3", &[1]),
    ("3.4", &[1, 2]),
    ("3.5", &[1, 2, 3]),
    ("4.1", &[1]),
    ("4.4", &[1]),
    ("5.2", &[1, 2]),
    ("5.3", &[1, 2]),
    ("6.1", &[1]),
    ("6.2", &[1, 2, 3, 4, 5, 6, 7, 8]),
    ("6.3", &[1, 2]),
    ("6.4", &[1, 2]),
    ("7.2", &[1, 2, 3, 4]),
    ("7.4", &[1, 2]),
    ("8.1", &[1]),
    ("8.2", &[1, 2]),
    ("8.3", &[1]),
    ("9.1", &[1, 2, 3]),
    ("9.2", &[1]),
    ("10.4", &[1, 2, 3, 4, 5]),
    ("11.3", &[1, 2]),
    ("11.4", &[1]),
    ("12.1", &[1]),
    ("12.2", &[1, 2]),
    ("13.4", &[1]),
    ("14.2", &[1]),
    ("14.3", &[1]),
    ("15.1", &[1]),
    ("15.2", &[1]),
    ("15.3", &[1]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document() -> String {
    std::fs::read_to_string(root().join("docs/security.md")).unwrap()
}

/// All files of Rust in the repository, with their texts.
fn sources() -> Vec<(String, String)> {
    let mut sources = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && !["target", "data"].contains(&name.as_str()) {
                folders.push(path);
            } else if name.ends_with(".rs") {
                let place = path.strip_prefix(root()).unwrap().display().to_string();
                sources.push((place, std::fs::read_to_string(path).unwrap()));
            }
        }
    }
    assert!(sources.len() > 100, "{}", sources.len());
    sources
}

/// What the program is made of, without its tests.
fn product() -> Vec<(String, String)> {
    let is_product = |place: &str| {
        !["tests/", "bench/", "chaos/"].iter().any(|folder| place.starts_with(folder))
            && place.contains("/src/")
            && !place.ends_with("/tests.rs")
    };
    let without_tests = |text: String| match text.split_once("#[cfg(test)]\nmod tests {") {
        Some((before, _)) => before.to_owned(),
        None => text,
    };
    let found = sources().into_iter().filter(|(place, _)| is_product(place));
    found.map(|(place, text)| (place, without_tests(text))).collect()
}

/// The words of a text that stand between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The names of all tests.
fn tests(sources: &[(String, String)]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, text) in sources {
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) {
                names.extend(rest.split(['(', '<']).next().map(str::to_owned));
                is_test = false;
            }
        }
    }
    assert!(names.len() > 200, "{}", names.len());
    names
}

/// Whether a word is the name of a test: three words at least.
fn is_name(word: &str) -> bool {
    word.matches('_').count() >= 2
        && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[test]
fn every_test_that_is_named_exists() {
    let (document, sources) = (document(), sources());
    let tests = tests(&sources);
    let mut named = 0;
    for word in quoted(&document) {
        if is_name(word) {
            assert!(tests.contains(word), "docs/security.md names {word}, which is no test");
            named += 1;
        } else if word.ends_with(".rs") {
            let is_there =
                sources.iter().any(|(place, _)| place.ends_with(&format!("/{word}")) || place == word);
            assert!(is_there, "docs/security.md names {word}, which is no file");
        } else if word.starts_with("scripts/") {
            let script = word.split(' ').next().unwrap();
            assert!(root().join(script).exists(), "docs/security.md names {script}, which is not there");
        }
    }
    assert!(named > 60, "{named}");
}

#[test]
fn every_requirement_of_level_1_is_answered_and_what_applies_has_its_test() {
    let document = document();
    let rows: Vec<Vec<&str>> = document
        .lines()
        .filter(|line| line.starts_with("| "))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    let mut answered = BTreeSet::new();
    let all: BTreeSet<String> = LEVEL_1
        .iter()
        .flat_map(|(section, numbers)| numbers.iter().map(move |number| format!("{section}.{number}")))
        .collect();
    assert_eq!(all.len(), 70);
    for row in rows {
        let Some(id) = row[0].split(' ').next().filter(|id| all.contains(*id)) else { continue };
        assert!(answered.insert(id.to_owned()), "{id} is answered twice");
        let [_, control, test] = row[..] else { panic!("{id}: three columns") };
        let applies = !control.starts_with("does not apply: ");
        let has_test = quoted(test).iter().any(|word| is_name(word) || word.starts_with("scripts/"));
        let is_open = control.starts_with("open: ");
        assert!(!control.is_empty(), "{id}");
        assert!(!applies || has_test || is_open, "{id}: neither a test nor open: {test}");
        assert!(applies || !has_test, "{id} does not apply and has a test");
    }
    assert_eq!(answered, all);
}

/// Who starts programs is the private PostgreSQL of `tidemark up` alone; no crate that answers requests does.
#[test]
fn no_request_starts_a_program() {
    for (place, text) in product() {
        let starts = text.contains("process::Command") || text.contains("Command::new(\"");
        assert!(!starts || place == "tidemark/src/cluster.rs", "{place} starts programs");
    }
}

#[test]
fn only_approved_algorithms_are_used() {
    const REFUSED: [&str; 9] = ["md5", "MD5", "sha1::", "SHA1_", "Sha1", "ECB", "_CBC", "rc4", "RC4"];
    let mut uses_gcm = false;
    for (place, text) in product() {
        uses_gcm |= text.contains("AES_256_GCM");
        for refused in REFUSED {
            // Refused by the doctor, and codes of authenticators, whose HMAC-SHA-1 is RFC 6238's.
            let is_known = place.contains("doctor/") || place.ends_with("account/factor.rs");
            assert!(is_known || !text.contains(refused), "{place}: {refused}");
        }
    }
    assert!(uses_gcm, "nothing was looked at");
}

/// Statements are texts of the program; what comes in is bound to them.
#[test]
fn statements_are_put_together_from_nothing_that_comes_in() {
    for (place, text) in product() {
        for (at, _) in text.match_indices("AssertSqlSafe(") {
            // These put names of views and partitions into statements; nobody else has to.
            let known = ["projector/", "views/", "query/", "events/"];
            assert!(known.iter().any(|crate_| place.starts_with(crate_)), "{place}: {}", &text[at..at + 80]);
        }
    }
}
