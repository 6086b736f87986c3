/* The whole state as bytes and back: raft_machine.snapshot and .restore. Equal states give equal bytes.
 *
 * Little-endian:
 *   0  u32 magic "DRVF"   4  u16 version     6  u16 zero
 *   8  u64 index          16 u64 serial of the newest event
 *   24 u32 sections       28 u32 zero
 *   each section: u32 kind (SNAPSHOT_...), u32 count, then count times {u32 length, canonical JSON of the object}
 *
 * Version 1 has the sections 1 to 10; version 2 those that have objects of the later numbers besides. A state without
 * such objects is written as version 1, so that an older program can still read it.
 * Sections in order of their numbers; objects in name order, events and answers oldest first. Integrity of the bytes is
 * raft_frame.h's (CRC32C around this); the reader here trusts nothing all the same. Golden bytes: schema/golden/. */
#ifndef CONTROLLER_FSM_SNAPSHOT_H
#define CONTROLLER_FSM_SNAPSHOT_H

#include "controller/fsm/state.h"

#define SNAPSHOT_MAGIC 0x46565244u /* "DRVF" */
#define SNAPSHOT_VERSION 2u /* written where the state has objects that version 1 had no sections for */
#define SNAPSHOT_RECORD_BYTES_MAX (1u << 20)

/* Numbers are permanent. */
enum snapshot_section {
    SNAPSHOT_CLUSTER = 1,
    SNAPSHOT_CONTROLLERS = 2,
    SNAPSHOT_HOSTS = 3,
    SNAPSHOT_FLAVORS = 4,
    SNAPSHOT_IMAGES = 5,
    SNAPSHOT_VMS = 6,
    SNAPSHOT_OPERATIONS = 7,
    SNAPSHOT_TOKENS = 8,
    SNAPSHOT_EVENTS = 9,
    SNAPSHOT_ANSWERS = 10,
    /* from version 2, only where there are any */
    SNAPSHOT_NETWORKS = 11,
    SNAPSHOT_SECURITY_GROUPS = 12,
    SNAPSHOT_SNAPSHOTS = 13,
    SNAPSHOT_BACKUP_STORES = 30,
    SNAPSHOT_BACKUPS = 31,
    SNAPSHOT_BACKUP_POLICIES = 32,
    SNAPSHOT_POOLS = 90,
    SNAPSHOT_VOLUMES = 91,
};

/* Append the state to @out. */
void snapshot_write(const struct state *state, struct bytes_writer *out);
/* Build a state from @data. -EPROTONOSUPPORT: of a newer version; -EBADMSG: damaged; each with a sentence. */
int snapshot_read(const void *data, size_t size, struct state **ret_state, struct error *err);
/* Exchange the contents of two states: all of a restore that readers have to wait for. Pointers into both are void. */
void snapshot_exchange(struct state *a, struct state *b);
/* Replace the content of @state in place: built aside, then exchanged, so that a failure leaves @state as it was. */
int snapshot_restore(struct state *state, const void *data, size_t size, struct error *err);

#endif
