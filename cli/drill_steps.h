/* What drills are made of: requests, waits, words. Only for cli/drill_*.c; the drills are in drill_run.c (a host, the leader),
 * drill_fault.c (cut off, slow disk), drill_quorum.c and drill_backup.c. */
#ifndef CLI_DRILL_STEPS_H
#define CLI_DRILL_STEPS_H

#include "cli/drill.h"

#define DRILL_WAIT_MORE_S 60 /* beyond a fault's own time, for what is to happen */

typedef bool (*drill_condition)(struct drill *d, const void *arg);

void drill_pause_us(int64_t us);
/* Something did not happen: the drill has failed. */
void drill_fail(struct drill *d, const char *format, ...) PRINTF_LIKE(2, 3);
/* For the timeline, and for whoever looks on. */
void drill_tell(struct drill *d, const char *format, ...) PRINTF_LIKE(2, 3);

int drill_get(struct drill *d, const char *path, json_t **ret, struct error *err);
/* @body may be NULL and is the caller's; *ret (may be NULL) is an operation, which is waited for. */
int drill_do(struct drill *d, const char *method, const char *path, const json_t *body, json_t **ret, struct error *err);
/* The next attempts go to the controller @name itself; false: it is not known. */
bool drill_turn_to(struct drill *d, const char *name);
bool drill_leads(struct drill *d, const char *controller);
int drill_hand_over(struct drill *d, const char *controller, struct error *err);

/* No other drill from now on, for some minutes; each order to a host makes it last anew. */
int drill_reserve(struct drill *d, struct error *err);
int drill_release(struct drill *d, struct error *err);
/* Of d->host, or of @controller itself. @more: further fields of the order, borrowed; may be NULL. */
int drill_order_host(struct drill *d, const char *fault, unsigned seconds, json_t *more, struct error *err);
int drill_order_controller(struct drill *d, const char *controller, const char *fault, unsigned seconds, json_t *more, struct error *err);

bool drill_wait(struct drill *d, drill_condition holds, const void *arg, unsigned seconds);
bool drill_controller_ready(struct drill *d, const void *name);
void drill_await_controller(struct drill *d, const char *controller);
void drill_await_writes(struct drill *d, const char *after);
/* The VMs of d->host execute elsewhere, then it is up again and clean (drill_run.c). */
void drill_await_failover(struct drill *d);
/* From the fault on so many seconds are over. */
void drill_await_end(struct drill *d, unsigned seconds);
int drill_await_operation(struct drill *d, const char *id, struct error *err);
void drill_note_put_back(struct drill *d, const char *what, int rc, const struct error *err);
/* A step of the report that is measured by the drill itself. */
void drill_step(struct drill *d, const char *name, int64_t begin_us);

/* drill_fault.c, drill_quorum.c, drill_backup.c */
int drill_run_network_partition(struct drill *d, struct error *err);
int drill_run_controller_partition(struct drill *d, struct error *err);
int drill_run_slow_disk(struct drill *d, struct error *err);
int drill_run_quorum_loss(struct drill *d, struct error *err);
int drill_run_backup_restore(struct drill *d, struct error *err);
/* Conditions of their own, put into d->checks; the result is whether all of them hold. */
bool drill_check_network_partition(struct drill *d);
bool drill_check_controller_partition(struct drill *d);
bool drill_check_quorum_loss(struct drill *d);
bool drill_check_backup_restore(struct drill *d);

#endif
