//! The report for a browser: one page with the timeline as a picture. Pure: same report, same bytes.
//!
//! Every picture's facts also stand in a table. What a report may hold without bound (links, probes,
//! the length of words) is cut here, and that is said: a page stays under 1 MB.

use maud::{Markup, html};

use super::report::{Band, BandKind, Frame, Level, Machine, Phase, Probe, Report, Span, Verdict};
use crate::html::{
    Tone, badge, facts, headline, lines, list, moment, number, page as whole, section, table, text,
};

/// At most so many bands are drawn and told.
const BANDS: usize = 16;
/// At most so many phases are told.
const PHASES: usize = 64;
/// At most so many probes are told, those that leaked first.
const PROBES: usize = 100;
/// At most so many leaked frames in the page.
const FRAMES: usize = 250;
/// At most so many spans of a band stand in the table.
const TOLD: usize = 16;
/// At most so many sentences in a list.
const SENTENCES: usize = 20;
/// Bytes of the page that a name or a word may take.
const WORD: usize = 80;
/// Bytes of the page that a sentence may take.
const SENTENCE: usize = 300;
/// Bytes of the page that the configuration may take.
const CONFIGURATION: usize = 65_536;
/// Places on the drawn axis of time.
const PLACES: u64 = 10_000;

/// The whole page.
pub fn page(report: &Report) -> String {
    let word = heading(report.verdict);
    let body = html! {
        (headline(tone(report.verdict), "Leak test", word, &report.summary))
        (beginning(report))
        (section("timeline", "What happened", &timeline(report)))
        (section("probes", "What was tried", &probes(&report.probes)))
        (section("machine", "What was tested", &machine(&report.machine)))
        @if !report.limits.is_empty() {
            (section("limits", "What this test cannot see", &list(&report.limits, SENTENCES)))
        }
        (section("repeat", "How to repeat it", &html! {
            p { "As root, on this machine:" }
            pre { code { (text(&report.repeat, SENTENCE)) } }
        }))
    };
    whole(&format!("Leak test: {word}"), &body)
}

fn tone(verdict: Verdict) -> Tone {
    match verdict {
        Verdict::Held => Tone::Good,
        Verdict::Leaked => Tone::Bad,
        Verdict::CannotTell => Tone::Unsure,
        Verdict::Allowed => Tone::Heed,
    }
}

fn heading(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Held => "nothing leaked",
        Verdict::Leaked => "LEAKED",
        Verdict::CannotTell => "cannot tell",
        Verdict::Allowed => "only what the configuration allows came out",
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Held => "held",
        Verdict::Leaked => "LEAKED",
        Verdict::CannotTell => "cannot tell",
        Verdict::Allowed => "allowed",
    }
}

fn beginning(report: &Report) -> Markup {
    let count = |verdict| report.probes.iter().filter(|it| it.verdict == verdict).count();
    let verdicts = [Verdict::Leaked, Verdict::CannotTell, Verdict::Allowed, Verdict::Held];
    let disturbed = match report.disrupted {
        true => "yes: tunnel, link and daemon were disturbed on purpose",
        false => "no: nothing was disturbed",
    };
    facts(
        "The test in short",
        &[
            ("Began", html! { time { (moment(report.began)) } }),
            ("Took", html! { (span_of_time(report.duration_ms)) }),
            ("Disturbed", html! { (disturbed) }),
            (
                "Probes",
                html! {
                    @for verdict in verdicts.into_iter().filter(|&it| count(it) > 0) {
                        (badge(tone(verdict), &format!("{} {}", count(verdict), word(verdict)))) " "
                    }
                },
            ),
            (
                "Leaked frames",
                html! { (number(report.probes.iter().map(|it| it.leaked).fold(0, u64::saturating_add))) },
            ),
        ],
    )
}

/// Where moments stand on the drawn axis of time.
#[derive(Clone, Copy)]
struct Axis {
    /// At least one.
    duration_ms: u64,
}

