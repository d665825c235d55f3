#!/bin/bash
# Puts the lock into the initrd, if the administrator wants it there.
# Installed as /usr/lib/dracut/modules.d/70killswitch/module-setup.sh.

# shellcheck source=packaging/initrd/contents
. "${dracutsysrootdir-}/usr/lib/killswitch/initrd/contents"

check() { [[ -e ${dracutsysrootdir-}$switch ]]; }

# shellcheck disable=SC2086 # a list of words
installkernel() { hostonly='' instmods $modules; }

install() {
	inst_multiple /usr/bin/killswitch /usr/lib/killswitch/initrd/lock
	inst_hook pre-udev 00 "${dracutsysrootdir-}/usr/lib/killswitch/initrd/lock"
	inst_simple /usr/lib/killswitch/initrd/50-killswitch.rules /usr/lib/udev/rules.d/50-killswitch.rules
	if configuration_for_initrd "${dracutsysrootdir-}"; then
		inst_simple "$switch" /etc/killswitch.toml
		# A comment may hold a key.
		# shellcheck disable=SC2154 # dracut's
		sed -i '/^[[:space:]]*#/d' "$initdir/etc/killswitch.toml"
	fi
}
