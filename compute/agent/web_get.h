/* A file from the web, by a process that can do nothing else: what a server somewhere answers is parsed (TLS, HTTP, proxies,
 * redirects) without the agent's rights.
 *
 *   agent  runs  drover-agent web-get PID, with what to get (web_get_work) on its standard input
 *   child  becomes options->user (task_walls.h), gets it, and writes records to its standard output:
 *              kind and size, a uint32 each, and the record
 *              WEB_GET_HEAD  web_get_head (JSON)     of each 2xx answer, before its body
 *              WEB_GET_DATA  a piece of the body
 *              WEB_GET_END   web_get_end (JSON)      once, the last
 *
 * The agent trusts none of it more than it would trust the server: sizes have limits, content has its checksum, and a child that
 * is silent for WEB_GET_SILENT_MS is ended. It ends with the thread that began it (PR_SET_PDEATHSIG), and when nobody reads.
 *
 * It reads what all may read: certificates of authorities, resolv.conf and what a proxy's variables name have to be.
 *
 * Without a user (0, or an agent that is not root) there are no rights to give up, and it is got in the caller's process. */
#ifndef COMPUTE_AGENT_WEB_GET_H
#define COMPUTE_AGENT_WEB_GET_H

#include "common/base.h"

#include <stdatomic.h>
#include <sys/types.h>

#include "common/error.h"
#include "schema/objects.h"

#define WEB_GET_IDLE_MS 30000u   /* silence of the server after which it is left */
#define WEB_GET_SILENT_MS 45000u /* silence of the child */
#define WEB_GET_REDIRECTS_MAX 8  /* what is known by name on the web is often served by a mirror; the checksum rules */
#define WEB_GET_DATA_BYTES_MAX (1u << 20)
#define WEB_GET_JSON_BYTES_MAX (16u << 10)

enum web_get_kind {
    WEB_GET_HEAD = 1,
    WEB_GET_DATA = 2,
    WEB_GET_END = 3,
};

struct web_get_options {
    const char *url;
    uint64_t offset;         /* where to begin; the server may give the whole all the same (200 instead of 206) */
    uid_t user;              /* and group */
    const atomic_bool *stop; /* -ECANCELED soon after it is true; may be NULL */
    /* From within web_get_perform; <0 ends it with that error. Of 2xx answers alone. */
    int (*on_head)(const struct web_get_head *head, void *arg);
    int (*on_data)(const void *data, size_t size, void *arg);
    void *arg;
};

/* Blocking; any thread. 0: *ret_status is the server's last HTTP status, and where that is none of 200 to 299 @err may hold
 * its words. Negative errno in words: the callback's own (without words), -ECANCELED, or what went wrong on the way. */
int web_get_perform(const struct web_get_options *options, int *ret_status, struct error *err);
/* `drover-agent web-get PARENT`: the exit status. */
int web_get_main(pid_t parent);

#endif