impl Axis {
    fn of(report: &Report) -> Self {
        let spans = report.bands.iter().filter_map(|band| Some(band.spans.last()?.to_ms));
        let phases = report.phases.iter().map(|phase| phase.to_ms);
        let last = spans.chain(phases).chain([report.duration_ms, 1]).max().unwrap_or(1);
        Axis { duration_ms: last }
    }

    fn place(self, at_ms: u64) -> u64 {
        let at = u128::from(at_ms.min(self.duration_ms)) * u128::from(PLACES);
        u64::try_from(at / u128::from(self.duration_ms)).unwrap_or(PLACES)
    }

    fn percent(self, at_ms: u64) -> String {
        let place = self.place(at_ms);
        format!("{}.{:02}%", place / 100, place % 100)
    }

    fn left_and_width(self, from_ms: u64, to_ms: u64) -> String {
        let (from, to) = (self.place(from_ms), self.place(to_ms));
        let width = to.saturating_sub(from);
        format!("left:{}.{:02}%;width:{}.{:02}%", from / 100, from % 100, width / 100, width % 100)
    }

    /// A whole step of time, so that there are at most six, even on a phone.
    fn step(self) -> u64 {
        const STEPS: [u64; 20] = [
            1, 10, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 15_000, 30_000, 60_000, 120_000,
            300_000, 600_000, 900_000, 1_800_000, 3_600_000, 7_200_000, 14_400_000,
        ];
        let fits = STEPS.into_iter().find(|step| self.duration_ms / step < 6);
        fits.unwrap_or(self.duration_ms / 5)
    }

    /// The last one has room for its label.
    fn ticks(self) -> Vec<u64> {
        let step = self.step();
        let room = self.duration_ms - self.duration_ms / 12;
        (0..6).map(|index| index * step).take_while(|&at| at == 0 || at < room).collect()
    }
}

/// As on a clock: "40 s", "1:20", "1:00:05".
fn clock(at_ms: u64) -> String {
    let (seconds, rest) = (at_ms / 1000, at_ms % 1000);
    match (seconds, rest) {
        (0..60, 0) => format!("{seconds} s"),
        (0..60, _) => format!("{} s", format!("{seconds}.{rest:03}").trim_end_matches('0')),
        (60..3600, _) => format!("{}:{:02}", seconds / 60, seconds % 60),
        _ => format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
    }
}

/// "1m 20s 500ms".
fn span_of_time(ms: u64) -> String {
    humantime::format_duration(std::time::Duration::from_millis(ms)).to_string()
}

fn timeline(report: &Report) -> Markup {
    let axis = Axis::of(report);
    let turns = turns(axis, &report.phases);
    let left_out = report.bands.len().saturating_sub(BANDS);
    html! {
        div class="timeline" {
            (phases_row(axis, &report.phases))
            @for band in report.bands.iter().take(BANDS) { (band_row(axis, band, &turns)) }
            (charts(axis, report, &turns))
            (axis_row(axis))
        }
        @if left_out > 0 { p { (left_out) " more links are not shown; see " code { "--json" } "." } }
        (key())
        (phases_table(report))
        details {
            summary { "The same states as a table" }
            (spans_table(&report.bands))
        }
    }
}

fn key() -> Markup {
    let entry = |class: &str, d: &str, meaning: &str| {
        html! {
            li { svg viewBox="0 0 24 16" aria-hidden="true" { path class={ "spans " (class) } d=(d) {} } (meaning) }
        }
    };
    html! {
        div class="timeline" {
            ul class="key" {
                (entry("good", "M1 4h22v8h-22z", "as it should be (filled)"))
                (entry("heed", "M1 5h22v6h-22z", "down or away, on its own no leak (hollow)"))
                (entry("bad", "M2 1h20v14h-20z", "the lock is weaker (filled, full height)"))
                li { svg viewBox="0 0 24 16" aria-hidden="true" { path class="turns" d="M12 0V16" {} } "a new phase" }
            }
        }
    }
}

