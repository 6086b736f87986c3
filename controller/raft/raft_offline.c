/* Work on a data directory whose server is not running: making a new cluster, and rescuing what is left of one.
 * libraft is set up without ever being started, on a loop of its own and with its stock transport, which opens
 * nothing before a start. */
#include "controller/raft/raft_errors.h"
#include "controller/raft/raft_internal.h"

#include <errno.h>

typedef int (*offline_fn)(struct raft *raft, const struct raft_configuration *configuration);

static int offline_run_raft(struct raft *raft, uint64_t id, const char *address, offline_fn run)
{
    struct raft_configuration configuration;
    int rv;

    raft_configuration_init(&configuration);
    rv = raft_configuration_add(&configuration, id, address, RAFT_VOTER);
    if (rv == 0)
        rv = run(raft, &configuration);
    raft_configuration_close(&configuration);
    return rv;
}

static int offline_run(const char *dir, uint64_t id, const char *address, offline_fn run, const char *what,
                       struct error *err)
{
    struct raft_uv_transport transport = {.version = 1};
    struct raft_fsm fsm = {.version = 1};
    struct raft_io io = {0};
    struct raft raft;
    uv_loop_t loop;
    int rv;

    ASSERT(uv_loop_init(&loop) == 0);
    rv = raft_uv_tcp_init(&transport, &loop);
    if (rv == 0)
        rv = raft_uv_init(&io, &loop, dir, &transport);
    if (rv != 0) {
        raft_errors_set(err, rv, io.errmsg, "%s in %s", what, dir);
        goto out_transport;
    }
    raft_uv_set_auto_recovery(&io, false);
    rv = raft_init(&raft, &io, &fsm, id, "127.0.0.1:1"); /* this address is used by nobody */
    if (rv != 0) {
        raft_errors_set(err, rv, raft_errmsg(&raft), "%s in %s", what, dir);
        goto out_io;
    }
    rv = offline_run_raft(&raft, id, address, run);
    if (rv != 0)
        raft_errors_set(err, rv, io.errmsg, "%s in %s", what, dir);
    raft_close(&raft, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
out_io:
    raft_uv_close(&io);
out_transport:
    raft_uv_tcp_close(&transport);
    uv_run(&loop, UV_RUN_DEFAULT);
    ASSERT(uv_loop_close(&loop) == 0);
    return raft_errors_errno(rv);
}

static int offline_check(const char *dir, uint64_t id, const char *address, struct error *err)
{
    char host[RAFT_TRANSPORT_ADDRESS_MAX], port[8];

    if (id == 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "a controller's raft id is greater than 0");
    if (raft_transport_parse_address(address, host, port, err) != 0)
        return -EINVAL;
    return raft_dir_check(dir, err);
}

int raft_node_bootstrap(const char *dir, uint64_t id, const char *address, struct error *err)
{
    int rv = offline_check(dir, id, address, err);

    return rv != 0 ? rv : offline_run(dir, id, address, raft_bootstrap, "cannot make a new cluster", err);
}

int raft_node_recover(const char *dir, uint64_t id, const char *address, struct error *err)
{
    int rv = offline_check(dir, id, address, err);

    return rv != 0 ? rv : offline_run(dir, id, address, raft_recover, "cannot recover the cluster", err);
}
