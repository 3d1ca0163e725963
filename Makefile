# Everything a developer or CI runs. Needs Debian (or alike), Rust, and root for what touches containers.

CARGO   ?= cargo
PROFILE ?= dev
BIN     := target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/skep
# Debian packages: what skep is built with, and the real parts that the tests run.
BUILD_PACKAGES := gcc libc6-dev libseccomp-dev pkg-config make curl iproute2 nftables
TEST_PACKAGES  := busybox-static runc redis-server nginx-light docker-registry skopeo faketime iputils-ping wireguard-go wireguard-tools bind9-dnsutils musl-tools tcpdump socat
# What `make bench-net` measures with.
BENCH_PACKAGES := iperf3 wrk

# Of the simulation: how many seeds, from which on; SEED=n runs one and prints what happens.
SEEDS   ?= 200
FROM    ?= 0

.PHONY: help setup setup-test build demo test verify fix unit sim sim-test fuzz e2e test-vm bench bench-net clean

help:
	@echo "make setup    install the Debian packages that building and the demo need"
	@echo "make demo     build, and show a service on a lab of three hosts"
	@echo "make test     format, lints, unit and end-to-end tests (as root)"
	@echo "make verify   format, lints and licences only; writes nothing"
	@echo "make fix      format, and let clippy mend what it can"
	@echo "make sim      managers in simulated time under faults: SEEDS=n for more, SEED=n for one with its trace"
	@echo "make fuzz     every parser of outside bytes, FUZZ_SECONDS=60 each, two at a time"
	@echo "make test-vm  kernel WireGuard, cgroup v2 and systemd, in a virtual machine (as root, by hand)"
	@echo "make bench    figures next to the peers' (as root, release build)"
	@echo "make bench-net  the same of networks (iperf3, wrk, a lab)"

setup:
	@deploy/setup.sh $(BUILD_PACKAGES)

setup-test:
	@deploy/setup.sh $(BUILD_PACKAGES) $(TEST_PACKAGES)

build: setup
	$(CARGO) build --locked --profile $(PROFILE) -p skep

demo: build target/whoami.tar
	@deploy/demo.sh $(BIN)

# The example image's root file system: one static program.
target/whoami.tar: deploy/examples/whoami/Cargo.toml $(wildcard deploy/examples/whoami/src/*.rs)
	@deploy/examples/whoami/build.sh $@

verify:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	cd tests/sim && $(CARGO) fmt --check && $(CARGO) clippy --locked --all-targets -- -D warnings
	cd tests/fuzz && $(CARGO) fmt --check
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check; else echo "cargo-deny is not installed: licences and sources are not checked"; fi

fix:
	$(CARGO) fmt --all
	$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged

# All phases, each with its time.
test: setup-test
	@deploy/test.sh

unit:
	$(CARGO) nextest run --locked --workspace --exclude skep-tests

# In its folder, as it has a lock file, settings and a target directory (target/sim) of its own.
sim:
	cd tests/sim && $(CARGO) run --locked -- $(if $(SEED),--seed $(SEED) --trace,--seeds $(SEEDS) --from $(FROM))

sim-test:
	cd tests/sim && $(CARGO) test --locked

# FUZZ_SECONDS, FUZZ_TARGETS and FUZZ_SANITIZER: see tests/fuzz/README.md.
fuzz:
	@deploy/setup.sh $(BUILD_PACKAGES) g++
	@tests/fuzz/run.sh

e2e: build target/whoami.tar
	SKEP_BIN=$(CURDIR)/$(BIN) $(CARGO) nextest run --locked -p skep-tests

# By hand, outside CI: a kernel and a small Debian come to target/vm.
test-vm: setup target/whoami.tar
	@deploy/setup.sh busybox-static debootstrap qemu-system-x86 cpio kmod e2fsprogs binutils musl-tools
	$(CARGO) build --locked -p skep
	@tests=$$($(CARGO) test --locked -p skep-overlay --test netd --no-run 2>&1 | tee /dev/stderr | sed -n 's/.*Executable.*(\(.*\))$$/\1/p') && \
	    containers=$$($(CARGO) test --locked -p skep-runtime --test containers --test exec --test hostile --test escapes --test confined --no-run 2>&1 | tee /dev/stderr | sed -n 's/.*Executable.*(\(.*\))$$/\1/p') && \
	    tests/vm/run.sh target/debug/skep target/whoami.tar "$$tests" $$containers

bench: setup-test
	$(CARGO) build --locked --release -p skep
	SKEP_BIN=$(CURDIR)/target/release/skep $(CARGO) run --locked --release -p skep-tests --bin bench

bench-net:
	@deploy/setup.sh $(BUILD_PACKAGES) $(TEST_PACKAGES) $(BENCH_PACKAGES)
	$(CARGO) build --locked --release -p skep
	SKEP_BIN=$(CURDIR)/target/release/skep $(CARGO) run --locked --release -p skep-tests --bin bench -- net.

clean:
	$(CARGO) clean
