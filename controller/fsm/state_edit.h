/* Changing the state: for controller/fsm alone (apply, snapshot, check).
 *
 * A change of a record goes between state_edit_begin, which takes it out of the indexes that depend on its fields, and
 * state_edit_end, which puts it back, sets its revision and makes its JSON anew. Names go through state_rename. */
#ifndef CONTROLLER_FSM_STATE_EDIT_H
#define CONTROLLER_FSM_STATE_EDIT_H

#include "controller/fsm/state.h"

struct state_table {
    struct map by_id, by_name;
    struct record_index order;
};

struct state_event_slot {
    uint64_t index, serial;
    enum object_kind kind;
    char *json;
    size_t json_size;
};

struct state {
    uint64_t index;
    bool loading; /* a snapshot is being read: objects refer to others that are not there yet */
    struct state_table tables[object_kind_COUNT];
    struct map macs;                             /* of all VMs, see mac_index.h */
    struct record_index waiting;                 /* VMs: see state_waiting */
    struct record *ended_oldest, *ended_newest; /* ended operations by (revision, id) */
    size_t ended_count;
    struct state_event_slot *events; /* slot of serial s: (s - 1) % STATE_EVENTS_MAX */
    uint64_t events_serial;          /* of the newest; 0 = none ever */
    size_t events_count;
    struct map addresses;                /* of VMs' NICs on networks: address_pool.h */
    struct map answers;                  /* by key */
    struct answer_record **answer_queue; /* ring of STATE_ANSWERS_MAX, oldest at answer_first */
    size_t answer_first, answer_count;
};

/* Does @vm belong to state_waiting? Depends on nothing but its fields. */
bool state_vm_waits(const struct vm *vm);
const struct object_desc *state_kind_desc(enum object_kind kind); /* NULL for event */
size_t state_table_max(enum object_kind kind);

/* The mutable record of an id or name. */
struct record *state_edit_find(struct state *state, enum object_kind kind, const char *id_or_name);
/* A new object, taken over: *object is left zeroed. Its id and name must be free. Linked and with JSON. */
struct record *state_insert(struct state *state, enum object_kind kind, void *object, uint64_t revision);
void state_edit_begin(struct state *state, struct record *record);
void state_edit_end(struct state *state, struct record *record, uint64_t revision);
/* Outside of begin and end. */
void state_rename(struct state *state, struct record *record, const char *name);
/* Take it out and free it. */
void state_remove(struct state *state, struct record *record);
/* All objects of a snapshot are in: make the links that were left out. -EBADMSG where one refers to nothing. */
int state_link_all(struct state *state, struct error *err);
/* Drop the oldest ended operations beyond the limit. */
void state_prune_operations(struct state *state);
/* What is wanted of @host has changed (NULL is fine). */
void state_host_orders_changed(struct state *state, const char *host_id, uint64_t index);

/* @event is taken over. */
void state_add_event(struct state *state, struct event *event);
/* @record is taken over. */
void state_add_answer(struct state *state, struct answer_record *record);
/* Forget answers that are too old at @now_ms. */
void state_expire_answers(struct state *state, uint64_t now_ms);
const struct answer_record *state_answer_at(const struct state *state, size_t position); /* oldest first */

void record_index_add(struct record_index *index, struct record *record);
void record_index_remove(struct record_index *index, struct record *record);
bool record_index_has(const struct record_index *index, const struct record *record);

#endif
