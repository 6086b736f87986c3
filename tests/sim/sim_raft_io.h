/* libraft's raft_io on the simulated disk, network and clock, with the guards of controller/raft around it: the real
 * Raft core runs in the simulator, only raft_uv and its files do not.
 *
 * Every call into libraft goes through sim_raft_io_call, because it may end in a way that no C function returns from:
 * guard C ends the server (raft_guard.h). When libraft crashes or aborts, so does the seed's process: it has failed. */
#ifndef TESTS_SIM_SIM_RAFT_IO_H
#define TESTS_SIM_SIM_RAFT_IO_H

#include "controller/raft/raft_guard.h"
#include "tests/sim/sim_disk.h"
#include "tests/sim/sim_network.h"

#include <setjmp.h>

struct sim_raft_io;

/* libraft's allocator: zeroed memory, so that not even unset bytes differ between two runs. */
struct sim_raft_heap {
    struct raft_heap heap;
};
void sim_raft_heap_install(struct sim_raft_heap *heap);

struct sim_raft_mutations { /* what is broken on purpose: guards of raft_guard.h that are off */
    bool no_install_guard, no_snapshot_guard, no_metadata_guard, no_send_guard, no_term_guard, no_change_guard,
        no_configuration_guard, no_leftover_guard, no_batch_guard, no_cut_guard, no_alone_guard,
        no_vote_guard, no_candidate_guard, no_last_vote_guard, no_unwritten_guard;
};

struct sim_raft_io {
    struct raft_guard guard; /* its io is libraft's */
    struct sim *sim;
    struct sim_network *network;
    struct sim_actor *actor;
    struct sim_disk *disk;
    struct raft *raft;
    struct sim_raft_io *(*peer)(struct sim_raft_io *io, raft_id id); /* NULL: no such controller */
    void (*ended)(struct sim_raft_io *io, const char *why); /* the process is gone */
    unsigned metadata_faults_per_thousand; /* writes of term or vote that fail */
    unsigned send_held_ms;           /* the longest time for which the memory of a message is held, when it is */
    unsigned send_held_per_thousand; /* of messages that get through; of those that do not, half are */
    unsigned tick_ms;
    raft_io_tick_cb tick;
    raft_io_recv_cb recv;
    int (*guarded_send)(struct raft_io *, struct raft_io_send *, const struct raft_message *, raft_io_send_cb);
    struct sim_raft_mutations broken;
    raft_io_tick_cb libraft_tick; /* mutation: libraft's own, behind the guards */
    raft_io_recv_cb libraft_recv;
    struct raft_change *kept_change; /* mutation: what guard I takes away is given back */
    bool gives_back;
    bool kept_disrupt, kept_pre_vote; /* the same of guard Q */
    bool inside; /* a call into libraft is under way */
    jmp_buf escape;
    const char *end_why;
    char address[16];
};

/* Fill all but what the caller sets: sim .. metadata_faults. @raft is about to be raft_init'ed with &io->guard.io. */
void sim_raft_io_init(struct sim_raft_io *io, const struct sim_raft_mutations *mutations);
/* Run @fn, which may call libraft; afterwards fire what libraft has completed. Nested calls just run. */
void sim_raft_io_call(struct sim_raft_io *io, void (*fn)(struct sim_raft_io *io, void *arg), void *arg);

#endif
