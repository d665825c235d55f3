//! Whatever a line says, it is read or refused.

use killswitch::explain::line::read;
use proptest::prelude::*;

const PIECES: [&str; 40] = [
    "IP",
    "IP6",
    "ARP,",
    ">",
    "→",
    "->",
    "192.168.1.5.40000",
    "1.1.1.1.53:",
    "fe80::1",
    "ff02::1:",
    "::ffff:1.2.3.4.5:",
    "ICMP6,",
    "ICMP",
    "echo",
    "request,",
    "Flags",
    "[S.],",
    "UDP,",
    "12:00:00.1",
    "nic0",
    "Out",
    "In",
    "blocked:",
    "udp",
    "to",
    "port",
    "53",
    "on",
    "by",
    "user",
    "SRC=1.1.1.1",
    "DST=::1",
    "PROTO=UDP",
    "SPT=99999",
    "[SRC=",
    "]",
    "IN=",
    "{\"event\":\"blocked\",\"protocol\":\"udp\"}",
    "Tell",
    "who-has",
];

proptest! {
    #[test]
    fn any_text(line in any::<String>()) {
        let _ = read(&line);
    }

    #[test]
    fn any_order_of_pieces(pieces in proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..12)) {
        let _ = read(&pieces.join(" "));
        let _ = read(&format!("IP {}", pieces.join(" ")));
        let _ = read(&format!("1 0.0 {}", pieces.join(" ")));
    }
}

#[test]
fn a_line_is_not_long() {
    assert!(read(&"x".repeat(5000)).is_err_and(|why| why.contains("too long")));
    assert!(read("").is_err());
}
