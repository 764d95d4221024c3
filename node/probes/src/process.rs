//! The figures of the process itself, under the names that Prometheus' own client libraries give them.

use std::fmt::Write as _;
use std::fs;

/// The last line of `OpenMetrics` text.
const END: &str = "# EOF\n";

/// The figures of a process.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Figures {
    resident_bytes: u64,
    cpu_seconds: f64,
    open_files: usize,
    /// Seconds since 1970.
    started: f64,
}

/// Adds the figures of this process to `OpenMetrics` text. Adds nothing if the system doesn't tell them.
pub(crate) fn append(metrics: &mut String) {
    let (Some(figures), Some(body)) = (Figures::read(), metrics.strip_suffix(END)) else {
        return;
    };
    metrics.truncate(body.len());
    figures.encode(metrics);
    metrics.push_str(END);
}

impl Figures {
    fn read() -> Option<Self> {
        let process = fs::read_to_string("/proc/self/stat").ok()?;
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let system = fs::read_to_string("/proc/stat").ok()?;
        let open_files = fs::read_dir("/proc/self/fd").ok()?.count();
        let ticks = rustix::param::clock_ticks_per_second();
        Self::parse(&process, &status, &system, open_files, ticks)
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "ticks of centuries are below 2^53"
    )]
    fn parse(
        process: &str,
        status: &str,
        system: &str,
        open_files: usize,
        ticks: u64,
    ) -> Option<Self> {
        // The name of the program may have spaces and brackets. After it comes the third field.
        let (_, fields) = process.rsplit_once(')')?;
        let field = |number: usize| -> Option<u64> {
            fields.split_whitespace().nth(number - 3)?.parse().ok()
        };
        let line = |text: &str, name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let seconds = |count: u64| count as f64 / ticks as f64;
        Some(Self {
            resident_bytes: line(status, "VmRSS:")? * 1024,
            cpu_seconds: seconds(field(14)? + field(15)?),
            open_files: open_files.saturating_sub(1),
            started: line(system, "btime ")? as f64 + seconds(field(22)?),
        })
    }

    fn encode(&self, out: &mut String) {
        let Self {
            resident_bytes,
            cpu_seconds,
            open_files,
            started,
        } = self;
        // Writing to a string can't fail.
        let _ = write!(
            out,
            "# HELP process_resident_memory_bytes Memory of the process that is in RAM.\n\
             # TYPE process_resident_memory_bytes gauge\n\
             # UNIT process_resident_memory_bytes bytes\n\
             process_resident_memory_bytes {resident_bytes}\n\
             # HELP process_cpu_seconds Time that the process has used processors.\n\
             # TYPE process_cpu_seconds counter\n\
             # UNIT process_cpu_seconds seconds\n\
             process_cpu_seconds_total {cpu_seconds}\n\
             # HELP process_open_fds Open files and sockets of the process.\n\
             # TYPE process_open_fds gauge\n\
             process_open_fds {open_files}\n\
             # HELP process_start_time_seconds Start of the process, in seconds since 1970.\n\
             # TYPE process_start_time_seconds gauge\n\
             # UNIT process_start_time_seconds seconds\n\
             process_start_time_seconds {started}\n"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_a_process_are_read() {
        let process = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 1234 9 9 9";
        let status = "Name:\ta\nVmHWM:\t   9 kB\nVmRSS:\t    2048 kB\nThreads:\t4\n";
        let figures = Figures::parse(process, status, "cpu 1 2\nbtime 1000\n", 11, 100);
        let expected = Figures {
            resident_bytes: 2 << 20,
            cpu_seconds: 3.0,
            open_files: 10,
            started: 1012.34,
        };
        assert_eq!(figures, Some(expected));
        assert_eq!(Figures::parse("7 (a)", status, "btime 1", 1, 100), None);
        assert_eq!(Figures::parse(process, "", "btime 1", 1, 100), None);
    }

    #[test]
    fn they_come_before_the_end_of_the_text() {
        let mut text = format!("# TYPE x gauge\nx 1\n{END}");
        append(&mut text);
        assert!(text.starts_with("# TYPE x gauge\nx 1\n# HELP process_resident"));
        assert_eq!(text.matches(END).count(), 1);
        assert!(text.ends_with(END));
        let resident = text
            .lines()
            .find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
        let resident: u64 = resident.unwrap().parse().unwrap();
        assert!(resident > 100 << 10, "{text}");
    }
}