/// A line wherever a phase begins, from top to bottom of a drawing of height 100.
fn turns(axis: Axis, phases: &[Phase]) -> String {
    let begin = |phase: &Phase| format!("M{} 0V100", axis.place(phase.from_ms));
    phases.iter().take(PHASES).filter(|phase| phase.from_ms > 0).map(begin).collect()
}

fn drawing(title: &str, description: &str, content: &Markup) -> Markup {
    html! {
        svg class="drawing" role="img" viewBox=(format!("0 0 {PLACES} 100")) preserveAspectRatio="none" {
            title { (title) }
            desc { (description) }
            (content)
        }
    }
}

fn row(class: &str, label: &Markup, plot: &Markup, scale: &Markup) -> Markup {
    html! {
        div class={ "row " (class) } {
            div class="label" { (label) }
            div class="plot" { (plot) }
            div class="scale" { (scale) }
        }
    }
}

fn phases_row(axis: Axis, phases: &[Phase]) -> Markup {
    let outline: String = phases
        .iter()
        .take(PHASES)
        .map(|phase| rectangle(axis, phase.from_ms, phase.to_ms, 4, 92))
        .collect();
    let words: Vec<String> = numbered(phases)
        .map(|(index, phase)| format!("{index} {}", phase_in_words(phase)))
        .collect();
    let plot = html! {
        (drawing("Phases of the test", &words.join("; "), &html! { path class="phases" d=(outline) {} }))
        @for (index, phase) in numbered(phases) {
            span class="on phase" aria-hidden="true" style=(axis.left_and_width(phase.from_ms, phase.to_ms)) { (index) }
        }
    };
    row("", &html! { b { "Phases" } " named below" }, &plot, &html! {})
}

fn numbered(phases: &[Phase]) -> impl Iterator<Item = (usize, &Phase)> {
    phases.iter().take(PHASES).enumerate().map(|(index, phase)| (index + 1, phase))
}

fn phase_in_words(phase: &Phase) -> String {
    format!("{}, {} to {}", text(&phase.title, WORD), clock(phase.from_ms), clock(phase.to_ms))
}

/// As a part of a path.
fn rectangle(axis: Axis, from_ms: u64, to_ms: u64, top: u64, height: u64) -> String {
    let (from, to) = (axis.place(from_ms), axis.place(to_ms));
    format!("M{from} {top}H{}V{}H{from}z", to.max(from + 1), top + height)
}

fn level_tone(level: Level) -> Tone {
    match level {
        Level::Good => Tone::Good,
        Level::Away => Tone::Heed,
        Level::Bad => Tone::Bad,
    }
}

fn level_in_words(level: Level) -> &'static str {
    match level {
        Level::Good => "as it should be",
        Level::Away => "down or away",
        Level::Bad => "weaker than it should be",
    }
}

fn kind_in_words(kind: BandKind) -> &'static str {
    match kind {
        BandKind::Tunnel => "tunnel",
        BandKind::Link => "link",
        BandKind::Daemon => "daemon",
        BandKind::Lock => "lock",
    }
}

/// "wg0 (tunnel)"; "daemon" alone.
fn band_name(band: &Band) -> Markup {
    let kind = kind_in_words(band.kind);
    html! { b { bdi { (text(&band.name, WORD)) } } @if band.name != kind { " " span class="quiet" { (kind) } } }
}

