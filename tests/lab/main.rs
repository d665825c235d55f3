//! The laboratory itself: what other tests rely on.

use std::time::Duration;

use killswitch::lab::addresses::*;
use killswitch::lab::harness::{self, Outcome, eventually};
use killswitch::lab::{Capture, Expectation, Lab};

fn ping(lab: &Lab, address: &str) -> killswitch::lab::Result<()> {
    lab.client.command("ping", &["-c1", "-W10", address]).map(drop)
}

fn everybody_answers() -> Outcome {
    let lab = Lab::new()?;
    for address in ["192.168.1.1", "192.168.1.20", "198.51.100.7", "203.0.113.10", "1.1.1.1"] {
        ping(&lab, address)?;
    }
    for address in ["2001:db8:1::20", "2001:db8:b::7", "2001:db8:ffff::10", "2606:4700:4700::1111"]
    {
        ping(&lab, address)?;
    }
    Ok(())
}

fn a_tunnel_carries_pings_through_either_server() -> Outcome {
    let mut lab = Lab::new()?;
    lab.route_into_tunnel()?;
    for server in 0..2 {
        lab.start_server(server)?;
        let capture = Capture::start(&lab, Expectation::of(&lab))?;
        let tunnel = lab.client_tunnel(server)?;
        ping(&lab, "1.1.1.1")?;
        ping(&lab, "2606:4700:4700::1111")?;
        let report = capture.stop()?;
        if report.leaked.keys().any(|class| class.contains("1.1.1.1")) {
            return Err(report.summary().into());
        }
        if !report.allowed.contains_key("WireGuard to a server") {
            return Err("no WireGuard message was seen".into());
        }
        if tunnel.transfer()?.received == 0 {
            return Err("nothing was received".into());
        }
        tunnel.stop();
        if lab.client.has_link(TUNNEL_LINK)? {
            return Err("the link outlived its device".into());
        }
    }
    Ok(())
}

fn a_capture_sees_what_leaves() -> Outcome {
    let lab = Lab::new()?;
    let capture = Capture::start(&lab, Expectation::of(&lab))?;
    ping(&lab, "8.8.8.8")?;
    eventually("the ping is seen as a leak", || {
        Ok(capture.report().leaked.contains_key("ICMP type 8 192.168.1.50 -> 8.8.8.8"))
    })?;
    std::thread::sleep(Duration::from_millis(10));
    let report = capture.stop()?;
    if report.lost > 0 || report.frames.is_empty() {
        return Err(format!("lost {}, kept {}", report.lost, report.frames.len()).into());
    }
    Ok(())
}

fn main() -> std::process::ExitCode {
    harness::run(&[
        ("everybody_answers", everybody_answers),
        (
            "a_tunnel_carries_pings_through_either_server",
            a_tunnel_carries_pings_through_either_server,
        ),
        ("a_capture_sees_what_leaves", a_capture_sees_what_leaves),
    ])
}
