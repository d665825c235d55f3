# Two commands do everything: `make demo` and `make test`. Both install what the build needs, if it
# is missing (Debian, Ubuntu: apt through sudo), and build.

CARGO ?= cargo
# Tests need a kernel, not speed: `dev` builds in a fraction of the time.
LAB := --features lab

# What is installed is one static file: it starts a quarter faster, and it locks while libc is being
# upgraded. The target is named, since procedural macros cannot be static.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
STATIC := RUSTFLAGS="-C target-feature=+crt-static" $(CARGO)
RELEASED = target/$(HOST)/release/killswitch
# Not asked of rustc: root often has none.
BUILT = $(or $(shell cat target/released 2>/dev/null),$(error build first, not as root: make release))
# Where Debian's zsh looks; elsewhere it is /usr/share/zsh/site-functions.
ZSH_COMPLETIONS ?= /usr/share/zsh/vendor-completions

# The units, the resolvers' keepers, a machine's other firewalls, and who may do what, under a systemd
# of their own.
CONTAINERS := tests/container/run tests/container/daemon tests/dns/run tests/container/neighbours \
	tests/container/dbus

CARGO_TEST := $(CARGO) test $(LAB) --lib --bins --tests

.PHONY: demo test test-long test-browser test-packages test-vm test-vm-long vm-images test-initrd bench check release install \
	deb rpm build-deps package-deps deps clean

demo: deps
	$(CARGO) build --quiet $(LAB) --bins
	target/debug/killswitch demo

# The containers' tests mostly wait, so they run beside the others and are heard at the end.
test: deps
	$(CARGO) build $(LAB) --bins
	@if [ "$$(id -u)" = 0 ]; then as_root=; elif sudo -n true 2>/dev/null; then as_root=sudo; \
	else echo "skipped, since they need root: $(CONTAINERS)"; exec $(CARGO_TEST); fi; \
	(for test in $(CONTAINERS); do $$as_root $$test || exit 1; done) >target/containers.log 2>&1 & containers=$$!; \
	$(CARGO_TEST); here=$$?; \
	wait $$containers; there=$$?; cat target/containers.log; exit $$((here + there))

# What takes minutes: 10,000 reloads under a flood, the property tests at length, storms, and faults
# in pairs and in 200 random sequences, and the leak test ended at many moments. The sequences mostly
# wait, so they run beside the reloads.
test-long: deps
	JUDGES_PACKETS=100000 $(CARGO) test $(LAB) --test judges
	ENGINE_SEQUENCES=1000000 $(CARGO) test $(LAB) --test engine random
	$(CARGO) test $(LAB) --test watch -- --ignored
	$(CARGO) test $(LAB) --test threats_a --test daemon --test leaktest --no-run
	{ $(CARGO) test $(LAB) --test leaktest -- --ignored && \
	FAULT_SEEDS=0..100 $(CARGO) test $(LAB) --test daemon -- --ignored sequences; } & first=$$!; \
	FAULT_SEEDS=100..200 $(CARGO) test $(LAB) --test daemon -- --ignored sequences & second=$$!; \
	$(CARGO) test $(LAB) --test threats_a -- --ignored && \
	$(CARGO) test $(LAB) --test daemon -- --ignored pairs && wait $$first && wait $$second

# From power-on to power-off, on emulated Debian machines with the package that `make deb` builds:
# what is seen at every change, or all (an hour). VM_SUITES="trixie": one release;
# VM="trixie::reboot": one scenario; VM="kexec,reboot": these.
VM_SUITES ?= bookworm trixie sid
test-vm test-vm-long: deps deb vm-images
	VM_SUITES="$(VM_SUITES)" $(CARGO) test $(LAB) --test vm -- --nocapture $(VM) \
	$(if $(findstring long,$@),--include-ignored)

# The pages of leaktest and evidence in Chromium, without a display and without a network.
test-browser: deps
	packaging/build-deps browser
	tests/browser/run

vm-images:
	packaging/build-deps vm
	@if [ "$$(id -u)" = 0 ]; then as_root=; else as_root=sudo; fi; \
	$$as_root tests/vm/image $(VM_SUITES)

# Commands are measured as they are installed. Benchmarks have the laboratory in them, with which
# cargo then builds the program, too, in the same place: that one is not to be installed.
bench: deps release
	cp $(RELEASED) target/measured
	rm target/released
	KILLSWITCH="$(CURDIR)/target/measured" $(STATIC) bench --target $(HOST) $(LAB) --bench lock --bench daemon

# Boots Debian's initrds in QEMU (not KVM), and counts every frame: about nine minutes, as root.
test-initrd: deps release
	tests/initrd/run

release: build-deps
	rm -f target/released
	$(STATIC) build --target $(HOST) --release
	for shell in bash zsh fish; do \
	$(RELEASED) completions $$shell >$(RELEASED).$$shell || exit 1; done
	packaging/crates >$(RELEASED).crates
	echo $(RELEASED) >target/released

