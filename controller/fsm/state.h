/* The replicated state of the cluster: tables of objects, their indexes, the ring of events and the answers given under
 * an Idempotency-Key. Only apply.h changes it; the same commands in the same order make the same state on every
 * controller, byte for byte in a snapshot. No clock, no random numbers, no I/O inside.
 *
 *   struct state -- table of each kind -- record -- object (struct vm, ...) and its canonical JSON, made at each change
 *                |                          +------ host: its VMs in name order and the sums promised to them
 *                |                          +------ host, VM: the running operations that it carries out or that concern it
 *                +- VMs that wait for a host, in name order
 *                +- events: the last STATE_EVENTS_MAX
 *                +- answers by key: the last STATE_ANSWERS_MAX, at most STATE_ANSWER_AGE_MS old by the time of commands
 *
 * Thread: none of its own. Readers and the one writer are kept apart by the caller (the read-write lock of
 * raft_machine); every pointer given out is good until the lock is let go. */
#ifndef CONTROLLER_FSM_STATE_H
#define CONTROLLER_FSM_STATE_H

#include "common/map.h"
#include "schema/objects.h"

#define STATE_EVENTS_MAX 10000u           /* events kept */
#define STATE_OPERATIONS_ENDED_MAX 10000u /* ended operations kept; running ones are bounded by the VMs */
#define STATE_ANSWERS_MAX 10000u          /* Idempotency-Keys remembered */
#define STATE_ANSWER_AGE_MS (UINT64_C(24) * 3600 * 1000)
#define STATE_VMS_MAX 100000u             /* VMs of a cluster */
#define STATE_HOST_VMS_MAX 4096u          /* VMs of a host: bound of node_orders.vms */
#define STATE_SMALL_TABLE_MAX 10000u      /* controllers, hosts, flavors, images, networks, ...: of each */
#define STATE_VM_OPERATIONS_MAX 64u       /* running operations of one VM */
#define STATE_HOST_TASKS_MAX 1024u        /* tasks of one host: bound of node_orders.tasks */
#define STATE_VM_SNAPSHOTS_MAX 100u       /* of one VM; each is a layer of each of its disks, which may have 128 */
#define STATE_HA_VOTERS_MIN 3u            /* controllers with a vote that ha needs: two can lose none */
#define STATE_RELOCATES_MAX 1u        /* relocates_max where the VM does not say */
#define STATE_RELOCATES_TRIED_MAX 16u
#define STATE_HA_RESTARTS_MAX 5u          /* vm.ha_restarts_max where not given */
#define STATE_HA_WINDOW_S 3600u           /* vm.ha_window_s where not given */
#define STATE_APART_LABEL "anti-affinity"
#define STATE_HA_PRIORITY 100u            /* vm.ha_priority where not given */
#define STATE_ID_BYTES 37u                /* an id with its NUL */

struct state;

/* The fields that every stored object begins with. */
struct record_common {
    struct object_head head;
    char *id, *name;
    uint64_t revision;
    char *created_at;
    struct string_map labels;
};

/* Records in name order. */
struct record_index {
    struct record **items;
    size_t count, capacity;
};

/* One object. Read-only for all but controller/fsm. */
struct record {
    enum object_kind kind;
    const struct object_desc *desc;
    union {
        void *object;
        struct record_common *common;
        struct cluster *cluster;
        struct controller *controller;
        struct host *host;
        struct flavor *flavor;
        struct image *image;
        struct vm *vm;
        struct operation *operation;
        struct token *token;
        struct network *network;
        struct security_group *security_group;
        struct snapshot *snapshot;
        struct backup_store *backup_store;
        struct backup *backup;
        struct backup_policy *backup_policy;
        struct pool *pool;
        struct volume *volume;
    };
    char *json; /* canonical, SECRET fields included (snapshots); answers: state_put_json */
    size_t json_size;
    union {
        struct {                     /* OBJECT host */
            struct record_index vms; /* that it owns */
            struct record_index tasks; /* running operations whose task names it as host or peer */
            uint64_t committed_memory_bytes;
            uint64_t committed_vcpus;
            uint64_t orders_index; /* see state_host_orders_index */
        } of_host;
        struct {                            /* OBJECT vm */
            struct record_index operations; /* running ones about it, tasks included */
        } of_vm;
        struct { /* OBJECT operation */
            struct record *older, *newer; /* ended ones, by (revision, id) */
        } of_operation;
    };
};

struct state *state_create(void);
/* NULL is fine. */
void state_destroy(struct state *state);

/* Index of the last command applied, 0 at first; X-Drover-Index. */
uint64_t state_index(const struct state *state);
/* Whether a cluster has been made (command init). */
bool state_initialized(const struct state *state);
/* The cluster, or NULL before init. */
const struct cluster *state_cluster(const struct state *state);
/* Controllers with a vote, by the table. */
unsigned state_voters(const struct state *state);

/* --- Objects (every kind but event) --- */

/* By id, or else by name; @length bytes of @id_or_name. NULL: none. */
const struct record *state_find(const struct state *state, enum object_kind kind, const char *id_or_name, size_t length);
/* The same for NUL-terminated text; NULL text gives NULL. */
const struct record *state_get(const struct state *state, enum object_kind kind, const char *id_or_name);

/* In name order (operations: in id order): for (size_t i = 0; i < state_count(s, k); i++) state_at(s, k, i). */
size_t state_count(const struct state *state, enum object_kind kind);
const struct record *state_at(const struct state *state, enum object_kind kind, size_t position);
/* Position of the first object whose name is greater than @name (a cursor: it need not exist any more). */
size_t state_after(const struct state *state, enum object_kind kind, const char *name);

