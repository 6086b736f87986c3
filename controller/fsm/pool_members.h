/* Which hosts have a pool: the rules that apply, the sync with agents, placement and leases share.
 *
 *   named by the pool                      WANTED
 *      |  its host reports the directory with the right mark     PRESENT
 *      '- anything else that it reports                          ABSENT, with the reason
 *
 * A directory is known by the mark in its marker file (pool_marker), a random text that was written once: one for all hosts
 * of a shared pool, one for each host of the other kind. The first one that is reported is the right one for good, so a
 * directory that nothing is mounted on, or something else, is never taken for an empty pool: it has no marker, or another.
 * Who writes it: each host its own; of a shared pool the first one that is up, while no mark is known. Of a pool of Ceph the mark is what Ceph
 * says of itself: which cluster, and which pool there.
 *
 * Pure: no state of its own. */
#ifndef CONTROLLER_FSM_POOL_MEMBERS_H
#define CONTROLLER_FSM_POOL_MEMBERS_H

#include "controller/fsm/state.h"

/* Is what is in it on all of its hosts? */
bool pool_is_shared(const struct pool *pool);
/* What @host_id says of the pool, or NULL: it is not one of its hosts. */
struct pool_host *pool_member_find(const struct pool *pool, const char *host_id);
/* Has @host_id a directory of the pool that is no other host's, as far as is known? Not where one is mounted on two hosts by mistake: what
 * the one removes the other would miss. */
bool pool_member_is_alone(const struct pool *pool, const char *host_id);
/* Would what @host_id reports change it? Free room counts where it has changed by a 32nd of all. */
bool pool_member_differs(const struct pool *pool, const char *host_id, const struct pool_seen *seen);
/* Change it so. True: something that others look at has changed, *ret_marked: the mark of the pool or of this host is new. */
bool pool_member_see(struct pool *pool, const char *host_id, const struct pool_seen *seen, bool *ret_marked);
/* The members become the hosts that pool->hosts names; what those say that stay is kept. */
void pool_members_follow(const struct state *state, struct pool *pool);
/* The host is no more. True: it was one of them. */
bool pool_member_remove(struct pool *pool, const char *host_id);
/* What @host_id is to know of the pool; it is one of its hosts. *ret zeroed; the caller clears it. */
void pool_order_fill(const struct state *state, const struct pool *pool, const char *host_id, struct pool_order *ret);

/* What @operation, a clone of a VM, makes in @pool (a name; NULL: in the directory of its host); 0 of any other. */
uint64_t operation_cloned_bytes(const struct state *state, const struct operation *operation, const char *pool);
/* Room of @pool at @member that nobody is to have: what moves of volumes that are under way will need of it. And what is left. */
uint64_t pool_kept_bytes(const struct state *state, const struct pool *pool, const struct pool_host *member);
uint64_t pool_room_bytes(const struct state *state, const struct pool *pool, const struct pool_host *member);

/* Is a disk of @vm in pool @name? */
bool vm_in_pool(const struct vm *vm, const char *name);
/* The pool of those of @vm's disks that name none is forgotten where no disk is in it: nothing of the VM keeps it any more. */
void vm_pool_forget(struct vm *vm);
/* Has @vm disks in any pool? */
bool vm_has_pools(const struct vm *vm);
/* Are all of its disks where every host of a shared pool reaches them? True without disks. *ret_disk (may be NULL): the name
 * of one that is not. */
bool vm_disks_are_shared(const struct state *state, const struct vm *vm, const char **ret_disk);
/* A pool of @vm's disks that @host_id does not have (now), or whose volume is at another host, and in no replica that @host_id keeps; NULL: none. */
const char *vm_pool_missing(const struct state *state, const struct vm *vm, const char *host_id);
/* A pool of @vm's disks that has too little room at @host_id for those that are not made yet, or NULL. */
const char *vm_pool_full(const struct state *state, const struct vm *vm, const char *host_id);

#endif
