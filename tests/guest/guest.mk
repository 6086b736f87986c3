# The test guest: a small system of our own that drover-vmm boots by PVH, on real KVM and on those that emulate.
.PHONY: guest
GUEST_CFLAGS = -std=gnu11 -O2 -g -Wall -Wextra -Werror -ffreestanding -fno-pic -fno-pie -mno-red-zone -mgeneral-regs-only \
               -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none -mcmodel=small

guest: build/guest/ticker.elf   ## build the test guest into build/guest

GUEST_SRC = tests/guest/entry.S tests/guest/guest_user.c tests/guest/guest_virtio.c tests/guest/guest_disk.c \
            tests/guest/guest_ledger.c tests/guest/guest_pair.c tests/guest/guest_net.c

build/guest/ticker.elf: $(GUEST_SRC) $(wildcard tests/guest/*.h) tests/guest/guest.ld tests/guest/guest.mk
	@mkdir -p $(@D)
	@echo '  guest $@'
	@gcc $(GUEST_CFLAGS) -nostdlib -static -no-pie -Wl,--build-id=none -Wl,-z,noexecstack -Wl,-z,max-page-size=4096 \
	    -Wl,--no-warn-rwx-segments -T tests/guest/guest.ld $(GUEST_SRC) -o $@

all: guest
