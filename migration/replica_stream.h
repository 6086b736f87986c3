/* One point of a VM's disks on its way to the host of its replica, over a connected stream socket.
 *
 *   source                               replica's host
 *          <---- HELLO {id, number}      what it has
 *   (opens images of all disks at one instant, as changed since that point where that is known)
 *          ----> POINT {epoch, whole, disks}
 *          ----> DATA, ZERO ...          written above the last point
 *          ----> END {frames}
 *          <---- DONE {number}           the point is complete, and lasts
 *          <---- REFUSED text            instead of DONE, at any moment
 *
 * A frame: u32 magic | u8 type | u8 disk | u16 zero | u64 offset | u64 size | u32 payload bytes | u32 CRC32C of the payload, little-endian,
 * and the payload. Lengths and places are checked by whoever receives them, and neither side trusts the other with more than the
 * content of the disks. A replica that has less than it was known to have - its host's disk has lost what it had said was there - is sent
 * all: what has changed since is known for its last point only. Whatever ends the connection before DONE leaves the last complete point (block/replica_store.h); where the
 * source does not hear DONE the point may be complete all the same: then the next one only sends more than it had to.
 *
 * Blocking, in processes of their own; sockets have timeouts that the caller sets. */
#ifndef MIGRATION_REPLICA_STREAM_H
#define MIGRATION_REPLICA_STREAM_H

#include "block/nbd_client.h"
#include "block/replica_store.h"

enum {
    REPLICA_FORMAT = 1,
    REPLICA_PIECE_BYTES = 1 << 20, /* of one DATA */
    REPLICA_TEXT_BYTES_MAX = 16 * 1024, /* of every other payload */
};

struct replica_source_disk {
    const char *name;
    struct block *block;
    /* As nbd_client_extent; NULL: that itself. */
    int (*extent)(struct block *b, uint64_t from, uint64_t end, struct nbd_extent *ret_extent, struct error *err);
};

struct replica_source {
    uint64_t epoch;
    const char *known_id;  /* the replica that had point @known_number, as far as is known; NULL: nothing is */
    uint64_t known_number;
    /* The replica has point @number (0: none, or it has lost some) of @id: open the disks at one instant, fill in `disks` and `count`, and set `whole` unless
     * each extent's `changed` is since then. */
    int (*open)(void *arg, struct replica_source *source, const char *id, uint64_t number, struct error *err);
    void (*sent)(void *arg, uint64_t done, uint64_t total); /* bytes looked at; may be NULL */
    void *arg;
    struct replica_source_disk disks[REPLICA_DISKS_MAX];
    unsigned count;
    bool whole;
};

struct replica_sent {
    char id[33];      /* of the replica */
    uint64_t number;  /* of the point that is complete */
    uint64_t bytes;   /* of content that were sent */
};

/* 0: the point is complete. */
int replica_send(int fd, struct replica_source *source, struct replica_sent *ret_sent, struct error *err);
/* One point into @store, of an owner of exactly @epoch. What is refused is told to the source as well. */
int replica_receive(int fd, struct replica_store *store, uint64_t epoch, struct error *err);

#endif
