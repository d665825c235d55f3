//! Completions in the shells themselves.

use std::process::Command;

use killswitch::lab::harness::{Failed, Outcome};

use crate::machine::{Machine, PROGRAM, failed};

/// What is typed, and words that must be offered for it.
const TYPED: [(&str, &[&str]); 9] = [
    ("killswitch st", &["status"]),
    ("killswitch unl", &["unlock"]),
    ("killswitch aud", &["audit"]),
    ("killswitch lock --", &["--boot", "--yes", "--json", "--config", "--help"]),
    ("killswitch rules --format ", &["nft", "json"]),
    ("killswitch plan --e", &["--exit-code"]),
    ("killswitch evidence ", &["show", "verify", "export"]),
    ("killswitch leaktest --", &["--disrupt", "--down-time", "--self-check", "--html", "--for"]),
    ("killswitch connect se", &["se-sto-1", "se-sto-2"]),
];

/// A script, and the program under its name with this machine's configuration as its own.
struct Shelf {
    machine: Machine,
}

impl Shelf {
    fn new() -> Result<Self, Failed> {
        let machine = Machine::new()?;
        let two = format!(
            "{}\n[[server]]\nname = \"se-sto-2\"\nendpoints = [\"198.51.100.8:1\"]\n\
             public_key = \"TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=\"\n",
            crate::machine::TUNNEL
        );
        machine.configure(&two)?;
        let config = machine.path("killswitch.toml");
        let wrapper = format!("#!/bin/sh\nexec {PROGRAM} --config {} \"$@\"\n", config.display());
        machine.write("killswitch", wrapper, 0o755)?;
        for shell in ["bash", "zsh", "fish"] {
            let script = machine.killswitch(&["completions", shell])?.exits(0).out;
            assert!(!script.contains("completions"), "{shell}: what help hides is offered");
            // zsh loads completions by their name.
            machine.write(if shell == "zsh" { "_killswitch" } else { shell }, script, 0o644)?;
        }
        Ok(Shelf { machine })
    }

    /// Runs a shell's own program on the script.
    fn ask(&self, shell: &str, arguments: &[&str], typed: &str) -> Result<String, Failed> {
        let mut command = Command::new("timeout");
        command.args(["60", shell]).args(arguments);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:{path}", self.machine.path("").display()))
            .env("HOME", self.machine.path(""))
            .env("FOLDER", self.machine.path(""))
            .env("TYPED", typed)
            .env("TERM", "xterm")
            .stdin(std::process::Stdio::null());
        let run = self.machine.run(command)?;
        match run.code {
            0 => Ok(run.out),
            127 => Err(failed(format!("no {shell}: packaging/build-deps installs it"))),
            _ => Err(failed(format!("{shell}: {run:?}"))),
        }
    }
}

fn offers_what_is_expected(
    shell: &str,
    offered: impl Fn(&Shelf, &str) -> Result<String, Failed>,
) -> Outcome {
    let shelf = Shelf::new()?;
    for (typed, wanted) in TYPED {
        let text = offered(&shelf, typed)?;
        let words: Vec<&str> = text.split_whitespace().collect();
        for word in wanted {
            assert!(words.contains(word), "{shell}: {typed:?}: no {word} in {text:?}");
        }
        assert!(
            !words.contains(&"disconnect"),
            "{shell}: {typed:?}: everything is offered: {text:?}"
        );
    }
    // Who may not read the configuration is offered no server, and not bothered either.
    shelf.machine.configure("nonsense")?;
    let text = offered(&shelf, "killswitch connect se")?;
    assert!(!text.contains("se-sto") && !text.contains("error"), "{shell}: {text:?}");
    Ok(())
}

pub fn bash_completes() -> Outcome {
    const SCRIPT: &str = r#"
        source "$FOLDER/bash"
        read -ra COMP_WORDS <<<"$TYPED"
        [[ $TYPED == *" " ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        COMP_LINE=$TYPED COMP_POINT=${#TYPED}
        function=$(complete -p killswitch | sed 's/.*-F \([^ ]*\).*/\1/')
        $function killswitch "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" 2>&1
        printf '%s\n' "${COMPREPLY[@]}""#;
    offers_what_is_expected("bash", |shelf, typed| {
        shelf.ask("bash", &["--norc", "--noprofile", "-c", SCRIPT], typed)
    })
}

pub fn fish_completes() -> Outcome {
    offers_what_is_expected("fish", |shelf, typed| {
        let script = "source $FOLDER/fish; complete --do-complete \"$TYPED\"";
        shelf.ask("fish", &["--no-config", "-c", script], typed)
    })
}

/// zsh completes on a terminal only: one of its own, where Ctrl-D lists what is offered.
pub fn zsh_completes() -> Outcome {
    const SCRIPT: &str = r#"
        zmodload zsh/zpty
        zpty inner zsh -f -i
        until_shown() { # TEXT: prints all that is shown until then
            local all= part
            until [[ $all == *"$1"* ]]; do
                zpty -rt inner part && all+=$part || sleep 0.05
            done
            print -r -- "$all"
        }
        zpty -w inner "PS1='ready: '; stty columns 200; bindkey -e"
        zpty -w inner "fpath=($FOLDER \$fpath); autoload -Uz compinit; compinit -u -d $FOLDER/dump"
        zpty -w inner "print -r -- lo''aded"
        until_shown loaded >/dev/null
        until_shown 'ready: ' >/dev/null
        zpty -n -w inner "$TYPED"$'\C-d'
        zpty -n -w inner $'\C-a\C-kprint -r -- en\'\'ded\n'
        until_shown ended
        zpty -d inner"#;
    offers_what_is_expected("zsh", |shelf, typed| {
        let text = shelf.ask("zsh", &["-f", "-c", SCRIPT], typed)?;
        Ok(without_escapes(&text))
    })
}

/// What steers a terminal is a gap between words.
fn without_escapes(text: &str) -> String {
    let mut parts = text.split('\x1b');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| {
        let end = part.find(|it: char| it.is_ascii_alphabetic()).map_or(part.len(), |at| at + 1);
        all + " " + &part[end..]
    })
}