# What packaging/README.md lists; build first with `make release`, not as root.
install:
	install -D -m755 $(BUILT) $(DESTDIR)/usr/bin/killswitch
	install -D -m644 nft/lock.nft $(DESTDIR)/usr/share/killswitch/lock.nft
	install -D -m644 systemd/killswitch-lock.service $(DESTDIR)/usr/lib/systemd/system/killswitch-lock.service
	install -D -m644 systemd/killswitch.service $(DESTDIR)/usr/lib/systemd/system/killswitch.service
	install -D -m755 systemd/killswitch-lock-boot $(DESTDIR)/usr/lib/killswitch/lock-boot
	install -D -m644 packaging/systemd/90-killswitch.preset $(DESTDIR)/usr/lib/systemd/system-preset/90-killswitch.preset
	install -D -m755 packaging/before-removal $(DESTDIR)/usr/lib/killswitch/before-removal
	install -d -m755 $(DESTDIR)/etc/killswitch.d
	test -e $(DESTDIR)/etc/killswitch.toml || \
	install -D -m600 packaging/killswitch.toml $(DESTDIR)/etc/killswitch.toml
	install -D -m644 packaging/sysctl.d/50-killswitch.conf $(DESTDIR)/usr/lib/sysctl.d/50-killswitch.conf
	install -D -m644 packaging/dbus/org.killswitch1.conf $(DESTDIR)/usr/share/dbus-1/system.d/org.killswitch1.conf
	install -D -m644 packaging/polkit/org.killswitch1.policy $(DESTDIR)/usr/share/polkit-1/actions/org.killswitch1.policy
	install -D -m755 packaging/initrd/lock $(DESTDIR)/usr/lib/killswitch/initrd/lock
	install -D -m644 packaging/initrd/contents $(DESTDIR)/usr/lib/killswitch/initrd/contents
	install -D -m644 packaging/initrd/50-killswitch.rules $(DESTDIR)/usr/lib/killswitch/initrd/50-killswitch.rules
	install -D -m755 packaging/initramfs-tools/killswitch $(DESTDIR)/usr/share/initramfs-tools/hooks/killswitch
	install -D -m755 packaging/dracut/70killswitch/module-setup.sh $(DESTDIR)/usr/lib/dracut/modules.d/70killswitch/module-setup.sh
	for document in README.md SECURITY.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md packaging/README.md \
	docs/dbus.md docs/neighbours.md; do \
	install -D -m644 $$document $(DESTDIR)/usr/share/doc/killswitch/$$document || exit 1; done
	for example in killswitch-metrics.service killswitch-metrics.timer; do \
	install -D -m644 packaging/examples/$$example $(DESTDIR)/usr/share/doc/killswitch/examples/$$example || exit 1; done
	install -D -m644 $(BUILT).crates $(DESTDIR)/usr/share/doc/killswitch/crates.txt
	install -D -m644 man/killswitch.8 $(DESTDIR)/usr/share/man/man8/killswitch.8
	install -D -m644 man/killswitch.toml.5 $(DESTDIR)/usr/share/man/man5/killswitch.toml.5
	install -D -m644 man/killswitch-dbus.7 $(DESTDIR)/usr/share/man/man7/killswitch-dbus.7
	install -D -m644 packaging/dbus/org.killswitch1.Manager.xml $(DESTDIR)/usr/share/dbus-1/interfaces/org.killswitch1.Manager.xml
	install -D -m644 $(BUILT).bash $(DESTDIR)/usr/share/bash-completion/completions/killswitch
	install -D -m644 $(BUILT).zsh $(DESTDIR)$(ZSH_COMPLETIONS)/_killswitch
	install -D -m644 $(BUILT).fish $(DESTDIR)/usr/share/fish/vendor_completions.d/killswitch.fish

# The packages, into target/package. Their time is that of their changelogs' newest entry: the same
# program gives the same bytes.
deb: package-deps release
	packaging/build deb

rpm: package-deps release
	packaging/build rpm

# What installing, upgrading and removing them does, in containers.
PACKAGE_SUITES ?= bookworm trixie
test-packages: deps deb rpm
	@if [ "$$(id -u)" = 0 ]; then as_root=; else as_root="sudo -n"; fi; \
	$$as_root tests/package/run $(PACKAGE_SUITES)

# Formatting, lints, documentation; changes nothing. (Licences: cargo deny check.)
check: deps
	$(CARGO) fmt --check
	$(CARGO) clippy --all-features --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --quiet --no-deps --all-features

deps:
	@packaging/build-deps

build-deps:
	@packaging/build-deps build

package-deps:
	@packaging/build-deps packages

clean:
	$(CARGO) clean
	rm -rf .cache