fn band_row(axis: Axis, band: &Band, turns: &str) -> Markup {
    let spans = &band.spans[..band.spans.len().min(super::report::SPANS)];
    let path = |level, top, height| -> String {
        let of_level = spans.iter().filter(|span| span.level == level);
        of_level.map(|span| rectangle(axis, span.from_ms, span.to_ms, top, height)).collect()
    };
    // What is bad is drawn last, over the rest.
    let levels = [(Level::Good, 10, 80), (Level::Away, 18, 64), (Level::Bad, 0, 100)];
    let content = html! {
        @for (level, top, height) in levels {
            path class={ "spans " (level_tone(level).class()) } d=(path(level, top, height)) {}
        }
        path class="turns" d=(turns) {}
    };
    let title = format!("{} ({})", text(&band.name, WORD), kind_in_words(band.kind));
    let plot = html! {
        (drawing(&title, &band_in_words(spans), &content))
        @for span in spans.iter().filter(|span| has_room(axis, span)) {
            span class={ "on " (level_tone(span.level).class()) } aria-hidden="true"
                style=(axis.left_and_width(span.from_ms, span.to_ms)) { (text(&span.state, WORD)) }
        }
    };
    row("", &band_name(band), &plot, &html! {})
}

/// For its state, on a wide screen; on a phone it is cut.
fn has_room(axis: Axis, span: &Span) -> bool {
    axis.place(span.to_ms).saturating_sub(axis.place(span.from_ms)) > PLACES / 15
}

fn band_in_words(spans: &[Span]) -> String {
    const MOST: usize = 6;
    let words = |span: &Span| {
        let until = clock(span.to_ms);
        let state = text(&span.state, WORD);
        match span.level {
            Level::Bad => format!("{state} (bad) until {until}"),
            Level::Good | Level::Away => format!("{state} until {until}"),
        }
    };
    let mut told: Vec<String> = spans.iter().take(MOST).map(words).collect();
    if spans.len() > MOST {
        told.push(format!("{} more changes: see the table", spans.len() - MOST));
    }
    told.join(", ")
}

fn charts(axis: Axis, report: &Report, turns: &str) -> Markup {
    let traffic = &report.traffic;
    let leaks = traffic.leaked.iter().any(|&count| count > 0);
    let per = span_of_time(traffic.width_ms);
    let chart = |class: &str, name: &str, columns: &[u64]| {
        let columns = &columns[..columns.len().min(super::report::BUCKETS)];
        let most = columns.iter().copied().max().unwrap_or(0);
        let sum = number(columns.iter().copied().fold(0, u64::saturating_add));
        let words = format!(
            "{sum} packets in all, at most {} in {per}; by phase: see the table",
            number(most)
        );
        let leaking = class == "leaked" && leaks;
        let content = html! {
            @if leaking { path class="alarm" d=(alarms(axis, traffic.width_ms, columns)) {} }
            path class={ "columns " (class) } d=(columns_path(axis, traffic.width_ms, columns, most)) {}
            path class="turns" d=(turns) {}
        };
        let label = html! {
            b { (name) } " "
            @if leaking { (badge(Tone::Bad, &format!("{sum} packets"))) } @else { " " (sum) " packets" }
        };
        let plot = drawing(&format!("{name}: packets over time"), &words, &content);
        let scale = html! { span { (brief(most)) } span { "0" } };
        row(if leaking { "chart leaking" } else { "chart" }, &label, &plot, &scale)
    };
    html! {
        (chart("tunnel", "Into the tunnel", &traffic.tunnel))
        (chart("blocked", "Blocked", &traffic.blocked))
        (chart("leaked", "Leaked", &traffic.leaked))
    }
}

/// In a few characters: "9999", "12k", "3M".
fn brief(count: u64) -> String {
    let mut rest = count;
    for unit in ["", "k", "M", "G", "T", "P"] {
        if rest < 10_000 {
            return format!("{rest}{unit}");
        }
        rest /= 1000;
    }
    format!("{rest}E")
}

/// Columns as one path, `most` of them as high as the drawing.
fn columns_path(axis: Axis, width_ms: u64, columns: &[u64], most: u64) -> String {
    let column = |(index, &count): (usize, &u64)| {
        let from = width_ms.saturating_mul(index as u64);
        let high = u128::from(count) * 100 / u128::from(most.max(1));
        let high = u64::try_from(high).unwrap_or(100).clamp(2, 100);
        rectangle(axis, from, from.saturating_add(width_ms), 100 - high, high)
    };
    columns.iter().enumerate().filter(|(_, count)| **count > 0).map(column).collect()
}

