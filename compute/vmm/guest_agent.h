/* Talking with the agent inside the guest (qemu-ga's protocol: a JSON object a line, over a virtio-console port). It
 * shuts down cleanly, freezes file systems for a snapshot, and tells addresses.
 *
 *              opened                 first call                  sync answered
 *    CLOSED ------------> IDLE ----------------------> SYNCING ------------------> WAITING --+
 *      ^                   ^  ^                           | timeout                  |       |
 *      |  closed: every    |  +---------------------------+--------------------------+       | answer: next call
 *      |  call fails       +---------------- queue empty, or a timeout ----------------------+
 *
 * After an opening or a timeout the stream may carry leftovers: a sync with a number of our own (guest-sync-delimited,
 * answered behind a byte 0xff) finds the beginning again. One call is under way at a time; others wait, at most
 * GUEST_AGENT_CALLS_MAX. The guest is not trusted: lines are bounded, what cannot be parsed fails the call, nothing it
 * says is acted upon here.
 *
 * A freeze has a limit: when it passes without a thaw, the thaw is sent from here, so that a forgotten freeze never
 * stops a guest for good.
 *
 * Threads: everything with the device lock held (device.h), callbacks too. */
#ifndef COMPUTE_VMM_GUEST_AGENT_H
#define COMPUTE_VMM_GUEST_AGENT_H

#include <jansson.h>

#include "common/error.h"
#include "common/list.h"
#include "compute/vmm/io_loop.h"

#define GUEST_AGENT_PORT "org.qemu.guest_agent.0" /* the name that the packaged agent looks for */

enum {
    GUEST_AGENT_CALLS_MAX = 8,
    GUEST_AGENT_LINE_BYTES_MAX = 1 << 18,  /* of an answer: the addresses of a guest with hundreds of interfaces */
    GUEST_AGENT_OUT_BYTES_MAX = 1 << 14,   /* of a command with its arguments */
    GUEST_AGENT_SYNC_MS = 5000,
    GUEST_AGENT_FREEZE_MS_MAX = 60000,
};

enum guest_agent_state { GUEST_AGENT_CLOSED, GUEST_AGENT_IDLE, GUEST_AGENT_SYNCING, GUEST_AGENT_WAITING };

/* The end of a call: @answer is the value of "return" (borrowed), or NULL with words in @err. Called once. */
typedef void (*guest_agent_fn)(void *arg, const json_t *answer, const struct error *err);
/* Bytes for the port; returns how many were taken. The rest is offered again by guest_agent_flush. */
typedef size_t (*guest_agent_send_fn)(void *arg, const uint8_t *data, size_t size);

struct guest_agent {
    struct io_loop *loop;
    guest_agent_send_fn send;
    void *send_arg;
    enum guest_agent_state state;
    bool synced;
    uint64_t sync_id;
    struct list calls;          /* struct guest_agent_call, the first is under way */
    unsigned call_count;
    struct io_timer timeout;    /* of what is under way */
    struct io_timer thaw;       /* armed from freeze to thaw */
    bool frozen;                /* a freeze was sent and no thaw has been answered since */
    char *line;                 /* what has come of a line; GUEST_AGENT_LINE_BYTES_MAX */
    size_t line_size;
    bool line_lost;             /* it was too long: its rest is passed over */
    uint8_t out[GUEST_AGENT_OUT_BYTES_MAX];
    size_t out_size;
};

void guest_agent_init(struct guest_agent *g, struct io_loop *loop, guest_agent_send_fn send, void *send_arg);
/* Calls that wait end with -ECANCELED. */
void guest_agent_finish(struct guest_agent *g);

/* From the port. */
void guest_agent_opened(struct guest_agent *g, bool open);
void guest_agent_input(struct guest_agent *g, const uint8_t *data, size_t size);
/* The port has room again. */
void guest_agent_flush(struct guest_agent *g);

/* Ask the guest to do @command with @arguments (NULL: none; borrowed). With @silent the command answers only when it
 * fails (guest-shutdown), and has succeeded once the agent has read it and is gone or @timeout_ms have passed.
 * -ENOTCONN when no agent is there, -EBUSY when too many calls wait, -E2BIG: @callback is not called then. */
int guest_agent_call(struct guest_agent *g, const char *command, const json_t *arguments, bool silent,
                     unsigned timeout_ms, guest_agent_fn callback, void *arg, struct error *err);
/* Freeze every file system, for at most @limit_ms (1 to GUEST_AGENT_FREEZE_MS_MAX) from when the agent is asked: then
 * they thaw by themselves. A second freeze does not prolong the first. */
int guest_agent_freeze(struct guest_agent *g, unsigned limit_ms, guest_agent_fn callback, void *arg,
                       struct error *err);
int guest_agent_thaw(struct guest_agent *g, guest_agent_fn callback, void *arg, struct error *err);

#endif
