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

#[test]
fn what_leaktest_prints_is_read() {
    let packet = |line: &str| {
        let words = read(line).unwrap_or_else(|why| panic!("{line}: {why}")).words;
        (words.out, words.proto, words.port, words.icmp_type, words.ethertype)
    };
    let on = Some("eth0".to_owned());
    let frame = "81 bytes on eth0: udp 192.168.1.50:40000 -> 198.19.105.41:4433";
    assert_eq!(packet(frame), (on, 17, Some(4433), None, None));
    let six = "tcp [2001:db8::2]:40000 -> [2001:db8::1]:443";
    assert_eq!(packet(six), (None, 6, Some(443), None, None));
    assert_eq!(packet("icmp type 143 fe80::1 -> ff02::16"), (None, 58, None, Some(143), None));
    assert_eq!(packet("ip protocol 47 192.0.2.1 -> 192.0.2.2").1, 47);
    assert_eq!(packet("frame of type 0x88b5").4, Some(0x88b5));
}

#[test]
fn what_tcpdump_prints_of_the_hardware_is_stepped_over() {
    let bare = "12:00:01.1 IP 192.168.1.50.40000 > 1.1.1.1.53: 1234+ A? x. (19)";
    let with = "12:00:01.1 02:00:00:00:00:01 > 02:00:00:00:00:02, ethertype IPv4 (0x0800), \
                length 71: 192.168.1.50.40000 > 1.1.1.1.53: 1234+ A? x. (19)";
    let read_words = |line: &str| format!("{:?}", read(line).expect("a packet").words);
    assert_eq!(read_words(bare), read_words(with));
    let bare = "12:00:01.1 ARP, Request who-has 192.168.1.1 tell 192.168.1.50, length 28";
    let with = "12:00:01.1 02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff, ethertype ARP (0x0806), length \
                42: Request who-has 192.168.1.1 tell 192.168.1.50, length 28";
    assert_eq!(read_words(bare), read_words(with));
}
