//! What was seen, gathered into a [`Report`]'s parts. Pure: time is an argument, in milliseconds since
//! the test began.

use std::collections::BTreeMap;

use super::report::{
    BANDS, BUCKETS, Band, BandKind, CONFIGURATION, FRAMES, Frame, Level, PHASES, Phase, Probe,
    Report, SENTENCE, SENTENCES, SPANS, Span, Traffic, Verdict,
};

/// Packets over time; wider columns as the test goes on, never more of them.
#[derive(Debug, Clone)]
pub struct Columns {
    width_ms: u64,
    counts: Vec<[u64; 3]>,
}

/// What a column counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Into the tunnel.
    Tunnel,
    /// By the lock.
    Blocked,
    /// Past it.
    Leaked,
}

impl Default for Columns {
    fn default() -> Self {
        const NARROWEST_MS: u64 = 50;
        Columns { width_ms: NARROWEST_MS, counts: Vec::new() }
    }
}

impl Columns {
    /// Counts more packets at this time.
    pub fn add(&mut self, at_ms: u64, kind: Kind, packets: u64) {
        self.reach(at_ms);
        let place = usize::try_from(at_ms / self.width_ms).unwrap_or(usize::MAX);
        if let Some(counts) = self.counts.get_mut(place) {
            counts[kind as usize] += packets;
        }
    }

    /// Has columns up to this time.
    fn reach(&mut self, at_ms: u64) {
        while at_ms / self.width_ms >= BUCKETS as u64 {
            let pairs = self.counts.chunks(2);
            let sum = |pair: &[[u64; 3]], kind: usize| pair.iter().map(|it| it[kind]).sum();
            self.counts = pairs.map(|pair| [0, 1, 2].map(|kind| sum(pair, kind))).collect();
            self.width_ms *= 2;
        }
        let columns = usize::try_from(at_ms / self.width_ms).unwrap_or_default() + 1;
        self.counts.resize(self.counts.len().max(columns), [0; 3]);
    }

    /// Up to the test's end.
    pub fn finish(mut self, end_ms: u64) -> Traffic {
        self.reach(end_ms.saturating_sub(1));
        let of = |kind: Kind| self.counts.iter().map(|it| it[kind as usize]).collect();
        Traffic {
            width_ms: self.width_ms,
            tunnel: of(Kind::Tunnel),
            blocked: of(Kind::Blocked),
            leaked: of(Kind::Leaked),
        }
    }
}

/// States over time, of each thing by kind and name; of no more than [`BANDS`] things.
#[derive(Debug, Clone, Default)]
pub struct Bands {
    bands: Vec<Band>,
    full: bool,
}

impl Bands {
    /// At this time it is in this state.
    pub fn see(
        &mut self,
        at_ms: u64,
        (kind, name): (BandKind, &str),
        (level, state): (Level, &str),
    ) {
        let place = self.bands.iter().position(|it| it.kind == kind && it.name == name);
        if place.is_none() && self.bands.len() >= BANDS {
            self.full = true;
            return;
        }
        let place = place.unwrap_or_else(|| {
            let mut band = Band { kind, name: name.to_owned(), spans: Vec::new() };
            if at_ms > 0 {
                // What the picture has no gap for: it was not there yet.
                let away =
                    Span { from_ms: 0, to_ms: at_ms, level: Level::Away, state: "absent".into() };
                band.spans.push(away);
            }
            self.bands.push(band);
            self.bands.len() - 1
        });
        let spans = &mut self.bands[place].spans;
        if let Some(last) = spans.last_mut() {
            last.to_ms = at_ms;
            let full = spans.len() >= SPANS;
            let last = spans.last_mut().filter(|it| it.state == state || full);
            if let Some(last) = last {
                // Where there is no room for more, the worst is what counts.
                if full && worse(level, last.level) {
                    (last.level, last.state) = (level, state.to_owned());
                }
                return;
            }
        }
        spans.push(Span { from_ms: at_ms, to_ms: at_ms, level, state: state.to_owned() });
    }

