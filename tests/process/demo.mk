# The demo: a cluster to look at, on real KVM where there is one, else in the lab.
.PHONY: demo demo-down demo-parts

# Everything else in a make of its own: what is built depends on what `deps` has just installed.
demo: deps                      ## three controllers, three hosts, a VM; breaks things and shows that they go on (BED=process|lab)
	@$(MAKE) --no-print-directory -j$(JOBS) demo-parts
	@tests/process/demo up $(if $(BED),--bed $(BED))
demo-parts: programs guest-stock $(KVM_PROBE)
demo-down:                      ## end the demo
	@tests/process/demo down
