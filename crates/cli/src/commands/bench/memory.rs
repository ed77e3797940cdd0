//! Whether something fits into memory, before it is tried, and whether it stays in a cache.

use crate::error::{CliError, Result};

/// Refuses what would not fit.
pub(super) fn check(what: &str, bytes: usize) -> Result<()> {
    match available() {
        Some(available) if bytes > available => Err(CliError::usage(format!(
            "{what} takes {} of memory, {} are available: choose a format of fewer bits, a \
             smaller shape or fewer tokens",
            gigabytes(bytes),
            gigabytes(available)
        ))),
        _ => Ok(()),
    }
}

/// Bytes of the last cache of a core, where the system tells.
pub(super) fn last_cache() -> Option<usize> {
    let cache = |index: usize| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        cache_size(std::fs::read_to_string(path).ok()?.trim())
    };
    (0..8).map_while(cache).max()
}

/// A size as the system writes those of caches: `32768K`.
fn cache_size(text: &str) -> Option<usize> {
    let kilobytes: usize = text.strip_suffix('K')?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

fn gigabytes(bytes: usize) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// Memory that can be had without swapping, where the system tells: that of the machine, or what
/// the control group of this process has left.
fn available() -> Option<usize> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.as_deref().and_then(meminfo_available);
    let group = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let limit = group("memory.max").and_then(|max| max.trim().parse::<usize>().ok());
    // Of what the group holds, cached files would go away by themselves.
    let held = group("memory.stat").and_then(|stat| {
        let line = stat.lines().find_map(|l| l.strip_prefix("anon "))?;
        line.trim().parse::<usize>().ok()
    });
    let group = limit
        .zip(held)
        .map(|(limit, held)| limit.saturating_sub(held));
    machine.into_iter().chain(group).min()
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn meminfo_available(text: &str) -> Option<usize> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kilobytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:    1000000 kB\n";
        assert_eq!(meminfo_available(text), Some(1_024_000_000));
        assert_eq!(meminfo_available("MemTotal: 1 kB"), None);
        assert_eq!(cache_size("32768K"), Some(32 << 20));
        assert_eq!(cache_size("32768"), None);
        assert!(check("nothing", 0).is_ok());
        if available().is_some() {
            let error = check("everything", 1 << 60).unwrap_err().to_string();
            assert!(
                error.contains("everything takes 1152921504.6 GB"),
                "{error}"
            );
        }
    }
}
