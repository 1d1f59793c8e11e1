//! What others took of the processors: on a virtual machine its host gives them to others, too, and then figures and
//! baselines of the same run tell less of each other than they seem to.

use std::fs;

/// Below this share nothing is said.
const WORTH_TELLING: f64 = 0.02;

/// Ticks of all processors since the machine began, as Linux counts them; `None` elsewhere.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ticks {
    all: u64,
    stolen: u64,
}

impl Ticks {
    /// As they are now.
    pub(crate) fn now() -> Option<Self> {
        Self::read(&fs::read_to_string("/proc/stat").ok()?)
    }

    /// From the first line of `/proc/stat` (proc(5)): user, nice, system, idle, iowait, irq, softirq, steal; what
    /// follows is contained in these.
    fn read(stat: &str) -> Option<Self> {
        let mut words = stat.lines().next()?.split_whitespace();
        let ticks: Vec<u64> = words
            .next()
            .filter(|&name| name == "cpu")
            .map(|_| words.map_while(|word| word.parse().ok()).take(8).collect())?;
        Some(Self { all: ticks.iter().sum(), stolen: *ticks.get(7)? })
    }

    /// What to say of the time since `before`, if it is worth it.
    pub(crate) fn told_since(self, before: Self) -> Option<String> {
        let all = self.all.checked_sub(before.all).filter(|&all| all > 0)?;
        let share = self.stolen.saturating_sub(before.stolen) as f64 / all as f64;
        (share >= WORTH_TELLING).then(|| {
            format!("the host gave {:.0} % of the processors' time to others meanwhile", share * 100.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_took_is_told_when_it_counts() {
        let read = |stat: &str| Ticks::read(stat).unwrap();
        let before = read("cpu  100 0 50 800 10 0 5 35 0 0\ncpu0 1 1 1 1\n");
        let after = read("cpu  150 0 60 810 10 0 5 65 9 9\n");
        let told = after.told_since(before).unwrap();
        assert_eq!(told, "the host gave 30 % of the processors' time to others meanwhile");
        assert_eq!(after.told_since(after), None);
        assert_eq!(read("cpu  1100 0 50 800 10 0 5 36 0 0").told_since(before), None, "a thousandth");
        assert!(Ticks::read("intr 1 2 3").is_none());
        assert!(Ticks::read("cpu 1 2 3").is_none());
        assert!(Ticks::read("").is_none());
    }
}
