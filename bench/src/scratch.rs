//! A folder for a run's files, removed with all in it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::BenchError;

/// The folder. Removed when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes it under `TMPDIR`. Others may pass through it: as root, PostgreSQL runs as another user inside.
    pub(crate) fn new() -> Result<Self, BenchError> {
        let path = std::env::temp_dir().join(format!("tidemark-bench-{}", std::process::id()));
        fs::create_dir(&path).map_err(BenchError::io(format!("making {}", path.display())))?;
        let scratch = Self { path };
        scratch.open_to_others(&scratch.path)?;
        Ok(scratch)
    }

    /// A folder in it.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, BenchError> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(BenchError::io(format!("making {}", path.display())))?;
        self.open_to_others(&path)?;
        Ok(path)
    }

    /// A file in it with these lines.
    pub(crate) fn file(&self, name: &str, text: &str) -> Result<PathBuf, BenchError> {
        let path = self.path.join(name);
        fs::write(&path, text).map_err(BenchError::io(format!("writing {}", path.display())))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .map_err(BenchError::io(format!("opening {} to others", path.display())))?;
        Ok(path)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn open_to_others(&self, path: &Path) -> Result<(), BenchError> {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .map_err(BenchError::io(format!("opening {} to others", path.display())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("{} is left behind: {error}", self.path.display());
        }
    }
}
