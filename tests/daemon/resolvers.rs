//! `/etc/resolv.conf` where nobody else keeps it: the tunnel's while it is connected and locked.

use std::fs;
use std::time::Duration;

use killswitch::lab::harness::{Failed, Outcome, Test, eventually};
use killswitch::lab::namespaces;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::stage::Stage;

pub const TESTS: &[Test] = &[
    ("an_open_lock_has_the_former_resolvers", open),
    ("resolvers_that_could_not_be_given_back_are_tried_again", busy),
    ("a_dhcp_client_does_not_replace_the_tunnels_resolvers", renewed),
    ("an_unusable_configuration_gives_the_resolvers_back", unusable),
];

const FILE: &str = "/etc/resolv.conf";
const THEIRS: &str = "nameserver 192.168.1.1\n";
const OURS: &str = "nameserver 10.64.0.1\n";

/// A laboratory with an /etc of its own; dropped in this order.
struct Scene {
    stage: Stage,
    _etc: Mount,
}

struct Mount(&'static str);

impl Mount {
    fn etc() -> Result<Self, Failed> {
        namespaces::assert_private()?;
        mount(Some("tmpfs"), "/etc", Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?;
        Ok(Mount("/etc"))
    }

    /// What is mounted over can be neither replaced nor renamed.
    fn busy() -> Result<Self, Failed> {
        mount(Some(FILE), FILE, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(Mount(FILE))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

impl Scene {
    /// Connected, with the tunnel's resolvers.
    fn set() -> Result<Self, Failed> {
        let etc = Mount::etc()?;
        fs::write(FILE, THEIRS)?;
        let scene = Scene { stage: Stage::set()?, _etc: etc };
        scene.configure("dns = [\"10.64.0.1\"]")?;
        scene.waits_for(OURS)?;
        Ok(scene)
    }

    /// Reloads with one more key of the tunnel.
    fn configure(&self, key: &str) -> Outcome {
        let text = fs::read_to_string(&self.stage.configuration)?;
        let text = text.replace("[tunnel]", &format!("[tunnel]\n{key}"));
        fs::write(&self.stage.configuration, text)?;
        self.run(&["reload", "--yes"])
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        let output = self.stage.ask(arguments)?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn waits_for(&self, resolvers: &str) -> Outcome {
        Ok(eventually(resolvers, || Ok(says(resolvers)))?)
    }

    /// Until what is degraded does, or does not, speak of resolvers.
    fn waits_until_told(&self, told: bool) -> Outcome {
        let degraded = || Ok(self.stage.status()?["degraded"].to_string());
        Ok(eventually("what is told of the resolvers", || {
            Ok(degraded()?.contains("resolvers cannot be") == told)
        })?)
    }
}

fn says(text: &str) -> bool {
    fs::read_to_string(FILE).is_ok_and(|all| all.ends_with(text))
}

fn open() -> Outcome {
    let scene = Scene::set()?;
    scene.run(&["unlock", "--yes"])?;
    scene.waits_for(THEIRS)?;
    // It fails: the lock is open. The handshake takes place.
    scene.stage.ask(&["reconnect"])?;
    std::thread::sleep(Duration::from_secs(2));
    assert!(says(THEIRS), "the tunnel's resolvers while the lock is open");
    scene.run(&["lock"])?;
    scene.waits_for(OURS)
}

fn busy() -> Outcome {
    let scene = Scene::set()?;
    let busy = Mount::busy()?;
    scene.run(&["unlock", "--yes"])?;
    scene.waits_until_told(true)?;
    assert!(says(OURS));
    drop(busy);
    scene.waits_for(THEIRS)?;
    scene.waits_until_told(false)
}

/// Its script writes the file last, when no event of the kernel's is to come.
fn renewed() -> Outcome {
    let scene = Scene::set()?;
    let renew = || fs::write("/etc/new", THEIRS).and_then(|()| fs::rename("/etc/new", FILE));
    renew()?;
    scene.waits_for(OURS)?;
    fs::write(FILE, THEIRS)?;
    scene.waits_for(OURS)?;
    renew()?;
    let busy = Mount::busy()?;
    scene.waits_until_told(true)?;
    drop(busy);
    scene.waits_for(OURS)?;
    scene.waits_until_told(false)
}

fn unusable() -> Outcome {
    let mut scene = Scene::set()?;
    let good = fs::read_to_string(&scene.stage.configuration)?;
    scene.stage.daemon.crash();
    assert!(says(OURS));
    fs::write(&scene.stage.configuration, "[lokc]\n")?;
    scene.stage.daemon.again(&scene.stage.lab)?;
    scene.waits_for(THEIRS)?;
    fs::write(&scene.stage.configuration, good)?;
    scene.configure("connect_at_start = false")?;
    eventually("the killed daemon's link goes", || Ok(!scene.stage.lab.client.has_link("wg0")?))?;
    scene.stage.nothing_leaked("what a killed daemon left")?;
    Ok(())
}
