# One make, one graph. BUILD names a tree of its own for each kind of build, so kinds never mix.
# `make help` lists the targets.
KIND   ?= debug
BUILD  ?= build/$(KIND)
CC     := $(if $(filter default,$(origin CC)),gcc,$(CC))
SAN    ?=
COV    ?=
# V=1 shows the whole commands.
say      = $(if $(V),,@echo '  $(1) $(2)';)
JOBS   ?= $(shell nproc)
PKGS    = libuv openssl jansson libcurl liburing libzstd libmnl libseccomp libsodium
prefix ?= /usr/local

CFLAGS ?= -O2 -g
WARN    = -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wimplicit-fallthrough \
          -Wformat=2 -Wundef -Wwrite-strings -Wpointer-arith -Wno-format-nonliteral
HARDEN  = -fstack-protector-strong -fPIE $(if $(SAN)$(COV),,-D_FORTIFY_SOURCE=2)
override CFLAGS += -std=gnu11 -D_GNU_SOURCE -DOPENSSL_API_COMPAT=30000 -DOPENSSL_NO_DEPRECATED -I. -I$(BUILD) \
          $(WARN) $(HARDEN) -ffile-prefix-map=$(CURDIR)/= $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
override LDFLAGS += -pie -Wl,-z,relro,-z,now
LDLIBS  = $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lpthread
ifneq ($(SAN),)
# Instrumentation hides value ranges from gcc, and these two warnings then cry wolf; the plain build keeps them.
override CFLAGS += $(if $(findstring clang,$(CC)),,-Wno-format-truncation -Wno-maybe-uninitialized) -fsanitize=$(SAN) -fno-sanitize-recover=all -fno-omit-frame-pointer
endif
ifneq ($(COV),)
override CFLAGS += --coverage -O0
endif

# Rooms in the order of the include rule (tools/check_layers). A main.c is a program's, never its library's.
ROOMS    = common schema scheduler block migration backup compute controller cli
room_src = $(filter-out %/main.c,$(shell find $(1) -name '*.c' 2>/dev/null))
obj      = $(patsubst %,$(BUILD)/%.o,$(basename $(1)))
COMMON   = $(BUILD)/libcommon.a
# BLAKE3: the C and assembler files of Debian's package, built as they are.
BLAKE3_DIR = $(lastword $(sort $(wildcard /usr/share/cargo/registry/blake3-*/c)))
BLAKE3_SRC = blake3 blake3_dispatch blake3_portable \
             $(if $(filter x86_64%,$(shell uname -m)),$(foreach k,sse2 sse41 avx2 avx512,blake3_$(k)_x86-64_unix)) \
             $(if $(filter aarch64%,$(shell uname -m)),blake3_neon)