/// A line as high as the drawing wherever something leaked: one frame must be as visible as many.
fn alarms(axis: Axis, width_ms: u64, columns: &[u64]) -> String {
    let alarm = |(index, _): (usize, &u64)| {
        let middle = width_ms.saturating_mul(index as u64).saturating_add(width_ms / 2);
        format!("M{} 0V100", axis.place(middle))
    };
    columns.iter().enumerate().filter(|(_, count)| **count > 0).map(alarm).collect()
}

fn axis_row(axis: Axis) -> Markup {
    let plot = html! {
        @for at in axis.ticks() {
            span class="tick" style=(format!("left:{}", axis.percent(at))) { (clock(at)) }
        }
    };
    row("axis", &html! { span class="quiet" { "since it began" } }, &plot, &html! {})
}

/// Packets from the columns that begin in a phase.
fn in_phase(columns: &[u64], width_ms: u64, phase: &Phase) -> u64 {
    let begins = |index: usize| width_ms.saturating_mul(index as u64);
    let inside =
        |&(index, _): &(usize, &u64)| (phase.from_ms..phase.to_ms).contains(&begins(index));
    columns.iter().enumerate().filter(inside).map(|(_, &count)| count).fold(0, u64::saturating_add)
}

fn phases_table(report: &Report) -> Markup {
    let traffic = &report.traffic;
    let rows: Vec<Vec<Markup>> = numbered(&report.phases)
        .map(|(index, phase)| {
            let count = |columns: &[u64]| in_phase(columns, traffic.width_ms, phase);
            let leaked = count(&traffic.leaked);
            vec![
                html! { (index) " " (text(&phase.title, SENTENCE)) " " span class="quiet" { bdi { (text(&phase.name, WORD)) } } },
                html! { (clock(phase.from_ms)) },
                html! { (clock(phase.to_ms)) },
                html! { (number(count(&traffic.tunnel))) },
                html! { (number(count(&traffic.blocked))) },
                html! { @if leaked > 0 { (badge(Tone::Bad, &number(leaked))) } @else { "0" } },
            ]
        })
        .collect();
    let caption = format!(
        "Packets in each phase. A packet counts to the phase in which its column of {} begins.",
        span_of_time(traffic.width_ms)
    );
    let left_out = report.phases.len().saturating_sub(PHASES);
    html! {
        (table(&caption, &["Phase", "#From", "#To", "#Into the tunnel", "#Blocked", "#Leaked"], &rows))
        @if left_out > 0 { p { (left_out) " more phases are not shown; see " code { "--json" } "." } }
    }
}

fn spans_table(bands: &[Band]) -> Markup {
    let mut rows = Vec::new();
    for band in bands.iter().take(BANDS) {
        for span in band.spans.iter().take(TOLD) {
            rows.push(vec![
                band_name(band),
                html! { (clock(span.from_ms)) },
                html! { (clock(span.to_ms)) },
                html! { bdi { (text(&span.state, WORD)) } },
                html! { (level_in_words(span.level)) },
            ]);
        }
        let left_out = band.spans.len().saturating_sub(TOLD);
        if left_out > 0 {
            let more = format!("{left_out} more changes: see --json");
            rows.push(vec![band_name(band), html! {}, html! {}, html! { (more) }, html! {}]);
        }
    }
    table("States over time", &["What", "#From", "#To", "State", "Meaning"], &rows)
}

