/* Watching a cluster during a drill, from outside, by several threads at once:
 *
 *   a thread for each host     asks its agent what its VMMs execute, through any controller    -> drill_runs
 *   a thread of changes        one write after another, of a flavor's label                    -> the time between two answers
 *   a thread of the state      looks at hosts, VMs and who leads, as any controller holds them -> the timeline
 *
 * The last one asks for what the controller at hand holds (?consistency=stale): a cluster without a leader must not stop the
 * clock. All times are microseconds of CLOCK_MONOTONIC. Between start and stop the members of struct drill_watch are read
 * under its lock only. */
#ifndef CLI_DRILL_WATCH_H
#define CLI_DRILL_WATCH_H

#include <pthread.h>

#include "cli/client.h"
#include "cli/drill_runs.h"

#define DRILL_WATCH_HOSTS_MAX 64u
#define DRILL_WATCH_EVERY_US 100000
#define DRILL_WATCH_MOMENTS_MAX 2000u
#define DRILL_WATCH_GAPS_MAX 200u

enum drill_moment_kind {
    DRILL_HOST_STATE, /* subject: host; value: its state */
    DRILL_VM_HOST,    /* subject: VM; value: the host that owns it */
    DRILL_VM_STATE,   /* subject: VM; value: its state */
    DRILL_LEADER,     /* subject: controller that leads; value "" */
    DRILL_DONE,       /* subject: what was done by the drill itself */
};

struct drill_moment {
    int64_t at_us;
    enum drill_moment_kind kind;
    char subject[128], value[128];
};

struct drill_gap { /* no write was answered between the two */
    int64_t from_us, to_us;
};

struct drill_watch {
    const struct invocation *call;
    pthread_mutex_t lock;
    bool stop; /* under the lock */
    struct drill_runs runs;
    struct drill_moment *moments; /* owned */
    size_t moment_count;
    struct drill_gap gaps[DRILL_WATCH_GAPS_MAX]; /* of more than DRILL_WATCH_GAP_US */
    size_t gap_count;
    uint64_t writes, writes_failed;
    int64_t longest_gap_us; /* of any length */
    char flavor[64]; /* that is written to; removed at the end */
    struct drill_watcher {
        struct drill_watch *watch;
        struct client client;
        pthread_t thread;
        char host[64]; /* its name; "" = another kind of watcher */
        bool started;
    } watchers[DRILL_WATCH_HOSTS_MAX + 2];
    size_t watcher_count;
};

#define DRILL_WATCH_GAP_US 500000

int64_t drill_now_us(void);
/* A client that knows every controller of the list @controllers, for one thread. */
int drill_client(struct client *client, const struct invocation *call, const json_t *controllers, struct error *err);
/* @name: of the drill; the flavor is called so. On failure nothing is left. */
int drill_watch_start(struct drill_watch *watch, const struct invocation *call, const char *name, const json_t *controllers,
                      const json_t *hosts, struct error *err);
/* Threads end, the flavor is removed; what was seen stays until drill_watch_finish. */
void drill_watch_stop(struct drill_watch *watch);
void drill_watch_finish(struct drill_watch *watch);
/* Something that the drill did. Any thread. */
void drill_watch_note(struct drill_watch *watch, const char *what);
/* The first moment of this kind at or after @from_us, -1: none. @value NULL: any. Takes the lock. */
int64_t drill_watch_first(struct drill_watch *watch, enum drill_moment_kind kind, const char *subject, const char *value, int64_t from_us);

#endif
