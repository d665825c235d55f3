//! How a machine is booted.

/// A Debian release, and so a kernel.
pub type Suite = &'static str;

/// What configures the machine's links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Configurator {
    Networkd,
    NetworkManager,
    Ifupdown,
}

/// How a machine is booted.
#[derive(Debug, Clone)]
pub struct Plan {
    pub manager: Configurator,
    /// Whether the kill switch is installed and enabled: the positive control is without.
    pub guarded: bool,
    pub stock_initrd: bool,
    /// Swap space at /dev/vdc.
    pub swap: bool,
    /// More of the kernel's command line.
    pub append: String,
}

impl Plan {
    pub fn guarded(manager: Configurator) -> Self {
        Plan { manager, guarded: true, stock_initrd: false, swap: false, append: String::new() }
    }

    /// The same machine without the kill switch.
    pub fn control(&self) -> Self {
        Plan { guarded: false, ..self.clone() }
    }

    /// The same with more of the kernel's command line.
    pub fn with(mut self, append: &str) -> Self {
        self.append = format!("{} {append}", self.append);
        self
    }

    /// What it adds to the kernel's command line.
    pub fn command_line(&self) -> String {
        const INSTEAD: &str = "systemd.mask=systemd-networkd.service \
                               systemd.mask=systemd-networkd.socket systemd.wants=";
        let manager = match self.manager {
            Configurator::Networkd => String::new(),
            Configurator::NetworkManager => format!("{INSTEAD}NetworkManager.service"),
            Configurator::Ifupdown => format!("{INSTEAD}networking.service"),
        };
        let guard = if self.guarded {
            ""
        } else {
            "systemd.mask=killswitch.service systemd.mask=killswitch-lock.service"
        };
        format!("{manager} {guard} {}", self.append)
    }
}