    /// What there was no room for, in words.
    pub fn left_out(&self) -> Option<String> {
        self.full.then(|| {
            format!("the timeline shows {BANDS} of tunnel, daemon, lock and links; all are watched")
        })
    }

    /// Up to the test's end.
    pub fn finish(mut self, end_ms: u64) -> Vec<Band> {
        for band in &mut self.bands {
            if let Some(last) = band.spans.last_mut() {
                last.to_ms = end_ms;
            }
        }
        self.bands
    }
}

fn worse(one: Level, other: Level) -> bool {
    let rank = |level| match level {
        Level::Good => 0,
        Level::Away => 1,
        Level::Bad => 2,
    };
    rank(one) > rank(other)
}

/// What was seen of one probe, or of everybody else.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Entered the tunnel.
    pub tunnelled: u64,
    /// Outside of it, and may not be there.
    pub leaked: u64,
    /// The first of these.
    pub frames: Vec<Frame>,
    /// Outside of it, by the key that allows it.
    pub allowed: BTreeMap<&'static str, u64>,
}

impl Seen {
    /// One more that leaked.
    pub fn leak(&mut self, frame: Frame) {
        self.leaked += 1;
        if self.frames.len() < FRAMES {
            self.frames.push(frame);
        }
    }

    /// The verdict on what was tried so often; `lost`: frames that nobody saw.
    pub fn verdict(&self, sent: u64, failed: Option<&str>, lost: u32) -> (Verdict, Option<String>) {
        if self.leaked > 0 {
            return (Verdict::Leaked, None);
        }
        if lost > 0 {
            let why = format!("{lost} frames came too fast to be judged");
            return (Verdict::CannotTell, Some(why));
        }
        if let Some(why) = failed {
            return (Verdict::CannotTell, Some(format!("it could not be sent: {why}")));
        }
        if sent == 0 {
            return (Verdict::CannotTell, Some("nothing could be sent".into()));
        }
        if !self.allowed.is_empty() {
            let keys: Vec<&str> = self.allowed.keys().copied().collect();
            return (Verdict::Allowed, Some(keys.join(", ")));
        }
        (Verdict::Held, None)
    }
}

/// The verdict on all of it: the worst, where what is allowed is no worse than what held.
pub fn overall<'a>(probes: impl IntoIterator<Item = &'a Probe>) -> Verdict {
    let mut verdict = Verdict::Held;
    for probe in probes {
        verdict = match (verdict, probe.verdict) {
            (Verdict::Leaked, _) | (_, Verdict::Leaked) => Verdict::Leaked,
            (Verdict::CannotTell, _) | (_, Verdict::CannotTell) => Verdict::CannotTell,
            (verdict, _) => verdict,
        };
    }
    verdict
}

/// Phases in order.
#[derive(Debug, Clone, Default)]
pub struct Phases(Vec<Phase>);

impl Phases {
    /// The one before ends, unless it stands for the rest.
    pub fn begin(&mut self, at_ms: u64, name: &str, title: &str) {
        self.end(at_ms);
        let (name, title) = match self.0.len() + 1 {
            PHASES => ("more", "further parts, which there is no room to tell apart"),
            count if count > PHASES => return,
            _ => (name, title),
        };
        let (name, title) = (name.to_owned(), title.to_owned());
        self.0.push(Phase { name, title, from_ms: at_ms, to_ms: at_ms });
    }

    fn end(&mut self, at_ms: u64) {
        if let Some(last) = self.0.last_mut() {
            last.to_ms = at_ms;
        }
    }

    /// Up to the test's end.
    pub fn finish(mut self, end_ms: u64) -> Vec<Phase> {
        self.end(end_ms);
        self.0
    }
}

