//! `skiff man`: manual pages, from the same records as the help.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ArgMatches;
use roff::{Inline, Roff, bold, italic, roman};

use super::{Group, Verb, WORDS, Word};
use crate::exit::{self, SUCCESS};
use crate::flags::{self, Completes, Count, Described, Example, Flag, Operand, Takes};

pub const VERB: Verb = Verb {
    name: "man",
    about: "Print manual pages",
    long: "Print the manual page of each VERB, or without one that of skiff, in roff: man reads it from a file or with \
           `-l -`. With --dir, write all pages into a directory.",
    after: || EXAMPLES.to_owned(),
    flags: || flags::describe(FLAGS),
    operands: &[PAGE],
    run,
};

const PAGE: Operand =
    Operand { name: "VERB", count: Count::Any, completes: Completes::Verbs, help: "A verb of skiff" };

const FLAGS: &[Flag<Option<PathBuf>>] = &[DIR];

const DIR: Flag<Option<PathBuf>> = Flag {
    name: "dir",
    short: None,
    takes: Takes::File("DIR"),
    help: "Write all pages into this directory: skiff.1, skiff-run.1, …",
    long: "It is made if it is not there.",
    example: Example { args: &["--dir", "/usr/local/share/man/man1"], toml: "" },
    apply: |dir, value| {
        anyhow::ensure!(!value.is_empty(), "the path is empty: name a directory");
        *dir = Some(PathBuf::from(value));
        Ok(())
    },
};

const EXAMPLES: &str = "\
Examples:
  skiff man run | man -l -
  skiff man --dir ~/.local/share/man/man1";

fn run(matches: &ArgMatches) -> Result<u8> {
    let mut dir = None;
    flags::apply(FLAGS, matches, &mut dir)?;
    if let Some(dir) = dir {
        return write_all(&dir);
    }
    let names = PAGE.given(matches);
    let words = WORDS.iter().filter(|word| names.iter().any(|name| name == word.name()));
    let pages = |word| pages(word).into_iter().map(|(_, page)| page);
    let pages: String = if names.is_empty() { whole() } else { words.flat_map(pages).collect() };
    super::print(&pages)
}

fn write_all(dir: &Path) -> Result<u8> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let write = |name: String, page: String| {
        let path = dir.join(name);
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
    };
    write("skiff.1".to_owned(), whole())?;
    for (name, page) in WORDS.iter().flat_map(pages) {
        write(format!("{name}.1"), page)?;
    }
    Ok(SUCCESS)
}

/// The page of skiff.
fn whole() -> String {
    let mut roff = Roff::new();
    let about = "runs virtual machines the way people run containers";
    head(&mut roff, "skiff", about);
    roff.text([bold("skiff"), roman(" "), italic("verb"), roman(" ["), italic("options"), roman("]")]);
    roff.control("SH", ["DESCRIPTION"]);
    let text = "skiff is a Type-2 hypervisor: a Linux program that uses KVM. One process is one VM; there is no daemon.";
    roff.text([roman(text)]);
    roff.control("SH", ["VERBS"]);
    for word in WORDS {
        roff.control("TP", []);
        roff.text([bold(format!("skiff-{}", word.name())), roman("(1)")]);
        roff.text([roman(sentence(word.about()))]);
    }
    sections(&mut roff, exit::HELP);
    render(&roff)
}

/// The pages of `word`, by their names: its own, and those of the verbs of a group.
fn pages(word: &Word) -> Vec<(String, String)> {
    let verb = |verb| (format!("skiff-{}", word.path(verb, "-")), page(word, verb));
    let own = match word {
        Word::Verb(_) => None,
        Word::Group(group) => Some((format!("skiff-{}", group.name), group_page(group))),
    };
    own.into_iter().chain(word.verbs().iter().map(verb)).collect()
}

/// The page of a group, which names its verbs.
fn group_page(group: &Group) -> String {
    let mut roff = Roff::new();
    head(&mut roff, &format!("skiff-{}", group.name), group.about);
    roff.text([
        bold(format!("skiff {}", group.name)),
        roman(" "),
        italic("verb"),
        roman(" ["),
        italic("options"),
        roman("]"),
    ]);
    roff.control("SH", ["DESCRIPTION"]);
    body(&mut roff, if group.long.is_empty() { group.about } else { group.long });
    roff.control("SH", ["VERBS"]);
    for verb in group.verbs {
        roff.control("TP", []);
        roff.text([bold(format!("skiff-{}-{}", group.name, verb.name)), roman("(1)")]);
        roff.text([roman(sentence(verb.about))]);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold("skiff"), roman("(1)")]);
    render(&roff)
}