BLAKE3   = $(BUILD)/libblake3.a
CFLAGS_backup = -isystem $(BLAKE3_DIR)
LIBS_agent = $(foreach r,compute backup migration block schema common,$(BUILD)/lib$(r).a) $(BLAKE3)
LIBS_backup = $(foreach r,backup migration block schema common,$(BUILD)/lib$(r).a) $(BLAKE3)
LIBS_rbd = $(foreach r,block schema common,$(BUILD)/lib$(r).a)
LIBS_controller = $(foreach r,controller scheduler schema common,$(BUILD)/lib$(r).a)
LIBS_cli = $(foreach r,cli schema common,$(BUILD)/lib$(r).a)
LIBS_all = $(foreach r,cli controller compute backup migration block scheduler schema common,$(BUILD)/lib$(r).a) $(BLAKE3)
# An own raft_io needs symbols that only the static library has (docs/ARCHITECTURE.md, "Raft").
RAFT_LIB = $(firstword $(wildcard /usr/lib/*/libraft.a)) -llz4

PROGRAMS = $(patsubst %,$(BUILD)/bin/%,drover drover-controller drover-agent drover-vmm drover-backup drover-rbd)
main_drover            = cli/main.c
main_drover-controller = controller/main.c
main_drover-agent      = compute/agent/main.c
main_drover-vmm        = compute/vmm/main.c
main_drover-backup     = backup/main.c
main_drover-rbd        = compute/rbd/main.c
HAVE     = $(foreach p,drover drover-controller drover-agent drover-vmm drover-backup drover-rbd,$(if $(wildcard $(main_$(p))),$(BUILD)/bin/$(p)))

UNIT_SRC = $(shell find tests/unit -name 'test_*.c' 2>/dev/null)
FUZZ_SRC = $(shell find tests/fuzz -name 'fuzz_*.c' 2>/dev/null)
SIM_SRC  = $(shell find tests/sim -maxdepth 1 -name '*.c' 2>/dev/null)
UNIT     = $(UNIT_SRC:%.c=$(BUILD)/%)
FUZZ     = $(FUZZ_SRC:%.c=$(BUILD)/%)
BENCH_SRC = $(shell find tests/bench -name 'bench_*.c' 2>/dev/null)
BENCH    = $(BENCH_SRC:%.c=$(BUILD)/%)

.PHONY: help all deps unit check check-fast check-all layers fuzz fuzz-smoke sim install clean FORCE
.DELETE_ON_ERROR:
.SECONDARY:

all: $(HAVE)                    ## build the programs into build/<kind>/bin (KIND=debug|asan|tsan|clang|coverage)

help:                           ## this list
	@sed -nE 's/^([a-z][a-zA-Z0-9_-]*):[^#]*## (.*)/  make \1\t\2/p' Makefile tests/*/*.mk 2>/dev/null | expand -t 24

deps:                           ## install the Debian packages that are missing (root)
	@tools/deps

$(BUILD)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,cc,$@)$(CC) $(CFLAGS) $(CFLAGS_$(firstword $(subst /, ,$*))) -MMD -MP -c $< -o $@
$(BUILD)/%.o: %.S $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,cc,$@)$(CC) $(CFLAGS) -MMD -MP -c $< -o $@

define room_library
$(BUILD)/lib$(1).a: $(call obj,$(call room_src,$(1)))
	@mkdir -p $$(@D)
	@rm -f $$@ && $(AR) rcs $$@ $$^
endef
$(foreach r,$(ROOMS),$(eval $(call room_library,$(r))))

$(BUILD)/blake3/%.o: $(BLAKE3_DIR)/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,cc,$@)$(CC) -O3 -g -fPIE $(if $(filter aarch64%,$(shell uname -m)),-DBLAKE3_USE_NEON=1) -c $< -o $@
$(BUILD)/blake3/%.o: $(BLAKE3_DIR)/%.S $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,cc,$@)$(CC) -O3 -g -fPIE -c $< -o $@
$(BLAKE3): $(BLAKE3_SRC:%=$(BUILD)/blake3/%.o)
	@rm -f $@ && $(AR) rcs $@ $^

