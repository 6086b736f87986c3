# Benchmarks: figures for the promises of docs/ARCHITECTURE.md, on this machine.
.PHONY: bench-api bench-fio bench-vmm bench-block bench-backup-latency bench-migration
bench-api: $(BUILD)/bin/drover-controller $(BUILD)/tests/bench/bench_api $(BUILD)/tests/bench/bench_watch ## three controllers: writes, reads, watchers, stalls, 20,000 and 50,000 VMs
	@/usr/bin/python3 tests/bench/bench_api.py

bench-block: $(BUILD)/tests/bench/bench_block ## the disk drivers without a guest: layers beside a raw file and beside what the device gives, three minutes
	@$<

bench-backup-latency: $(BUILD)/tests/bench/bench_backup_latency ## a guest's writes while its disk is backed up to a store of 5 MB/s, and while not; three minutes
	@$<

# Static: it runs in the stock guest, which has no libraries, and in a lab host.
build/bench/guest-bench: tests/bench/guest_bench.c
	@mkdir -p $(@D)
	$(call say,cc,$@)$(CC) -std=gnu11 -O2 -g -D_GNU_SOURCE $(WARN) -static $< -lpthread -o $@
bench-vmm: programs guest-stock build/bench/guest-bench $(BUILD)/tests/bench/bench_layers_make ## one lab host: drover-vmm beside QEMU microvm and pc, twenty minutes (ROUNDS=3 MINUTES=15)
	@tests/bench/bench_vmm

bench-fio: programs guest-stock $(BUILD)/tests/bench/bench_layers_make ## one lab host: fio on disks of a guest, drover-vmm's beside QEMU's raw and qcow2, twenty minutes (ROUNDS=3 MINUTES=15)
	@tools/deps bench && tests/bench/bench_vmm fio

bench-migration: programs guest ## live migration beside QEMU's over a limited link, an hour (RUNS=30); RUNS=2 ROWS=idle,100 for a look
	@/usr/bin/python3 tests/bench/bench_migration.py

.PHONY: bench-clone
bench-clone: $(BUILD)/tests/bench/bench_clone ## a bootable disk of a 10 GiB image, by the agent's own function: 50 ms are promised
	@$<

bench-backup: $(BUILD)/bin/drover-backup ## backups beside restic, borg, casync and qemu-img: a 3 GiB image, some minutes (ROUNDS=1)
	@tools/deps bench && tests/bench/bench_backup.py --rounds $(or $(ROUNDS),1)

.PHONY: bench-leases
bench-leases: $(BUILD)/bin/drover-controller $(BUILD)/tests/bench/bench_leases ## what leases of 50 hosts with 2,000 VMs cost three controllers, two minutes (HOSTS=50 VMS=2000 SECONDS_EACH=30)
	@/usr/bin/python3 tests/bench/bench_leases.py

.PHONY: drill-rounds
drill-rounds: programs guest    ## rounds of drills on the process bed, p50, p99 and the slowest of each kind (ROUNDS=10 BATCH=5 DRILL="host-loss leader-loss" KEEP=FILE)
	@/usr/bin/python3 tests/process/drill_rounds.py --rounds $(or $(ROUNDS),10) $(if $(BATCH),--batch $(BATCH)) $(if $(KEEP),--keep $(KEEP)) $(DRILL)