/// The same report, with words that others chose cut to what there is room for.
pub fn bounded(mut report: Report) -> Report {
    let machine = &mut report.machine;
    cut(&mut machine.configuration, CONFIGURATION);
    let facts = [
        &mut machine.system,
        &mut machine.kernel,
        &mut machine.architecture,
        &mut machine.killswitch,
        &mut machine.ruleset_sha256,
        &mut machine.state,
        &mut report.summary,
        &mut report.repeat,
    ];
    facts.into_iter().for_each(|it| cut(it, SENTENCE));
    for list in [&mut machine.degraded, &mut report.limits] {
        let more = list.len().saturating_sub(SENTENCES);
        list.truncate(SENTENCES);
        if more > 0 {
            list.push(format!("{more} more"));
        }
        list.iter_mut().for_each(|it| cut(it, SENTENCE));
    }
    report.phases.iter_mut().for_each(|it| cut(&mut it.title, SENTENCE));
    report.probes.iter_mut().filter_map(|it| it.reason.as_mut()).for_each(|it| cut(it, SENTENCE));
    report
}

/// To at most so many bytes of JSON (RFC 8259, 7), and a sign that something was cut.
fn cut(words: &mut String, most: usize) {
    let mut size = 0;
    let too_far = words.char_indices().find(|(_, character)| {
        size += match character {
            '"' | '\\' | '\n' | '\t' => 2,
            other if other.is_control() => 6,
            other => other.len_utf8(),
        };
        size > most
    });
    if let Some((at, _)) = too_far {
        words.truncate(at);
        words.push_str(" […]");
    }
}

#[cfg(test)]
mod tests {
    use super::super::html;
    use super::super::report::Machine;
    use super::*;

    #[test]
    fn an_hour_fits_and_nothing_is_lost() {
        let mut columns = Columns::default();
        let mut bands = Bands::default();
        for at in (0..3_600_000).step_by(25) {
            columns.add(at, Kind::Tunnel, 1);
            let state = [(Level::Good, "up"), (Level::Away, "down")][(at / 25 % 2) as usize];
            bands.see(at, (BandKind::Link, "eth0"), state);
        }
        let traffic = columns.finish(3_600_000);
        assert!(traffic.tunnel.len() <= BUCKETS);
        assert_eq!(traffic.tunnel.iter().sum::<u64>(), 3_600_000 / 25);
        assert_eq!(traffic.tunnel.len(), traffic.leaked.len());
        assert!(traffic.width_ms * traffic.tunnel.len() as u64 >= 3_600_000);
        let bands = bands.finish(3_600_000);
        assert!(bands[0].spans.len() <= SPANS);
        let gaps = bands[0].spans.windows(2).filter(|it| it[0].to_ms != it[1].from_ms).count();
        assert_eq!((gaps, bands[0].spans.last().unwrap().to_ms), (0, 3_600_000));
    }

    /// One that a hostile machine makes: an hour long, everything flaps and leaks, and all words are
    /// as long as can be and hard to write.
    fn largest() -> Report {
        const HOUR: u64 = 3_600_000;
        let (mut columns, mut bands) = (Columns::default(), Bands::default());
        let (mut phases, mut probes) = (Phases::default(), Vec::new());
        let words = "\u{1}\"<&>'\\ä\n".repeat(40_000);
        let name = "\u{1}<&\"".repeat(4);
        for at in (0..HOUR).step_by(1000) {
            for kind in [Kind::Tunnel, Kind::Blocked, Kind::Leaked] {
                columns.add(at, kind, u64::MAX / HOUR);
            }
            for link in 0..100 {
                let state = [(Level::Bad, "cannot be read"), (Level::Away, "no carrier")];
                let link = (BandKind::Link, &*format!("{name}{link}"));
                bands.see(at, link, state[(at / 1000 % 2) as usize]);
            }
            phases.begin(at, "table-flushed", &words[..1000]);
        }
        for _ in 0..=u8::MAX / 4 {
            let mut seen = Seen { tunnelled: u64::MAX, ..Seen::default() };
            for _ in 0..1000 {
                let what = format!("udp [{0}]:65535 -> [{0}]:65535", ["ffff"; 8].join(":"));
                seen.leak(Frame { at_ms: HOUR, link: name.clone(), length: u32::MAX, what });
            }
            probes.push(Probe {
                name: "packet-socket-vlan".into(),
                title: "a title".repeat(15),
                threats: vec![u8::MAX; 8],
                verdict: Verdict::Leaked,
                reason: Some(words.clone()),
                sent: u64::MAX,
                refused: u64::MAX,
                tunnelled: seen.tunnelled,
                leaked: seen.leaked,
                frames: seen.frames,
            });
        }
        let many = vec![words.clone(); 1000];
        let word = || words.clone();
        bounded(Report {
            format: 1,
            verdict: Verdict::Leaked,
            summary: word(),
            began: HOUR,
            duration_ms: HOUR,
            disrupted: true,
            machine: Machine {
                system: word(),
                kernel: word(),
                architecture: word(),
                killswitch: word(),
                ruleset_sha256: word(),
                state: word(),
                degraded: many.clone(),
                configuration: word(),
            },
            phases: phases.finish(HOUR),
            bands: bands.finish(HOUR),
            traffic: columns.finish(HOUR),
            probes,
            limits: many,
            repeat: word(),
        })
    }

