//! Disks of their own for the log's PostgreSQL: a small one in memory that can be filled, and one in a file that can be
//! copied while it is in use, which is what is left when the power goes. Both need root and a kernel that mounts them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::ChaosError;

/// How often it is tried to take a disk's room before somebody else takes some.
const FILLS: usize = 20;

/// How often a disk is copied until nothing was written to it meanwhile.
const COPIES: usize = 10;

/// How long whoever still has files open on a disk may take to end, before it is taken away all the same.
const UNUSED_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What is needed to try whether disks can be mounted, in megabytes.
const TRIAL: u32 = 8;

/// Which disk a member's data is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The machine's.
    Plain,
    /// In memory, of so many megabytes.
    Small(u32),
    /// In a file, of so many megabytes.
    Image(u32),
}

/// A mounted disk; it is unmounted when this is dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    at: PathBuf,
    kind: Kind,
    /// The file that holds it, if it is in one.
    image: Option<PathBuf>,
    mounted: AtomicBool,
}

impl Disk {
    /// Whether this machine mounts both kinds.
    ///
    /// # Errors
    /// [`ChaosError::Disk`] with the reason why not.
    pub(crate) fn can_be_mounted() -> Result<(), ChaosError> {
        let dir = tempfile::tempdir().map_err(ChaosError::io("making a directory"))?;
        Self::make(dir.path(), "small", Kind::Small(TRIAL))?;
        let image = Self::make(dir.path(), "image", Kind::Image(TRIAL))?;
        image.as_ref().map_or(Ok(0), Self::writes).map(drop)
    }

