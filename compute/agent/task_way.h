/* A task with a timer, a tunnel to the other host of the operation, and a child or a call: what tasks that bring something from one host to
 * the other have in common, and how all of it ends.
 *
 *   task_way_init --> the timer: ops->look --> ... task_way_open --> ops->listening --> ...
 *        --task_way_over--> tunnel, child and call end, and the timer --> ops->freed --> agent_task_end, or agent_task_stopped
 *
 * Embedded in the kind's own state. Nothing of the kind is called after ops->freed. Threads: the loop's. */
#ifndef COMPUTE_AGENT_TASK_WAY_H
#define COMPUTE_AGENT_TASK_WAY_H

#include "compute/agent/agent_task.h"

#define TASK_WAY_BEGINS "r" /* names of sockets in the agent's own directory; those of VMs begin with digits of their ids */

struct task_way;
struct http_call;
struct local_vm;
struct task_child;
struct tunnel_child;

struct task_way_ops {
    /* The timer, or a changed order: what is to be done next. */
    void (*look)(struct task_way *w);
    /* The tunnel listens: this host's at w->path (main), or (peer) at @endpoint. Not after the end. */
    void (*listening)(struct task_way *w, const char *endpoint);
    /* The tunnel could not be made, or has ended. Not after the end. */
    void (*failed)(struct task_way *w, int code, const char *text);
    /* All has ended: put into the task's report what is to be told besides, and free what @w is embedded in. */
    void (*freed)(struct task_way *w);
};

struct task_way {
    const struct task_way_ops *ops;
    struct agent_task *task;
    struct agent *agent;
    char vm[37];
    char *path; /* the Unix socket between tunnel and child or VMM; owned */
    uv_timer_t timer;
    struct tunnel_child *tunnel;
    struct task_child *child; /* the kind's to begin; NULL again, with task_way_finish, when it has ended */
    struct http_call *call;   /* the same */
    bool yielding;            /* something else comes first: whatever fails now is cancelled */
    bool over;
    struct error err; /* why it ends, where it does not succeed */

    enum operation_state state; /* from task_way_over on */
    bool tunnel_closing, timer_closed;
};

/* Of @task, whose state is the kind's own; the first look comes soon, and nothing ends from inside here. */
void task_way_init(struct task_way *w, struct agent_task *task, const struct task_way_ops *ops);
/* Look in @ms. */
void task_way_look_in(struct task_way *w, uint64_t ms);
bool task_way_is_main(const struct task_way *w);
/* The VM on this host; NULL: it has none. */
struct local_vm *task_way_vm(const struct task_way *w);
/* Is another task of this host at work on the VM? */
bool task_way_others_work(const struct task_way *w);
/* Open the tunnel: as main from w->path, @owner's to connect to, to where the peer has said; as peer to w->path. */
void task_way_open(struct task_way *w, uid_t owner);
/* It ends so: a child is killed, a call cancelled. Again: nothing. */
void task_way_over(struct task_way *w, enum operation_state state);
/* A child or call of one that is over has ended. May free it. */
void task_way_finish(struct task_way *w);
/* Sockets of an agent that was killed. */
void task_way_clean(struct agent *agent);

#endif