/* The VMs that wait for a host (pending, recovering or released, not to be deleted), in name order: what reconcile has to place. Kept with each
 * change, so that a look at it costs what there is to do and not what there is. */
const struct record_index *state_waiting(const struct state *state);
/* As state_after, in @index. */
size_t record_index_after(const struct record_index *index, const char *name);

/* The VMs that @host owns: host->of_host.vms, in name order; what it carries out: host->of_host.tasks. The running
 * operations of a VM: vm->of_vm.operations. */

/* Is it off, or broken for good, by itself, whatever is wanted? */
static inline bool state_vm_ran_out(const struct vm *vm)
{
    return (vm->state == vm_state_STOPPED || vm->state == vm_state_FAILED) && vm->seen_generation >= vm->generation;
}

/* May another host have @vm where its own cannot start it? Said to its host with its orders. */
bool state_vm_may_relocate(const struct state *state, const struct vm *vm);
/* Has its host given up one that is to be started? It has promised, for good, to start nothing of this epoch any more (apply_seen.c): that
 * stands in for the loss of the host. A fact, also where no other host may have it by now: then its own has it again, under a new epoch. */
bool state_vm_released(const struct vm *vm);

/* What hosts know and the state does not, after a recovery from a survivor that lacked the end of the log (apply_recover.c). No
 * more than this many changes of one VM can be lost so; what is further ahead is no word to believe. */
#define STATE_GENERATIONS_LOST_MAX (UINT64_C(1) << 20)
#define STATE_RECOVER_SETTLE_MS 10000u /* how long after it nothing is placed: hosts say what they have */
#define STATE_STRAYS_RETURN_MS 600000u /* how long after it a host is believed that has a VM that was another's, or nobody's */

/* Has @host a VM under an epoch that the state has never had? It was started, or given to @host, by an order that is lost; higher epochs
 * than the state's can come of nothing else. */
bool state_vm_went_on(const struct state *state, const struct record *vm, const struct record *host, const struct vm_seen *seen,
                      const char *now);
/* Has its host carried out, in this very run, a generation that the state has never had? */
static inline bool state_generation_lost(const struct vm *vm, const struct vm_seen *seen)
{
    return seen->generation > vm->generation && seen->generation - vm->generation <= STATE_GENERATIONS_LOST_MAX;
}

/* Is the operation carried out as a task of hosts? Else it follows the VM's generation. */
static inline bool operation_has_task(const struct operation *operation)
{
    return OBJECT_HAS(operation, operation, task);
}
/* The VM that an operation is about, or NULL. */
const char *operation_vm_id(const struct operation *operation);
/* The one that makes the disks of @vm, which is a clone that is not whole yet; NULL: none. */
const struct operation *state_vm_made_by(const struct record *vm);
/* The operation that makes the snapshot that @operation, which makes a VM, was begun with: its host hears of it when that is there. NULL: it
 * waits for none (any more). */
struct record *state_clone_waits_for(const struct state *state, const struct operation *operation);
/* Value of a label of @vm, or NULL. */
const char *state_vm_label(const struct vm *vm, const char *key);
/* VMs with the same value of the label STATE_APART_LABEL are kept on different hosts: are these two, if they are two? */
bool state_vms_apart(const struct vm *vm, const struct vm *other);
/* Does @host hold one that @vm, which it may hold itself, is kept apart from? Apply judges by it, and all replicas alike, of whatever
 * version: what it counts stays as it is. The leader looks further where it decides (controller/command/host_view.h). */
bool state_host_apart(const struct record *host, const struct vm *vm);

/* The VMs that @host owns: host->of_host.vms, in name order. The running operations of a VM: vm->of_vm.operations. */

/* A migration that runs keeps room for its VM at its peer, until the VM is there: it counts in the host's sums. */
bool operation_keeps_room(const struct operation *operation);
/* One that boots a backup keeps room for that VM at its host, until it has ended: as well. */
static inline bool operation_boots(const struct operation *operation)
{
    return operation_has_task(operation) && operation->task.kind == task_kind_BACKUP_BOOT;
}
/* Append what a user may see of the object: secrets left out, a host with its committed sums. */
void state_put_json(const struct state *state, const struct record *record, struct bytes_writer *out);

/* Index of the last change to what @host is to do (node_orders): a long poll that has this index or a newer one
 * waits. */
uint64_t state_host_orders_index(const struct record *host);

/* --- Events --- */

struct state_event {
    uint64_t index;   /* Raft position; one command may have several */
    uint64_t serial;  /* 1 + the number of events ever before it: resume within an index */
    enum object_kind kind; /* of the object concerned */
    const char *json; /* struct event */
    size_t json_size;
};
/* The first event with an index above @after. True and *ret_event; false: none yet. */
bool state_event_after(const struct state *state, uint64_t after, struct state_event *ret_event);
/* The event with the next serial after @serial (0: the oldest held). */
bool state_event_next(const struct state *state, uint64_t serial, struct state_event *ret_event);
/* Whether every event above @after is still held; false: answer ERROR_GONE, the reader reads the lists again. */
bool state_events_complete(const struct state *state, uint64_t after);
uint64_t state_events_serial(const struct state *state); /* of the newest event, 0 = none */

/* --- Answers under an Idempotency-Key --- */

/* What was answered under @key, or NULL. */
const struct answer_record *state_answer(const struct state *state, const char *key);

#endif
