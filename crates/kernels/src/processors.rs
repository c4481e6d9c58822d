//! How many processors this process may use.

use std::collections::BTreeSet;

/// Most processors that Linux supports; a list that names others is not one.
const MOST: usize = 1 << 16;

/// Physical processors that this process may use, at least 1.
///
/// Threads beyond that would share the arithmetic units of a core and slow each other down. Affinity and cgroup quotas
/// (versions 1 and 2) are respected; where the system tells (Linux), hyperthreads of one core count once.
pub fn physical_processors() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, |processors| processors.get());
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let siblings = |processor: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list");
        std::fs::read_to_string(path).ok()
    };
    match allowed(&status) {
        Some(allowed) => cores(&allowed, siblings).clamp(1, logical),
        None => logical,
    }
}

/// The processors that `/proc/self/status` allows.
fn allowed(status: &str) -> Option<BTreeSet<usize>> {
    list(status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?)
}

/// Number of cores that the `allowed` processors belong to; `siblings` lists the processors of a processor's core. A
/// processor whose siblings are not known is a core of its own.
fn cores(allowed: &BTreeSet<usize>, siblings: impl Fn(usize) -> Option<String>) -> usize {
    let first = |&processor: &usize| {
        let siblings = siblings(processor).and_then(|text| list(&text));
        siblings.and_then(|siblings| siblings.first().copied()).unwrap_or(processor)
    };
    allowed.iter().map(first).collect::<BTreeSet<_>>().len()
}

/// Numbers and ranges such as `0-3,8,10-11`.
fn list(text: &str) -> Option<BTreeSet<usize>> {
    let number = |text: &str| text.trim().parse().ok().filter(|&number: &usize| number < MOST);
    let mut all = BTreeSet::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        all.extend(number(first)?..=number(last)?);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[usize]) -> BTreeSet<usize> {
        numbers.iter().copied().collect()
    }

    #[test]
    fn lists_are_numbers_and_ranges() {
        assert_eq!(list("0-3,8,10-11\n"), Some(set(&[0, 1, 2, 3, 8, 10, 11])));
        assert_eq!(list("5"), Some(set(&[5])));
        for wrong in ["", "a", "1-", "-1", "1,,2", "0-18446744073709551615"] {
            assert_eq!(list(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_allowed_processors_are_read() {
        let status = "Name:\tx\nCpus_allowed:\t0f\nCpus_allowed_list:\t0-1,4\nMems_allowed_list:\t0\n";
        assert_eq!(allowed(status), Some(set(&[0, 1, 4])));
        assert_eq!(allowed("Name:\tx\n"), None);
    }

    #[test]
    fn hyperthreads_of_a_core_count_once() {
        // Four cores of two hyperthreads each, numbered as Linux does on most machines.
        let siblings = |processor: usize| Some(format!("{},{}\n", processor % 4, processor % 4 + 4));
        assert_eq!(cores(&set(&[0, 1, 2, 3, 4, 5, 6, 7]), siblings), 4);
        assert_eq!(cores(&set(&[1, 5]), siblings), 1);
        assert_eq!(cores(&set(&[5, 6, 7]), siblings), 3, "half a core is a core");
        assert_eq!(cores(&set(&[0, 1, 2]), |processor| Some(format!("{0}-{0}", processor & !1))), 2);
        assert_eq!(cores(&set(&[2, 3]), |_| None), 2);
        assert_eq!(cores(&set(&[2, 3]), |_| Some("nonsense".to_owned())), 2);
    }

    #[test]
    fn this_machine_has_some() {
        let logical = std::thread::available_parallelism().unwrap().get();
        assert!((1..=logical).contains(&physical_processors()));
    }
}