/// The page of `verb`, to which `word` leads.
fn page(word: &Word, verb: &Verb) -> String {
    let mut roff = Roff::new();
    let all = (verb.flags)();
    head(&mut roff, &format!("skiff-{}", word.path(verb, "-")), verb.about);
    let mut synopsis = vec![bold(format!("skiff {}", word.path(verb, " ")))];
    if !all.is_empty() {
        synopsis.extend([roman(" ["), italic("options"), roman("]")]);
    }
    for operand in verb.operands {
        synopsis.extend(placed(operand));
    }
    roff.text(synopsis);
    roff.control("SH", ["DESCRIPTION"]);
    let text = if verb.long.is_empty() { sentence(verb.about) } else { verb.long.to_owned() };
    body(&mut roff, &text);
    roff.control("SH", ["OPTIONS"]);
    for operand in verb.operands {
        roff.control("TP", []);
        roff.text([italic(operand.name)]);
        roff.text([roman(sentence(operand.help))]);
    }
    for flag in &all {
        option(&mut roff, flag);
    }
    roff.control("TP", []);
    roff.text([bold("-h"), roman(", "), bold("--help")]);
    roff.text([roman("Print help; --help prints more.")]);
    sections(&mut roff, &(verb.after)());
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold("skiff"), roman("(1)")]);
    render(&roff)
}

/// The page as troff reads it without being told of an encoding.
fn render(roff: &Roff) -> String {
    let mut page = String::new();
    for c in roff.render().chars() {
        match c {
            c if c.is_ascii() => page.push(c),
            c => page.push_str(&format!("\\[u{:04X}]", u32::from(c))),
        }
    }
    page
}

/// Everything up to the synopsis.
fn head(roff: &mut Roff, name: &str, about: &str) {
    let version = concat!("skiff ", env!("CARGO_PKG_VERSION"));
    roff.control("TH", [name.to_uppercase().as_str(), "1", "", version, "skiff"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!("{name} - {about}"))]);
    roff.control("SH", ["SYNOPSIS"]);
}

/// An operand in a synopsis.
fn placed(operand: &Operand) -> Vec<Inline> {
    let (before, after) = match operand.count {
        Count::One => (" ", ""),
        Count::Maybe => (" [", "]"),
        Count::Some | Count::Rest => (" ", " ..."),
        Count::Any | Count::MaybeRest => (" [", " ...]"),
    };
    vec![roman(before), italic(operand.name), roman(after)]
}

/// A flag with its whole help.
fn option(roff: &mut Roff, flag: &Described) {
    roff.control("TP", []);
    let mut tag = Vec::new();
    if let Some(short) = flag.short {
        tag.extend([bold(format!("-{short}")), roman(", ")]);
    }
    tag.push(bold(format!("--{}", flag.name)));
    if let Some(value) = flag.takes.value_name() {
        tag.extend([roman(" "), italic(value)]);
    }
    roff.text(tag);
    roff.text([roman(sentence(flag.help))]);
    if !flag.long.is_empty() {
        roff.control("IP", []);
        body(roff, flag.long);
    }
    roff.control("IP", []);
    let mut example = format!("Example:  {}", flag.example.command_line());
    if !flag.example.toml.is_empty() {
        example.push_str("\nIn a file:");
        for line in flag.example.toml.lines() {
            example.push_str(&format!("\n  {line}"));
        }
    }
    verbatim(roff, &example);
}

/// What stands below the flags in the help: blocks with a line of heading each.
fn sections(roff: &mut Roff, text: &str) {
    for block in text.split("\n\n").filter(|block| !block.is_empty()) {
        match block.split_once('\n') {
            Some((heading, rest)) if heading.ends_with(':') => {
                roff.control("SH", [heading.trim_end_matches(':').to_uppercase().as_str()]);
                verbatim(roff, rest);
            }
            _ => body(roff, block),
        }
    }
}

/// Text whose indented lines, which are tables, stay as they are.
fn body(roff: &mut Roff, text: &str) {
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.starts_with("  ") {
            roff.text([roman(line)]);
            continue;
        }
        let mut table = line.to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with("  ")) {
            table.push('\n');
            table.push_str(more);
        }
        verbatim(roff, &table);
    }
}

/// Text that is not filled.
fn verbatim(roff: &mut Roff, text: &str) {
    roff.control("nf", []);
    for line in text.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
}

/// A line of help as a sentence.
fn sentence(help: &str) -> String {
    format!("{help}.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verb_has_a_page_in_ascii_with_all_its_flags() {
        for word in WORDS {
            for verb in word.verbs() {
                let page = page(word, verb);
                assert!(page.is_ascii(), "{}", verb.name);
                for flag in (verb.flags)() {
                    let tag = format!("\\fB\\-\\-{}\\fR", flag.name.replace('-', "\\-"));
                    assert!(page.contains(&tag), "{}: {tag} in {page}", verb.name);
                }
            }
            assert!(whole().contains(&format!("skiff\\-{}", word.name())), "{}", word.name());
        }
    }

    #[test]
    fn tables_stay_as_they_are_and_headings_become_sections() {
        let mut roff = Roff::new();
        sections(&mut roff, "Exit codes:\n  0  good\n\nJust text.");
        let text = roff.to_roff();
        assert_eq!(text, ".SH \"EXIT CODES\"\n.nf\n  0  good\n.fi\nJust text.\n");
        let mut roff = Roff::new();
        body(&mut roff, "Keys:\n  a  b\n  c  d\nThe end.");
        assert_eq!(roff.to_roff(), "Keys:\n.nf\n  a  b\n  c  d\n.fi\nThe end.\n");
    }
}