    /// Makes a disk in a directory and puts a member's data on it, before the cluster is started.
    ///
    /// # Errors
    /// [`ChaosError::Disk`].
    pub(crate) fn make(dir: &Path, member: &str, kind: Kind) -> Result<Option<Self>, ChaosError> {
        let at = dir.join(format!("{member}.disk"));
        let disk = match kind {
            Kind::Plain => return Ok(None),
            Kind::Small(megabytes) => {
                let size = format!("size={megabytes}m,mode=755");
                let mut command = Command::new("mount");
                Self::mount(&at, kind, None, command.args(["-t", "tmpfs", "-o", &size, "tmpfs"]))?
            }
            Kind::Image(megabytes) => {
                let image = dir.join(format!("{member}.image"));
                call(Command::new("truncate").arg(format!("--size={megabytes}M")).arg(&image))?;
                call(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
                Self::mount(&at, kind, Some(&image), Command::new("mount").args(["-o", "loop"]).arg(&image))?
            }
        };
        make_dir(&disk.data())?;
        std::os::unix::fs::symlink(disk.data(), dir.join(member))
            .map_err(ChaosError::io("linking a member's data"))?;
        Ok(Some(disk))
    }

    /// Mounts a copy of it.
    ///
    /// # Errors
    /// [`ChaosError::Disk`].
    pub(crate) fn of_copy(&self, image: &Path, at: &Path) -> Result<Self, ChaosError> {
        Self::mount(at, self.kind, Some(image), Command::new("mount").args(["-o", "loop"]).arg(image))
    }

    fn mount(at: &Path, kind: Kind, image: Option<&Path>, command: &mut Command) -> Result<Self, ChaosError> {
        make_dir(at)?;
        call(command.arg(at))?;
        let (at, image) = (at.to_owned(), image.map(Path::to_owned));
        Ok(Self { at, kind, image, mounted: AtomicBool::new(true) })
    }

    /// Where a member's data is on it.
    pub(crate) fn data(&self) -> PathBuf {
        self.at.join("data")
    }

    /// Brings everything to the disk that has been written so far: a new cluster's files were not waited for.
    ///
    /// # Errors
    /// [`ChaosError::Disk`].
    pub(crate) fn settle(&self) -> Result<(), ChaosError> {
        call(Command::new("sync").arg("--file-system").arg(&self.at)).map(drop)
    }

    /// Copies the file that holds it, as it was at one moment: what has come to the disk by then is in the copy, what
    /// the kernel still holds back is not. Who writes to the disk must be stopped, but the kernel writes, too: a copy
    /// during which it did is of no moment, and is made again.
    ///
    /// # Errors
    /// [`ChaosError::Disk`].
    pub(crate) fn copy(&self, to: &Path) -> Result<(), ChaosError> {
        let image =
            self.image.as_ref().ok_or_else(|| ChaosError::Disk("this disk is in no file".to_owned()))?;
        for _ in 0..COPIES {
            let before = self.writes()?;
            call(Command::new("cp").arg(image).arg(to))?;
            if self.writes()? == before {
                return Ok(());
            }
        }
        Err(ChaosError::Disk(format!("the disk was written to during each of {COPIES} copies")))
    }

    /// How often the kernel has written to the disk, and is writing now.
    fn writes(&self) -> Result<u64, ChaosError> {
        let source = ["--noheadings", "--output", "SOURCE", "--mountpoint"];
        let device = call(Command::new("findmnt").args(source).arg(&self.at))?;
        let name = device.trim().trim_start_matches("/dev/");
        let path = format!("/sys/block/{name}/stat");
        let text = fs::read_to_string(&path).map_err(|error| ChaosError::Disk(format!("{path}: {error}")))?;
        let numbers: Vec<u64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        // The kernel's Documentation/block/stat.rst: the fifth is finished writes, the ninth what is under way.
        match numbers[..] {
            [_, _, _, _, written, _, _, _, under_way, ..] => Ok(written + under_way),
            _ => Err(ChaosError::Disk(format!("{path} holds no figures"))),
        }
    }

    /// Leaves no room on a small one: it becomes as small as what is on it.
    ///
    /// # Errors
    /// [`ChaosError::Disk`].
    pub(crate) fn fill(&self) -> Result<(), ChaosError> {
        let mut attempts = 1..=FILLS;
        loop {
            let used = call(Command::new("df").args(["--block-size=1", "--output=used"]).arg(&self.at))?;
            let used = used.lines().last().unwrap_or_default().trim().to_owned();
            // More may be on it by now; then it does not become so small.
            match self.resize(&used) {
                Err(error) if attempts.next().is_none() => return Err(error),
                Err(_) => {}
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// [`ChaosError::Disk`].
    pub(crate) fn free(&self) -> Result<(), ChaosError> {
        let Kind::Small(megabytes) = self.kind else {
            return Err(ChaosError::Disk("it is not in memory".to_owned()));
        };
        self.resize(&format!("{megabytes}m"))
    }

    fn resize(&self, size: &str) -> Result<(), ChaosError> {
        let option = format!("remount,size={size}");
        call(Command::new("mount").args(["-o", &option]).arg(&self.at)).map(drop)
    }

    /// Takes it away, once.
    pub(crate) fn unmount(&self) {
        if !self.mounted.swap(false, Ordering::Relaxed) {
            return;
        }
        let end = Instant::now() + UNUSED_WITHIN;
        while Instant::now() < end {
            if call(Command::new("umount").arg(&self.at)).is_ok() {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        // It goes when the last file on it is closed.
        if let Err(error) = call(Command::new("umount").arg("--lazy").arg(&self.at)) {
            tracing::warn!(%error, "a disk is left mounted");
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
    }
}

fn make_dir(dir: &Path) -> Result<(), ChaosError> {
    fs::create_dir_all(dir).map_err(ChaosError::io(format!("making {}", dir.display())))
}

/// Runs a program to its end and returns what it printed.
fn call(command: &mut Command) -> Result<String, ChaosError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| ChaosError::Disk(format!("{name}: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(ChaosError::Disk(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where disks can be mounted.
    #[test]
    fn a_disk_is_filled_and_a_copy_has_what_came_to_the_disk() {
        if let Err(error) = Disk::can_be_mounted() {
            eprintln!("left out: {error}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let small = Disk::make(dir.path(), "small", Kind::Small(TRIAL)).unwrap().unwrap();
        let write = |name: &str| fs::write(small.data().join(name), vec![7; 1 << 20]);
        write("before").unwrap();
        small.fill().unwrap();
        assert!(write("full").is_err());
        small.free().unwrap();
        write("after").unwrap();

        let image = Disk::make(dir.path(), "image", Kind::Image(TRIAL)).unwrap().unwrap();
        fs::write(image.data().join("kept"), "kept").unwrap();
        image.settle().unwrap();
        fs::write(image.data().join("lost"), "lost").unwrap();
        image.copy(&dir.path().join("copy")).unwrap();
        let copy = image.of_copy(&dir.path().join("copy"), &dir.path().join("at")).unwrap();
        assert_eq!(fs::read_to_string(copy.data().join("kept")).unwrap(), "kept");
        assert!(fs::read(copy.data().join("lost")).unwrap_or_default().is_empty());
    }
}
