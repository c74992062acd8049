# weir. `make demo` and `make test` are all that a fresh Debian or Ubuntu with a Rust toolchain and
# root needs: what they use, they install.

CHECK ?=
DEMO_FLAGS = $(if $(CHECK),--check)
TARGET = $(abspath $(or $(CARGO_TARGET_DIR),target))

.PHONY: demo test soak fuzz bench ebpf image release fmt lint packages

# Not a release build: that takes twice as long, and what forwards is the kernel's program, which is the
# same in both.
## demo: a mesh of three hosts on this machine, left running until Ctrl-C; CHECK=1: asks it itself
demo: packages
	cargo build --quiet -p weir -p weir-tests --bin weir --bin weir-lab --bin weir-lab-task
	WEIR_BIN=$(TARGET)/debug/weir $(TARGET)/debug/weir-lab $(DEMO_FLAGS)

## test: everything: lints, unit tests, packet cases, and the lab
test:
	.ci/packages --swarm --browser --prometheus
	.ci/test

## soak: a Swarm under load for three quarters of an hour: 40 rolling updates, idle connections, restarts
soak:
	.ci/packages --swarm
	.ci/soak

## fuzz: nonsense for what weir reads from others, a minute in all; longer: .ci/fuzz SECONDS
fuzz: packages
	.ci/fuzz

## bench: peers side by side in one run; see bench/README.md
bench: packages
	.ci/bench

## ebpf: rebuild the kernel object that the loader carries
ebpf: packages
	ebpf/build.sh

## release: a static program and a .deb, in target/dist
release:
	.ci/packages --release
	deploy/release.sh $(TARGET)/dist

## image: target/image/weir.tar, for docker load; loaded where a Docker daemon answers
image: packages
	WEIR_COMMIT=$$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown) cargo build --quiet --release -p weir
	deploy/image.sh $(TARGET)/image/weir.tar weir:latest "$$(cat deploy/image.json)" $(TARGET)/release/weir
	@ls -l $(TARGET)/image/weir.tar
	@if docker version >/dev/null 2>&1; then docker load -i $(TARGET)/image/weir.tar; fi

fmt:
	cargo fmt --all
	cd ebpf/programs && cargo fmt

lint:
	cargo fmt --all --check
	cd ebpf/programs && cargo fmt --check
	cargo clippy --quiet --workspace --all-targets --all-features -- -D warnings
	cd ebpf/programs && cargo clippy --quiet --lib --tests -- -D warnings

packages:
	@.ci/packages
