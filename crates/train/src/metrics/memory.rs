//! Memory of this process.

use serde_json::{Map, Value, json};

/// Resident bytes now and at most since the start, as metrics; nothing where the system doesn't tell (only Linux does here).
pub fn resident() -> Map<String, Value> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    [("resident_bytes", "VmRSS:"), ("peak_resident_bytes", "VmHWM:")]
        .into_iter()
        .filter_map(|(name, field)| Some((name.to_owned(), json!(bytes(&status, field)?))))
        .collect()
}

/// A field of `/proc/PID/status`, which counts in KiB.
fn bytes(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_by_name() {
        let status = "Name:\tunif2ace\nVmHWM:\t   2000 kB\nVmRSS:\t   1500 kB\nThreads:\t3\n";
        assert_eq!(bytes(status, "VmRSS:"), Some(1500 * 1024));
        assert_eq!(bytes(status, "VmHWM:"), Some(2000 * 1024));
        assert_eq!((bytes(status, "VmSwap:"), bytes(status, "Threads:"), bytes("", "VmRSS:")), (None, None, None));
        if cfg!(target_os = "linux") {
            let found = resident();
            let [now, most] = ["resident_bytes", "peak_resident_bytes"].map(|name| found[name].as_u64().unwrap());
            assert!(now > 1 << 18 && most >= now / 2, "{found:?}");
        }
    }
}
