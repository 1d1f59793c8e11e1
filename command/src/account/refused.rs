//! Passwords that are refused because somebody has written them down.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use unicode_normalization::UnicodeNormalization;

use super::value::NewPassword;

/// A list of common or stolen passwords, as others publish them. Whoever runs the shop chooses which: what is common
/// differs from language to language, and from year to year. Cheap to clone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RefusedPasswords(Arc<HashSet<Box<str>>>);

impl fmt::Debug for RefusedPasswords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} refused passwords", self.0.len())
    }
}

impl RefusedPasswords {
    /// The most bytes of a list: a million passwords and more.
    pub const MOST_BYTES: u64 = 32 * 1024 * 1024;

    /// Reads a file of UTF-8 text with a password a line. Those that nobody could set for their length are left out;
    /// a line that is no UTF-8 is, too: no password is.
    ///
    /// # Errors
    /// What is wrong with the file, for whoever named it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let wrong = |why: String| format!("a file with a password a line; {} {why}", path.display());
        let file = File::open(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        let mut bytes = Vec::new();
        file.take(Self::MOST_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| wrong(format!("cannot be read: {error}")))?;
        if bytes.len() as u64 > Self::MOST_BYTES {
            return Err(wrong(format!("is longer than {} MiB", Self::MOST_BYTES / 1024 / 1024)));
        }
        let list: Self = bytes
            .split(|byte| *byte == b'\n')
            .filter_map(|line| std::str::from_utf8(line).ok())
            .map(|line| line.strip_suffix('\r').unwrap_or(line))
            .collect();
        if list.0.is_empty() {
            let least = NewPassword::LEAST;
            return Err(wrong(format!(
                "has none of {least} characters or more, and shorter ones are never taken"
            )));
        }
        Ok(list)
    }

    /// Whether a password is in it, in whichever case.
    #[must_use]
    pub fn contains(&self, password: &NewPassword) -> bool {
        !self.0.is_empty() && self.0.contains(folded(password.normal()).as_str())
    }
}

impl<'a> FromIterator<&'a str> for RefusedPasswords {
    fn from_iter<I: IntoIterator<Item = &'a str>>(lines: I) -> Self {
        let folded = lines.into_iter().map(folded);
        let settable = folded.filter(|line| NewPassword::LENGTHS.contains(&line.chars().count()));
        Self(Arc::new(settable.map(|line| line.as_str().into()).collect()))
    }
}

/// As two spellings of one password are compared.
fn folded(password: &str) -> zeroize::Zeroizing<String> {
    zeroize::Zeroizing::new(password.nfc().flat_map(char::to_lowercase).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn password(text: &str) -> NewPassword {
        NewPassword::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn what_is_in_the_list_is_found_however_it_is_spelt() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all("short\nTrustNo1Elsewhere\r\n\u{ff}\nz\u{fc}richbergstrasse\n".as_bytes()).unwrap();
        file.write_all(b"\xff\xfe is no text at all\n").unwrap();
        let list = RefusedPasswords::read(file.path()).unwrap();
        assert_eq!(list.0.len(), 2, "{list:?}");
        for listed in ["TrustNo1Elsewhere", "trustno1elsewhere", "Zu\u{308}richBergStrasse"] {
            assert!(list.contains(&password(listed)), "{listed}");
        }
        for other in ["trustno1elsewhere ", "trustno1elsewher", "Zurichbergstrasse"] {
            assert!(!list.contains(&password(other)), "{other}");
        }
        assert!(!RefusedPasswords::default().contains(&password("trustno1elsewhere")));
        assert!(!format!("{list:?}").contains("trust"));
    }

    #[test]
    fn a_file_that_is_no_list_is_named_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let missing = RefusedPasswords::read(&folder.path().join("none")).unwrap_err();
        assert!(missing.contains("none cannot be read"), "{missing}");
        let empty = folder.path().join("empty");
        std::fs::write(&empty, "password\n123456\n").unwrap();
        let refused = RefusedPasswords::read(&empty).unwrap_err();
        assert!(refused.contains("has none of 12 characters or more"), "{refused}");
        let long = folder.path().join("long");
        File::create(&long).unwrap().set_len(RefusedPasswords::MOST_BYTES + 1).unwrap();
        let refused = RefusedPasswords::read(&long).unwrap_err();
        assert!(refused.contains("is longer than 32 MiB"), "{refused}");
    }
}
