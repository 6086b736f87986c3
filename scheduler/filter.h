/* Can a host hold the VM, and if not, for which reason? Filters in the order in which a person would name them. */
#ifndef SCHEDULER_FILTER_H
#define SCHEDULER_FILTER_H

#include "scheduler/view.h"

/* X(SYMBOL, "name in placement.rejected", "of hosts, in a summary") */
#define FILTERS(X)                                                                                                   \
    X(PASSED, "", "fit")                                                                                             \
    X(PIN, "pin", "excluded by its pin")                                                                             \
    X(CURRENT, "current", "that it is on already")                                                                   \
    X(STATE, "state", "not up")                                                                                      \
    X(DOWN, "going-down", "being shut down")                                                                         \
    X(SCHEDULABLE, "schedulable", "not schedulable")                                                                 \
    X(KVM, "kvm", "without KVM")                                                                                     \
    X(CPU_MODEL, "cpu-model", "whose processors cannot be the CPU model")                                            \
    X(APART, "anti-affinity", "with a VM that it is kept apart from")                                               \
    X(TRIED, "tried", "that could not start it")                                                                     \
    X(POOL, "pool", "without a pool of its disks")                                                                   \
    X(POOL_ROOM, "pool-room", "with too little room in a pool of its disks")                                         \
    X(DISK_ROOM, "disk-room", "with less room than its disks may take")                                              \
    X(MEMORY, "memory", "with too little memory")                                                                    \
    X(VCPUS, "vcpus", "with too few processors")

enum filter {
#define X(symbol, name, words) FILTER_##symbol,
    FILTERS(X)
#undef X
        FILTER_COUNT
};

/* What a host has of the pools that a VM's disks are in. */
enum place_pools { PLACE_POOLS_THERE, PLACE_POOLS_MISSING, PLACE_POOLS_FULL };

struct place_request {
    uint64_t memory_bytes;
    uint64_t vcpus;
    const char *pin; /* only the host of this name or id; NULL = any */
    const char *current; /* not the host of this id: it is to move from there; NULL = it may stay */
    enum cpu_kind cpu_model;
    const uint8_t *tried; /* of each host: 1 = it has tried to start it, and could not; NULL = none has */
    const uint8_t *apart; /* of each host: 1 = it holds a VM that this one is kept apart from; NULL = none does */
    uint64_t disk_bytes;  /* room for disks that come with it; 0: none do, or the room does not matter */
    const uint8_t *pools; /* of each host: enum place_pools; NULL = the VM has no disks in pools */
};

/* The first filter that refuses host @i, or FILTER_PASSED. */
enum filter filter_host(const struct scheduler_view *view, size_t i, const struct place_request *request);
const char *filter_name(enum filter filter);
const char *filter_words(enum filter filter);
/* Why host @i is refused by @filter, with the numbers: "needs 2048 MiB, 1024 of 8192 MiB are free". */
void filter_reason(const struct scheduler_view *view, size_t i, const struct place_request *request,
                   enum filter filter, char *buffer, size_t size);

#endif
