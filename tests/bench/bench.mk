# Benchmarks: figures for the promises of docs/ARCHITECTURE.md, on this machine.
.PHONY: bench-api
bench-api: $(BUILD)/bin/drover-controller $(BUILD)/tests/bench/bench_api $(BUILD)/tests/bench/bench_watch ## three controllers: writes, reads, watchers, stalls, 20,000 and 50,000 VMs
	@/usr/bin/python3 tests/bench/bench_api.py
