# Two commands do everything: `make demo` and `make test`. Both install what the build needs, if it
# is missing (Debian, Ubuntu: apt through sudo), and build.

CARGO ?= cargo
# Tests need a kernel, not speed: `dev` builds in a fraction of the time.
LAB := --features lab

.PHONY: demo test test-long bench check deps clean

demo: deps
	$(CARGO) build --quiet $(LAB) --bins
	target/debug/killswitch demo

test: deps
	$(CARGO) test $(LAB) --lib --bins --tests
	@if [ "$$(id -u)" = 0 ]; then tests/container/run; \
	elif sudo -n true 2>/dev/null; then sudo tests/container/run; \
	else echo "skipped: the boot unit in a container needs root: sudo tests/container/run"; fi

# What takes minutes: 10,000 reloads under a flood, and the property tests at length.
test-long: deps
	JUDGES_PACKETS=100000 $(CARGO) test $(LAB) --test judges
	$(CARGO) test $(LAB) --test threats_a -- --ignored

bench: deps
	$(CARGO) bench $(LAB) --bench lock

# Formatting, lints, documentation, licences; changes nothing.
check: deps
	$(CARGO) fmt --check
	$(CARGO) clippy --all-features --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --quiet --no-deps --all-features

deps:
	@packaging/build-deps

clean:
	$(CARGO) clean
	rm -rf .cache