$(BUILD)/bin/drover: $(BUILD)/cli/main.o $(LIBS_cli)
	@mkdir -p $(@D)
	$(call say,link,$@)$(CC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -o $@
$(BUILD)/bin/drover-controller: $(BUILD)/controller/main.o $(LIBS_controller)
	@mkdir -p $(@D)
	$(call say,link,$@)$(CC) $(CFLAGS) $(LDFLAGS) $^ $(RAFT_LIB) $(LDLIBS) -o $@
$(BUILD)/bin/drover-agent: $(BUILD)/compute/agent/main.o $(LIBS_agent)
	@mkdir -p $(@D)
	$(call say,link,$@)$(CC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -o $@
$(BUILD)/bin/drover-vmm: $(BUILD)/compute/vmm/main.o $(LIBS_agent)
	@mkdir -p $(@D)
	$(call say,link,$@)$(CC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -o $@
$(BUILD)/bin/drover-backup: $(BUILD)/backup/main.o $(LIBS_backup)
	@mkdir -p $(@D)
	$(call say,link,$@)$(CC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -o $@
$(BUILD)/bin/drover-rbd: $(BUILD)/compute/rbd/main.o $(LIBS_rbd)
	@mkdir -p $(@D)
	$(call say,link,$@)$(CC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -o $@

# Unit tests, the simulator and benches may use every room.
$(UNIT) $(BENCH): %: %.o $(LIBS_all)
	@mkdir -p $(@D)
	$(call say,link,$@)$(CC) $(CFLAGS) $(LDFLAGS) $< -Wl,--start-group $(LIBS_all) -Wl,--end-group $(RAFT_LIB) $(LDLIBS) -lcmocka -o $@
$(BUILD)/tests/sim/sim: $(call obj,$(SIM_SRC)) $(LIBS_all)
	@mkdir -p $(@D)
	$(call say,link,$@)$(CC) $(CFLAGS) $(LDFLAGS) $(call obj,$(SIM_SRC)) -Wl,--start-group $(LIBS_all) -Wl,--end-group $(RAFT_LIB) $(LDLIBS) -o $@
$(FUZZ): %: %.o $(LIBS_all)
	@mkdir -p $(@D)
	$(call say,link,$@)$(CC) $(CFLAGS) $(LDFLAGS) -fsanitize=fuzzer $< -Wl,--start-group $(LIBS_all) -Wl,--end-group $(RAFT_LIB) $(LDLIBS) -o $@

# Rewritten only when the flags change: a new flag rebuilds everything, an old one nothing.
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(CC) $(CFLAGS)' | cmp -s - $@ || printf '%s\n' '$(CC) $(CFLAGS)' > $@
FORCE:

unit: $(UNIT)                   ## build the unit tests of this kind
programs: $(HAVE)

# The kinds: trees of their own beside build/debug.
kind = $(MAKE) --no-print-directory -j$(JOBS)
kind-debug:    ; @$(kind) KIND=debug all unit
kind-asan:     ; @$(kind) KIND=asan SAN=address,undefined CFLAGS='-O1 -g' all unit
kind-tsan:     ; @$(kind) KIND=tsan SAN=thread CFLAGS='-O1 -g' all unit
kind-clang:    ; @$(kind) KIND=clang CC=clang all unit
kind-coverage: ; @$(kind) KIND=coverage COV=1 all unit
fuzz-build:    ; @$(kind) KIND=fuzz CC=clang SAN=fuzzer-no-link,address,undefined CFLAGS='-O1 -g' fuzz-targets
fuzz-targets: $(FUZZ)

layers:                         ## refuse includes against the rule of docs/ARCHITECTURE.md
	@tools/check_layers
check-fast: layers kind-debug   ## unit tests of the debug build only: for every commit
	@tools/run_tests --suite fast
check: deps                     ## install what is missing, build, run every fast test; ends "N passed, N failed, N skipped"
	@tools/run_tests --suite check
check-all: deps                 ## check, and the slow suites as well
	@tools/run_tests --suite all
sim: $(BUILD)/tests/sim/sim     ## the simulator: make sim SEEDS=2000
	@$< --seeds $(or $(SEEDS),2000)
fuzz: fuzz-build                ## every fuzz target for SECONDS_EACH (60)
	@tools/run_tests --suite fuzz --fuzz-seconds $(or $(SECONDS_EACH),60)

install: all                    ## install programs, units, man pages and documents under DESTDIR and prefix
	for p in $(notdir $(HAVE)); do install -D -m 755 $(BUILD)/bin/$$p $(DESTDIR)$(prefix)/bin/$$p; done
	for u in controller/drover-controller.service compute/agent/drover-agent.service; do \
	    sed 's#/usr/local/#$(prefix)/#' $$u | install -D -m 644 /dev/stdin $(DESTDIR)$(prefix)/lib/systemd/system/$$(basename $$u); done
	tools/man_pages $(BUILD)/bin $(DESTDIR)$(prefix)/share/man
	install -D -m 644 -t $(DESTDIR)$(prefix)/share/doc/drover docs/*.md LICENSE

clean:                          ## remove every build tree
	rm -rf build

-include tests/lab/lab.mk tests/process/demo.mk tests/bench/bench.mk tests/guest/guest.mk
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
