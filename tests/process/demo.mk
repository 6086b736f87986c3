# The demo: a cluster to look at, on real KVM where there is one, else in the lab.
.PHONY: demo demo-down

demo: programs guest-stock $(KVM_PROBE) ## three controllers, three hosts, a VM; breaks things and shows that they go on (BED=process|lab)
	@tests/process/demo up $(if $(BED),--bed $(BED))
demo-down:                      ## end the demo
	@tests/process/demo down