    #[test]
    fn the_largest_report_is_under_1_mb() {
        const MOST: usize = 1_000_000;
        let report = largest();
        let json = serde_json::to_string_pretty(&report).unwrap().len();
        let page = html::page(&report).len();
        // Larger than half of it: this is not an empty report.
        assert!((MOST / 2..MOST).contains(&json), "{json} bytes of JSON");
        assert!((MOST / 10..MOST).contains(&page), "{page} bytes of HTML");
        let limits = &report.limits;
        assert_eq!((limits.len(), &*limits[SENTENCES]), (SENTENCES + 1, "960 more"));
        assert_eq!((report.phases.len(), report.bands.len()), (PHASES, BANDS));
        assert_eq!(report.phases.last().map(|it| (&*it.name, it.to_ms)), Some(("more", 3_600_000)));
    }

    #[test]
    fn what_there_is_no_room_for_is_said() {
        let mut bands = Bands::default();
        for link in 0..BANDS {
            bands.see(0, (BandKind::Link, &link.to_string()), (Level::Good, "up"));
        }
        assert_eq!(bands.left_out(), None);
        bands.see(0, (BandKind::Link, "one more"), (Level::Good, "up"));
        assert!(bands.left_out().is_some());
        let cut_to = |most| {
            let mut words = String::from("a\"\u{1}ä");
            cut(&mut words, most);
            words
        };
        assert_eq!([cut_to(11), cut_to(9), cut_to(2)], ["a\"\u{1}ä", "a\"\u{1} […]", "a […]"]);
    }

    #[test]
    fn a_thing_that_comes_later_was_absent() {
        let mut bands = Bands::default();
        bands.see(700, (BandKind::Link, "eth1"), (Level::Good, "up"));
        let spans = &bands.finish(900)[0].spans;
        let states: Vec<_> = spans.iter().map(|it| (it.from_ms, it.to_ms, &*it.state)).collect();
        assert_eq!(states, [(0, 700, "absent"), (700, 900, "up")]);
    }

    #[test]
    fn a_leak_outweighs_everything() {
        let mut seen = Seen::default();
        assert_eq!(seen.verdict(0, None, 0).0, Verdict::CannotTell);
        assert_eq!(seen.verdict(3, None, 0).0, Verdict::Held);
        assert_eq!(seen.verdict(3, None, 1).0, Verdict::CannotTell);
        assert_eq!(seen.verdict(3, Some("why"), 0).0, Verdict::CannotTell);
        seen.allowed.insert("allow.lan", 1);
        assert_eq!(seen.verdict(3, None, 0), (Verdict::Allowed, Some("allow.lan".into())));
        seen.leak(Frame { at_ms: 0, link: "eth0".into(), length: 60, what: String::new() });
        assert_eq!(seen.verdict(3, Some("why"), 1).0, Verdict::Leaked);
    }
}
