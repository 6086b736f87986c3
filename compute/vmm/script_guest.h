/* The guest that is a program in C (accel_none.h): what tests/guest/guest_user.c does on a processor, and a driver for
 * virtio disks. Words of its command line:
 *
 *   halt=N, reset=N, fault=N, dirty=MIB, quiet   as there
 *   disk       drive every virtio disk there is, also those that are plugged in later: at each tick a block is written,
 *              then read back and compared
 *
 * It says on its console, besides what the test guest says (hello, ticks, echoes):
 *   disk 3 here, 2048 sectors         slot 3: found, or plugged in; "disk 3 has 4096 sectors": it grew
 *   disk 3 verified 7                 seven blocks have come back as they were written
 *   disk 3 wrong, disk 3 failed       they have not; or the device said that it could not
 *   disk 3 gone                       it was asked to let go, and has ejected it
 *
 * It is entered for a step, does what there is to do, and returns: it never waits, and keeps nothing on its stack or in
 * variables of its own, only in the guest's memory (from SCRIPT_STATE on). So it is wherever its memory is. */
#ifndef COMPUTE_VMM_SCRIPT_GUEST_H
#define COMPUTE_VMM_SCRIPT_GUEST_H

#include "common/base.h"

#define SCRIPT_STATE 0x800000ull   /* guest-physical: its variables; above what is loaded, below what `dirty` uses */
#define SCRIPT_RINGS 0x810000ull   /* SCRIPT_RING_BYTES for each slot */
#define SCRIPT_RING_BYTES 0x10000ull
#define SCRIPT_RIP 0x5c121e7ull    /* where its processor is once it has begun */
#define SCRIPT_TICK_MS 100

/* ---- its processor; accel_none.c. Only within a step, from the guest's thread. ---- */

struct script;

uint64_t script_in(struct script *s, uint16_t port, unsigned size);
void script_out(struct script *s, uint16_t port, unsigned size, uint64_t value);
/* An address that is not memory. @size 1, 2, 4 or 8. */
uint64_t script_load(struct script *s, uint64_t address, unsigned size);
void script_store(struct script *s, uint64_t address, unsigned size, uint64_t value);
/* @size bytes of memory, to be read or (then they count as written) also written; never NULL: a guest that has less memory
 * than it uses ends with a triple fault, and gets a page of nobody's. */
void *script_memory(struct script *s, uint64_t gpa, uint64_t size, bool write);
/* The next interrupt that has come by a message; false: none. */
bool script_take_interrupt(struct script *s, uint8_t *ret_vector);
bool script_line_is_high(struct script *s, unsigned line);
void script_triple_fault(struct script *s);

/* ---- the program ---- */

/* The processor was reset: begin. @start_info: address of hvm_start_info. */
void script_guest_boot(struct script *s, uint64_t start_info);
/* Interrupts have come, or it is time for the next tick, or both. */
void script_guest_step(struct script *s, bool tick);

/* script_disk.c: the driver of one virtio disk. */
struct script_disk {
    uint32_t here, busy; /* busy: which request is under way, 0: none */
    uint64_t bar, sectors, verified;
    uint16_t avail, used;
    uint16_t unused[2];
};
void script_text(struct script *s, const char *text);
void script_number(struct script *s, uint64_t number);
/* Look whether @slot has a disk, and start it. */
void script_disk_find(struct script *s, struct script_disk *disk, unsigned slot);
/* Its interrupts: @config: it has changed; else a request may be done. */
void script_disk_interrupt(struct script *s, struct script_disk *disk, unsigned slot, bool config);
/* Write the next block, unless it is at something. */
void script_disk_write(struct script *s, struct script_disk *disk, unsigned slot);
/* The vectors of @slot: this one for its configuration, the next for its queue. */
#define SCRIPT_DISK_VECTOR(slot) ((uint8_t)(0x40 + 2 * (slot)))

#endif
