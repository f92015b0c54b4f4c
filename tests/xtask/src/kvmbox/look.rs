//! What every program in a box is doing: for the one who finds that it does not end.

use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Functions of the kernel that are said of each thread, from the innermost.
const DEPTH: usize = 6;

/// A line for each thread of each program: its number, program, name, state, and where in the kernel it is.
pub fn programs() -> String {
    let mut said = "kvmbox: programs in the box:\n".to_owned();
    for process in numbered(Path::new("/proc")) {
        let dir = Path::new("/proc").join(process.to_string());
        let words = fs::read(dir.join("cmdline")).unwrap_or_default();
        let program = words.split(|byte| *byte == 0).next().map(String::from_utf8_lossy).unwrap_or_default();
        // The kernel's own threads have no words.
        if program.is_empty() {
            continue;
        }
        for thread in numbered(&dir.join("task")) {
            let read = |name: &str| {
                fs::read_to_string(dir.join(format!("task/{thread}/{name}"))).unwrap_or_default()
            };
            let (name, status, stack) = (read("comm"), read("status"), read("stack"));
            let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or_default();
            let _ = writeln!(
                said,
                "  {thread} {program} {} {}: {}",
                name.trim(),
                state.trim(),
                functions(&stack)
            );
        }
    }
    said
}

/// The numbers among the names in a directory, in order.
fn numbered(dir: &Path) -> Vec<u32> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// Of lines `[<0>] function+0x1/0x2`, the functions.
fn functions(stack: &str) -> String {
    let names = stack.lines().filter_map(|line| line.split(' ').nth(1)?.split('+').next());
    names.take(DEPTH).collect::<Vec<_>>().join(" < ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_its_functions() {
        let stack = "[<0>] hrtimer_nanosleep+0x9e/0x120\n[<0>] do_syscall_64+0x55/0xb0\n";
        assert_eq!(functions(stack), "hrtimer_nanosleep < do_syscall_64");
        assert_eq!(functions(""), "");
    }

    #[test]
    fn this_program_is_among_them() {
        assert!(programs().contains(&format!("\n  {} ", std::process::id())));
    }
}
