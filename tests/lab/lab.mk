# The lab: whole Debian hosts with KVM, without hardware virtualization; tests/lab/lab says more.
.PHONY: guest-stock kvm-probe lab-cloud lab-down lab-drills lab-fault lab-firmware lab-guest-work lab-hotplug lab-judge \
    lab-kernel-messages lab-migrate lab-network lab-nfs lab-run lab-share lab-smoke lab-snapshot lab-ssh lab-status lab-test lab-up
export LAB
KVM_PROBE = $(CURDIR)/build/lab/kvm-probe

# Static: it runs on this machine and inside a lab host.
$(KVM_PROBE): tests/lab/kvm_probe.c
	@mkdir -p $(@D)
	$(call say,cc,$@)$(CC) -std=gnu11 -O2 -g -D_GNU_SOURCE $(WARN) -static $< -o $@
kvm-probe: $(KVM_PROBE)         ## say whether this machine's KVM can run a stock kernel, and if not, why
	@$< || [ $$? = 1 ]

lab-up: guest-stock             ## start the lab: HOSTS=3 whole Debian hosts with KVM (first time about 100 s, then 2 s)
	@tests/lab/lab up $(or $(HOSTS),3)
lab-down:                       ## end the lab, whatever state it is in
	@tests/lab/lab down
lab-status:                     ## the lab's hosts and faults
	@tests/lab/lab status
lab-run:                        ## a command on a lab host: make lab-run HOST=1 CMD='uname -a'
	@tests/lab/lab run '$(HOST)' '$(subst ','\'',$(value CMD))'
lab-ssh:                        ## a shell on a lab host: make lab-ssh HOST=2
	@tests/lab/lab ssh '$(HOST)' $(CMD)
lab-share:                      ## give the running lab hosts the programs as they are built now (/mnt/share)
	@tests/lab/lab share
lab-fault:                      ## break something: make lab-fault FAULT="cut 1 2" (power, isolate, freeze...; tests/lab/lab)
	@tests/lab/lab fault $(FAULT)
lab-smoke: programs guest-stock ## one lab host, one VM by hand
	@tests/lab/smoke
lab-snapshot: programs guest-stock ## one lab host: a stock guest at work, saved and restored (PAGES=2m: memory of huge pages)
	@tests/lab/snapshot
lab-network:                    ## one lab host: VLAN, bridge, DHCP, packet rules with connection tracking (3 minutes)
	@tests/lab/network_drill
lab-hotplug: programs guest-stock ## hot plug, limits and failing disks with a stock guest, two minutes
	@tests/lab/hotplug
lab-firmware: programs          ## one lab host, a whole Debian disk through SeaBIOS and OVMF (FIRMWARE=bios|uefi), 10 minutes
	@tests/lab/firmware $(FIRMWARE)
lab-guest-work: programs        ## one lab host, a whole Debian at work: agent, balloon, vsock, fio, stress-ng, iperf3, 20 minutes
	@tests/lab/guest-work
lab-judge: programs             ## one lab host: kvm-unit-tests (KVM_UNIT_TESTS=DIRECTORY) saved and restored on their way, an hour
	@tests/lab/judge $(KVM_UNIT_TESTS)
lab-cloud: programs             ## one lab host, a cluster, a Debian disk with cloud-init: name, key, address, user-data, 15 minutes
	@tests/lab/cloud
lab-drills: programs guest      ## three lab hosts, a cluster, each kind of drill once (DRILL=host-loss for one), a host that stands still; 20 minutes
	@tests/lab/drills $(DRILL)
lab-nfs: programs guest         ## two lab hosts, a cluster: an NFS server that is cut off and loses its power under VMs, 12 minutes
	@tests/lab/nfs
lab-migrate: programs           ## two lab hosts, a cluster: a Debian at work (stress-ng, fio, iperf3, its clock) migrated ROUNDS=20 times, an hour
	@tests/lab/migrate $(ROUNDS)
lab-kernel-messages: programs   ## one lab host, what a stock kernel complains of under our VMM and not under QEMU, 5 minutes
	@tests/lab/kernel-messages
lab-test:                       ## the lab's own test, about a minute
	@tests/lab/selftest
guest-stock:                    ## build the stock Debian guest (kernel, initrd, disk) into build/guest
	@tests/lab/guest/build