/// Those that leaked stand first, then those that cannot be told.
fn probes(probes: &[Probe]) -> Markup {
    let rank = |probe: &Probe| match probe.verdict {
        Verdict::Leaked => 0,
        Verdict::CannotTell => 1,
        Verdict::Allowed => 2,
        Verdict::Held => 3,
    };
    let mut order: Vec<&Probe> = probes.iter().collect();
    order.sort_by_key(|probe| rank(probe));
    let left_out = order.len().saturating_sub(PROBES);
    let mut room = FRAMES;
    html! {
        // Roles are said besides, since a phone shows the rows as cards, which would lose them.
        table class="probes" role="table" {
            caption {
                "Canaries: what was sent for the test, and what became of it. "
                "The numbers of threats are those of SECURITY.md."
            }
            thead role="rowgroup" {
                tr role="row" {
                    th role="columnheader" scope="col" { "Way out" }
                    th role="columnheader" scope="col" { "Verdict" }
                    @for name in ["Sent", "Refused", "In the tunnel", "Leaked", "Threats"] {
                        th role="columnheader" scope="col" class="number" { (name) }
                    }
                }
            }
            tbody role="rowgroup" {
                @for probe in order.into_iter().take(PROBES) { (probe_rows(probe, &mut room)) }
            }
        }
        @if left_out > 0 { p { (left_out) " more probes are not shown; see " code { "--json" } "." } }
    }
}

fn probe_rows(probe: &Probe, room: &mut usize) -> Markup {
    let threats: Vec<String> = probe.threats.iter().map(ToString::to_string).collect();
    let shown = &probe.frames[..probe.frames.len().min(*room)];
    *room -= shown.len();
    let counts =
        [("Sent", probe.sent), ("Refused", probe.refused), ("In the tunnel", probe.tunnelled)];
    html! {
        tr role="row" class=[(!shown.is_empty()).then_some("whole")] {
            th role="rowheader" scope="row" {
                (text(&probe.title, SENTENCE)) " " span class="name" { bdi { (text(&probe.name, WORD)) } }
                @if let Some(reason) = &probe.reason { p class="why" { (text(reason, SENTENCE)) } }
            }
            td role="cell" class="wide" { (badge(tone(probe.verdict), word(probe.verdict))) }
            @for (name, count) in counts {
                td role="cell" class="number" data-name=(name) { (number(count)) }
            }
            td role="cell" class={ "number" @if probe.leaked > 0 { " leaks" } } data-name="Leaked" { (number(probe.leaked)) }
            td role="cell" class="number wide threats" data-name="Threats" { (text(&threats.join(", "), SENTENCE)) }
        }
        @if !shown.is_empty() {
            tr role="row" class="frames" { td role="cell" colspan="7" { (frames(probe, shown)) } }
        }
    }
}

fn frames(probe: &Probe, shown: &[Frame]) -> Markup {
    let name = text(&probe.name, WORD);
    let rows: Vec<Vec<Markup>> = shown
        .iter()
        .map(|frame| {
            vec![
                html! { (clock(frame.at_ms)) },
                html! { bdi { (text(&frame.link, WORD)) } },
                html! { code { bdi { (text(&frame.what, SENTENCE)) } } },
                html! { (frame.length) " B" },
            ]
        })
        .collect();
    let all = number(probe.leaked);
    html! {
        details open {
            summary { "Leaked frames of " bdi { (name) } ": " (shown.len()) " of " (all) }
            (table(&format!("Frames of {name} that may not be there"), &["#When", "Link", "What", "#Length"], &rows))
        }
    }
}

fn machine(machine: &Machine) -> Markup {
    let plain = |value: &str| html! { bdi { (text(value, SENTENCE)) } };
    let kernel = format!("{} ({})", machine.kernel, machine.architecture);
    html! {
        (facts("The machine", &[
            ("System", plain(&machine.system)),
            ("Kernel", plain(&kernel)),
            ("killswitch", plain(&machine.killswitch)),
            ("State at the beginning", plain(&machine.state)),
            ("Weaker than asked", html! {
                @if machine.degraded.is_empty() { "nothing" } @else { (list(&machine.degraded, SENTENCES)) }
            }),
            ("SHA-256 of the ruleset", html! { code { (text(&machine.ruleset_sha256, SENTENCE)) } }),
        ]))
        details open {
            summary { "The configuration, without its secrets" }
            pre { code { (lines(&machine.configuration, CONFIGURATION)) } }
        }
    }
}
