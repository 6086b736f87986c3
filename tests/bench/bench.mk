# Benchmarks: figures for the promises of docs/ARCHITECTURE.md, on this machine.
.PHONY: bench-api
bench-api: $(BUILD)/bin/drover-controller $(BUILD)/tests/bench/bench_api ## writes/s, reads/s, lists and watchers of three controllers
	@/usr/bin/python3 tests/bench/bench_api.py
