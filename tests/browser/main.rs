//! The reports as pages: what they hold, that nothing in them acts, how large they get. The examples
//! are written to the folder that `tests/browser/run` opens in a real browser.

mod examples;

use std::path::Path;

use killswitch::evidence;
use killswitch::html;
use killswitch::leaktest::html::page;
use killswitch::leaktest::report::{Probe, Report};

/// One megabyte.
const LARGEST: usize = 1_000_000;

fn examples() -> Vec<(&'static str, Report)> {
    vec![
        ("held", examples::held()),
        ("disrupted", examples::disrupted()),
        ("leaked", examples::leaked()),
        ("cannot-tell", examples::cannot_tell()),
        ("largest", examples::largest("eth0 & <b>\"x\"")),
    ]
}

#[test]
fn the_examples_are_written_for_the_browser() {
    let elsewhere = || Path::new(env!("CARGO_TARGET_TMPDIR")).join("browser");
    let folder = std::env::var_os("KILLSWITCH_PAGES").map_or_else(elsewhere, Into::into);
    std::fs::create_dir_all(&folder).expect("a folder");
    for (name, report) in examples() {
        write(&folder, name, &page(&report), &titles(&report));
    }
    let entries = examples::journal();
    let words: Vec<String> = entries.iter().map(evidence::words::event).collect();
    let whole = evidence::html::page(entries.iter().cloned(), Some(examples::HEAD), None);
    write(&folder, "evidence-whole", &whole, &words);
    let why = "line 2 of 000001.jsonl: entry 2 follows no entry 1 that is there";
    let broken = evidence::html::page(entries.iter().cloned(), None, Some(why));
    write(&folder, "evidence-broken", &broken, &[&words[..], &[why.into()]].concat());
    let empty = evidence::html::page([], None, None);
    write(&folder, "evidence-empty", &empty, &["Whole".into()]);
}

/// `words`: what the page must show, as the browser's test reads it.
fn write(folder: &Path, name: &str, page: &str, words: &[String]) {
    std::fs::write(folder.join(format!("{name}.html")), page).expect("a page");
    let words = serde_json::to_string(words).expect("words");
    std::fs::write(folder.join(format!("{name}.json")), words).expect("words");
}

/// Of the first probes.
fn titles(report: &Report) -> Vec<String> {
    let shown = |probe: &Probe| html::text(&probe.title, 300);
    report.probes.iter().take(50).map(shown).collect()
}

#[test]
fn the_same_report_gives_the_same_bytes() {
    for (name, report) in examples() {
        assert!(page(&report) == page(&report.clone()), "{name}");
    }
}

#[test]
fn a_page_loads_nothing_and_runs_nothing() {
    for (name, report) in examples() {
        let page = page(&report);
        assert!(
            page.contains("content=\"default-src 'none'; style-src 'unsafe-inline';"),
            "{name}"
        );
        for word in [
            "<script", "<img", "<iframe", "href=", "src=", "url(", "@import", "http://", "https://",
        ] {
            assert!(!page.contains(word), "{name} has {word}");
        }
        let handler = |word: &str| word.starts_with("on") && word.contains("=\"");
        assert_eq!(page.split_whitespace().find(|word| handler(word)), None, "{name}");
    }
}

#[test]
fn what_others_chose_is_text() {
    let page = page(&examples::cannot_tell());
    for shown in [
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "x&quot; onmouseover=&quot;alert(1)",
        "\\u{202e}",
        "\\u{1b}[2J",
        "&lt;/pre&gt;&lt;/style&gt;&lt;h1&gt;",
    ] {
        assert!(page.contains(shown), "{shown}");
    }
    let acts = |it: char| {
        (it.is_control() && it != '\n')
            || matches!(it, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert_eq!(page.find(acts), None);
}

#[test]
fn every_verdict_is_said_in_words() {
    for (report, word) in [
        (examples::held(), "nothing leaked"),
        (examples::leaked(), "LEAKED"),
        (examples::cannot_tell(), "cannot tell"),
    ] {
        let page = page(&report);
        let heading =
            page.split("<h1>").nth(1).and_then(|it| it.split("</h1>").next()).expect("a heading");
        assert!(heading.ends_with(word), "{heading}");
        assert!(page.contains(&format!("<title>Leak test: {word}")));
    }
}

#[test]
fn a_leak_is_told_with_its_frames() {
    let report = examples::leaked();
    let page = page(&report);
    let frames = report.probes.iter().flat_map(|probe| &probe.frames);
    for frame in frames {
        assert!(page.contains(&frame.what.replace('>', "&gt;")), "{}", frame.what);
    }
    let probes = page.split("id=\"probes\"").nth(1).expect("the probes");
    let (first, second) = (probes.find("LEAKED"), probes.find("</svg> held"));
    assert!(first.expect("a leak") < second.expect("one that held"), "leaks come first");
}

#[test]
fn the_largest_report_stays_under_a_megabyte() {
    for (what, words) in [
        ("plain", "a".repeat(2000)),
        ("escaped", "\"".repeat(2000)),
        ("spelt out", "\u{202e}".repeat(2000)),
        ("many lines", "\n".repeat(2000)),
        ("wide", "💀".repeat(2000)),
    ] {
        let size = page(&examples::largest(&words)).len();
        println!("{what}: {size}");
        assert!(size < LARGEST, "{what}: {size} bytes");
    }
}

#[test]
fn times_beyond_reason_are_survived() {
    let mut report = examples::leaked();
    report.began = u64::MAX;
    report.duration_ms = u64::MAX;
    report.traffic.width_ms = u64::MAX;
    report.traffic.leaked = vec![u64::MAX; 700];
    report.phases[0].to_ms = u64::MAX;
    page(&report);
    report.duration_ms = 0;
    report.traffic.width_ms = 0;
    report.phases.clear();
    report.bands.clear();
    page(&report);
}
