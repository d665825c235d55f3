//! What can go wrong in the simulated world.

use std::time::Duration;

use killswitch::engine::{
    Candidate, Command, Effect, Event, Layer, Network, Reading, Settings, TunnelLink,
};

use crate::world::{MS, SECOND, Traffic, World, settings, uplink};

impl World {
    /// Something happens that nobody asked for.
    pub fn fault(&mut self) {
        match self.dice.below(21) {
            0..5 => self.network_fault(),
            5..8 => self.server_fault(),
            8..12 => self.command(),
            12..15 => self.executor_fault(),
            15 => {
                let settings = self.some_settings();
                self.feed(Event::Configured(settings));
            }
            16 => {
                let jump = self.dice.below(600_000) as u32;
                self.now += MS * jump;
                self.feed(Event::Resumed);
            }
            17 => {
                let event = self.dice.pick(&[
                    Event::LinkAppeared,
                    Event::Disturbed(Layer::Tables),
                    Event::Disturbed(Layer::Routing),
                    Event::ResolversLost,
                ]);
                self.resolved &= event != Event::ResolversLost;
                self.feed(event);
            }
            18 => self.unseen_fault(),
            _ => self.nonsense(),
        }
    }

    fn unseen_fault(&mut self) {
        if self.dice.once_in(2) {
            self.foreign_key = true;
        } else {
            self.replies_dropped = true;
        }
    }

    fn network_fault(&mut self) {
        let address = self.dice.pick(&["198.51.100.2", "198.51.100.3"]);
        let link = self.dice.pick(&[2, 3]);
        match self.dice.below(8) {
            0 => self.network.v4 = None,
            1 | 2 => self.network.v4 = Some(uplink(link, address)),
            3 => self.network.v6 = None,
            4 => self.network.v6 = Some(uplink(link, "2001:db8:1::2")),
            5 => self.lose_link(TunnelLink::Absent),
            6 => self.lose_link(TunnelLink::Down),
            _ => self.lose_link(TunnelLink::Foreign),
        }
        let late = self.dice.pick(&[Duration::ZERO, MS, 50 * MS]);
        self.tell(late);
    }

    fn server_fault(&mut self) {
        match self.dice.below(6) {
            0 => self.answers_probes = !self.answers_probes,
            1 => {
                self.traffic = self.dice.pick(&[Traffic::None, Traffic::BothWays, Traffic::OneWay])
            }
            2 => (self.dead, self.swallowing) = (Vec::new(), Vec::new()),
            which => {
                let servers = self.settings.servers.clone();
                let endpoint = self.dice.pick(&servers).endpoints[0];
                if which == 3 { self.swallowing.push(endpoint) } else { self.dead.push(endpoint) }
            }
        }
    }

    fn executor_fault(&mut self) {
        match self.dice.below(3) {
            0 => self.failing = self.dice.pick(&[0, 1, 2, 10]),
            1 => self.slowness = self.dice.pick(&[MS, 30 * MS, SECOND]),
            _ => self.failing = 0,
        }
    }

    fn command(&mut self) {
        let server = self.dice.below(5);
        let command = self.dice.pick(&[
            Command::Connect(None),
            Command::Connect(Some(server)),
            Command::Disconnect,
            Command::Reconnect,
            Command::Lock,
            Command::Unlock,
        ]);
        self.feed(Event::Command(command));
    }

    fn some_settings(&mut self) -> Settings {
        let mut settings = settings();
        if self.dice.once_in(2) {
            settings.servers.rotate_left(1);
        }
        if self.dice.once_in(3) {
            settings.servers.truncate(2);
        }
        settings.managed = !self.dice.once_in(4);
        settings.connect_at_start = self.dice.once_in(2);
        settings
    }

    /// Events without a cause, and answers to nothing.
    fn nonsense(&mut self) {
        let endpoint = "192.0.2.2:1".parse().expect("an address");
        let candidate = Candidate { server: self.dice.below(4), endpoint };
        let reading = Reading {
            candidate: Some(candidate),
            handshake_age: Some(MS),
            received: self.dice.number() % 1000,
            sent: self.dice.number() % 1000,
        };
        let effects = [
            Effect::HoldLock,
            Effect::Unlock,
            Effect::EnsureLink,
            Effect::SetPeer(candidate),
            Effect::Probe,
            Effect::ReadTunnel,
        ];
        let effect = self.dice.pick(&effects);
        let event = match self.dice.below(6) {
            0 => Event::Tick,
            1 => Event::Sent,
            2 if !self.queue.contains(&effect) => Event::Done(effect),
            3 if !self.queue.contains(&effect) => Event::Failed(effect, "nonsense".to_owned()),
            4 if !self.queue.contains(&Effect::ReadTunnel) => Event::Tunnel(reading),
            5 => Event::Started { network: self.network.clone(), tunnel: Some(reading) },
            _ => Event::Network(Network { v4: None, ..self.network.clone() }),
        };
        let lies = matches!(event, Event::Network(_));
        self.feed(event);
        if lies {
            self.tell(10 * MS);
        }
    }

    /// All is well from now on.
    pub fn mend(&mut self) {
        self.network.v4 = Some(uplink(2, "198.51.100.2"));
        (self.dead, self.swallowing) = (Vec::new(), Vec::new());
        self.traffic = Traffic::None;
        (self.failing, self.slowness) = (0, MS);
        self.tell(MS);
    }
}
