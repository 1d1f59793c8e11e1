//! What the members have said.

use std::fs;
use std::path::Path;

use super::Check;
use crate::error::ChaosError;

/// No secret stands in the log of a member: not the one that tokens are signed with, nor the key that keys are wrapped
/// with, nor a token, all of which begin alike.
///
/// # Errors
/// [`ChaosError::Io`] when the logs cannot be read.
pub(crate) fn say_no_secret(dir: &Path, secrets: &[(&str, &str)]) -> Result<Check, ChaosError> {
    let mut check = Check::new("no secret stands in what a member has said");
    let reading = || format!("reading the logs in {}", dir.display());
    for file in fs::read_dir(dir).map_err(ChaosError::io(reading()))? {
        let path = file.map_err(ChaosError::io(reading()))?.path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let said = fs::read(&path).map_err(ChaosError::io(format!("reading {}", path.display())))?;
        let said = String::from_utf8_lossy(&said);
        for (what, secret) in secrets {
            check.expect(!said.contains(secret), || format!("{} holds {what}", path.display()));
        }
    }
    Ok(check)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_a_log_is_found_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = [("the key", "a1b2c3"), ("a token", "eyJ0")];
        assert!(!say_no_secret(folder.path(), &secrets).unwrap().holds(), "nothing was looked at");
        fs::write(folder.path().join("command-1.log"), "ready\n").unwrap();
        fs::write(folder.path().join("secret"), "a1b2c3\n").unwrap();
        assert!(say_no_secret(folder.path(), &secrets).unwrap().holds());
        fs::write(folder.path().join("query-1.log"), b"\xff refused: Bearer eyJ0.e30.c2ln\n").unwrap();
        let check = say_no_secret(folder.path(), &secrets).unwrap();
        assert_eq!((check.compared, check.mismatched), (4, 1));
        assert!(check.examples[0].ends_with("query-1.log holds a token"), "{:?}", check.examples);
    }
}
