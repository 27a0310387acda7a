# pyinit1: everything that is fetched or built is kept in CACHE, never in the checkout. `make` alone is help.

HOST := $(shell dpkg --print-architecture)
ARCH := $(HOST)
OTHER := $(if $(filter arm64,$(HOST)),amd64,arm64)
CACHE := $(or $(PYINIT1_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pyinit1)
PYTEST := $(CACHE)/venv/bin/python -B -m pytest -p no:cacheprovider
export PYINIT1_CACHE := $(CACHE)
export PYTHONDONTWRITEBYTECODE := 1

# What only root can install: a command, and the Debian package that has it.
QEMU_amd64 := qemu-system-x86_64:qemu-system-x86
QEMU_arm64 := qemu-system-aarch64:qemu-system-arm
BOOT_NEEDS = python3:python3 $(QEMU_$(ARCH))
SOAK_NEEDS = $(BOOT_NEEDS) /sbin/mke2fs:e2fsprogs
TEST_NEEDS = $(BOOT_NEEDS) $(QEMU_$(OTHER)) /sbin/mke2fs:e2fsprogs tini:tini podman:podman docker:docker.io ensurepip:python3-venv strace:strace \
             cpio:cpio fakeroot:fakeroot
BENCH_NEEDS = python3:python3 tini:tini dumb-init:dumb-init catatonit:catatonit docker:docker.io gnuplot:gnuplot-nox

# Of the scenarios with disks, with updates, with faults, and on the other architecture a handful, so that it stays under 15 minutes;
# `vm-test/run` alone, and with --arch, runs them all.
SOME := disk-busy-writer disk-names disk-stacked root-on-a-disk root-upgraded update-crashes-at-once crash-once \
        fault-remount fault-reboot-eio fault-clock-end fault-no-ctypes-poweroff
SCENARIOS = $(shell vm-test/run --list | awk '$$1 !~ /^(disk|root|zinit|update|crash|pids|fault)/ { print $$1 }') $(SOME)
ON_OTHER := boot poweroff-link soft-restart reboot-refused disk-busy-writer root-on-a-disk fault-reboot-eio

.PHONY: help boot test faults faults-vm fuzz soak interop clean boot-needs soak-needs test-needs venv

help:           ## this text
	@sed -n 's/^\([a-z-]*\): .*## /    make \1	/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24

boot: boot-needs ## a machine on this terminal, pyinit1.py as its /init (ARCH=amd64; ZINIT=DIR: the real zinit-server of DIR)
	@vm-test/run --boot --arch $(ARCH) $(if $(ZINIT),--zinit '$(ZINIT)')

test: test-needs venv ## every test: pure functions, namespaces, Docker, and machines in QEMU; 15 minutes at most
	@status=0; \
	$(PYTEST) -q tests --ignore=tests/interop || status=1; \
	vm-test/run --arch $(HOST) --jobs 2 $(SCENARIOS) || status=1; \
	vm-test/run --arch $(OTHER) --jobs 2 $(ON_OTHER) || status=1; \
	vm-test/faults.py --arch $(HOST) --jobs 2 few || status=1; \
	exit $$status

soak: soak-needs ## N=200 machines that end at random, with what misbehaves; their disks checked (SEED=, ARCH=, JOBS=2, INIT=FILE)
	@vm-test/soak.py --arch $(ARCH) --jobs $(or $(JOBS),2) $(if $(SEED),--seed $(SEED)) $(if $(INIT),--init '$(INIT)') $(or $(N),200)

faults: test-needs venv ## an exception at every line of pyinit1.py that is executed, one run each: 7 minutes
	@PYINIT1_FAULTS=all $(PYTEST) -q tests/test_crash.py

faults-vm: soak-needs ## the same for what only a machine executes, one machine a line: an hour (N=all lines, SEED=, ARCH=, JOBS=2, INIT=FILE)
	@vm-test/faults.py --arch $(ARCH) --jobs $(or $(JOBS),2) $(if $(SEED),--seed $(SEED)) $(if $(INIT),--init '$(INIT)') $(or $(N),all)

fuzz:           ## N=1000 random schedules of signals, deaths, updates, crashes and ends, against a model (SEED=, JOBS=4, INIT=FILE): ten minutes
	@tests/fuzz.py --jobs $(or $(JOBS),4) $(if $(SEED),--seed $(SEED)) $(if $(INIT),--init '$(INIT)') $(or $(N),1000)

interop: test-needs venv ## the tests over the real zinit-server, built once by cargo (5 minutes; Rust 1.88 or newer)
	@python3 tests/interop/build_zinit.py
	@$(PYTEST) -q tests/interop

.PHONY: bench bench-needs
bench: bench-needs ## pyinit1 side by side with tini, dumb-init, catatonit, zinit-pid1: 4 minutes (PLOT=FILE.svg: a picture too)
	@tests/bench/run $(if $(PLOT),--plot '$(PLOT)')

clean:          ## delete what was fetched and built
	rm -rf '$(CACHE)/packages' '$(CACHE)/venv' '$(CACHE)'/zinit-*
	find . -name __pycache__ -type d -exec rm -rf {} +

# Installs what is missing, or says the one command that does. ensurepip is a module and no command; Debian keeps it apart.
define install
	@missing=; for need in $(1); do \
	    case $$need in \
	    ensurepip:*) /usr/bin/python3 -c 'import ensurepip' 2>/dev/null ;; \
	    *) command -v $${need%%:*} >/dev/null ;; \
	    esac || missing="$$missing $${need#*:}"; \
	done; \
	test -z "$$missing" && exit; \
	line="apt-get install -y --no-install-recommends$$missing"; \
	if test "$$(id -u)" = 0; then \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive $$line; \
	else \
	    echo "missing, and only root can install it:" >&2; echo "    sudo $$line" >&2; exit 1; \
	fi
endef

boot-needs:
	$(call install,$(BOOT_NEEDS))

soak-needs:
	$(call install,$(SOAK_NEEDS))

test-needs:
	$(call install,$(TEST_NEEDS))

bench-needs:
	$(call install,$(BENCH_NEEDS))

# pytest, in an environment of its own; the mark comes last, so an interrupted one is made again.
venv: test-needs
	@mkdir -p '$(CACHE)'
	@flock '$(CACHE)/venv.lock' sh -c 'test -e "$(CACHE)/venv/complete" || { \
	    /usr/bin/python3 -m venv --clear "$(CACHE)/venv" && "$(CACHE)/venv/bin/pip" install -q --disable-pip-version-check pytest && \
	    touch "$(CACHE)/venv/complete"; }'
