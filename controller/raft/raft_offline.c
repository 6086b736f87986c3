/* Work on a data directory whose server is not running: making a new cluster, looking at one, and rescuing what is left
 * of one.
 * libraft is set up without ever being started, on a loop of its own and with its stock transport, which opens
 * nothing before a start. */
#include "controller/raft/raft_errors.h"
#include "controller/raft/raft_frame.h"
#include "controller/raft/raft_internal.h"

#include <errno.h>
#include <string.h>

/* What is done with a directory: a RAFT_ code. */
struct offline {
    uint64_t id;
    const char *address; /* of the only member */
    int (*run)(struct offline *offline, struct raft *raft);
    const struct raft_machine *machine; /* inspect only, as are the rest */
    struct raft_node_content content;
    struct error machine_error;
};

static int offline_with_only_member(struct offline *offline, struct raft *raft,
                                    int (*run)(struct raft *, const struct raft_configuration *))
{
    struct raft_configuration configuration;
    int rv;

    raft_configuration_init(&configuration);
    rv = raft_configuration_add(&configuration, offline->id, offline->address, RAFT_VOTER);
    if (rv == 0)
        rv = run(raft, &configuration);
    raft_configuration_close(&configuration);
    return rv;
}

static int offline_bootstrap(struct offline *offline, struct raft *raft)
{
    return offline_with_only_member(offline, raft, raft_bootstrap);
}

static int offline_recover(struct offline *offline, struct raft *raft)
{
    return offline_with_only_member(offline, raft, raft_recover);
}

static int offline_run(const char *dir, struct offline *offline, const char *what, struct error *err)
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
    rv = raft_init(&raft, &io, &fsm, offline->id, "127.0.0.1:1"); /* this address is used by nobody */
    if (rv != 0) {
        raft_errors_set(err, rv, raft_errmsg(&raft), "%s in %s", what, dir);
        goto out_io;
    }
    rv = offline->run(offline, &raft);
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
    int rv;

    if (id == 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "a controller's raft id is greater than 0");
    if (raft_transport_parse_address(address, host, port, err) != 0)
        return -EINVAL;
    rv = raft_dir_check(dir, err);
    return rv != 0 ? rv : raft_dir_clean(dir, err);
}

int raft_node_bootstrap(const char *dir, uint64_t id, const char *address, struct error *err)
{
    struct offline offline = {.id = id, .address = address, .run = offline_bootstrap};
    int rv = offline_check(dir, id, address, err);

    return rv != 0 ? rv : offline_run(dir, &offline, "cannot make a new cluster", err);
}

int raft_node_recover(const char *dir, uint64_t id, const char *address, struct error *err)
{
    struct offline offline = {.id = id, .address = address, .run = offline_recover};
    int rv = offline_check(dir, id, address, err);

    return rv != 0 ? rv : offline_run(dir, &offline, "cannot recover the cluster", err);
}

/* --- Looking ---------------------------------------------------------------------------------------------------- */

static int inspect_snapshot(struct offline *offline, const struct raft_snapshot *snapshot)
{
    const struct raft_machine *machine = offline->machine;
    const void *state;
    size_t size;

    if (snapshot == NULL)
        return 0;
    if (snapshot->n_bufs != 1 || raft_snapshot_open(snapshot->bufs[0].base, snapshot->bufs[0].len,
                                                    &offline->content.index, &state, &size) != 0) {
        error_set(&offline->machine_error, -EUCLEAN, ERROR_CHECKSUM, "the snapshot's checksum does not match");
        return RAFT_CORRUPT;
    }
    offline->content.term = snapshot->term;
    offline->content.last_index = snapshot->index;
    return machine->restore(machine->ctx, state, size, &offline->machine_error) == 0 ? 0 : RAFT_CORRUPT;
}

static int inspect_entry(struct offline *offline, const struct raft_entry *entry)
{
    const struct raft_machine *machine = offline->machine;
    struct raft_group group;
    const void *command;
    size_t size;
    int rv = entry->type == RAFT_COMMAND ? raft_group_open(&group, entry->buf.base, entry->buf.len) : 0;

    while (rv == 0 && entry->type == RAFT_COMMAND && (rv = raft_group_next(&group, &command, &size)) > 0) {
        void *result = NULL;

        machine->apply(machine->ctx, ++offline->content.index, command, size, &result);
        if (result != NULL && machine->release != NULL)
            machine->release(machine->ctx, result);
        rv = 0;
    }
    if (rv == 0)
        return 0;
    error_set(&offline->machine_error, -EUCLEAN, ERROR_CHECKSUM, "a log entry cannot be read (%s)", strerror(-rv));
    return RAFT_CORRUPT;
}

/* Entries of one batch lie together; the batch is their memory. */
static void inspect_free_entries(struct raft_entry *entries, size_t count)
{
    void *batch = NULL;

    for (size_t i = 0; i < count; i++) {
        if (entries[i].batch != batch)
            raft_free(entries[i].batch);
        batch = entries[i].batch;
    }
    raft_free(entries);
}

static void inspect_free_snapshot(struct raft_snapshot *snapshot)
{
    if (snapshot == NULL)
        return;
    raft_configuration_close(&snapshot->configuration);
    for (unsigned i = 0; i < snapshot->n_bufs; i++)
        raft_free(snapshot->bufs[i].base);
    raft_free(snapshot->bufs);
    raft_free(snapshot);
}

/* As libraft's own start, without a start: raft_io.load has no other effect than to close the open segments. */
static int offline_inspect(struct offline *offline, struct raft *raft)
{
    struct raft_snapshot *snapshot = NULL;
    struct raft_entry *entries = NULL;
    raft_term term;
    raft_id voted_for;
    raft_index start;
    size_t count = 0;
    int rv = raft->io->load(raft->io, &term, &voted_for, &snapshot, &start, &entries, &count);

    if (rv != 0)
        return rv;
    rv = snapshot == NULL && count == 0 ? RAFT_NOTFOUND : inspect_snapshot(offline, snapshot);
    for (size_t i = 0; rv == 0 && i < count; i++) {
        if (start + i <= offline->content.last_index)
            continue; /* in the snapshot */
        rv = inspect_entry(offline, &entries[i]);
        offline->content.term = entries[i].term;
        offline->content.last_index = start + i;
    }
    inspect_free_entries(entries, count);
    inspect_free_snapshot(snapshot);
    return rv;
}

int raft_node_inspect(const char *dir, uint64_t id, const struct raft_machine *machine,
                      struct raft_node_content *ret_content, struct error *err)
{
    struct offline offline = {.id = id, .run = offline_inspect, .machine = machine};
    int rv = offline_check(dir, id, "localhost:1", err);

    if (rv == 0)
        rv = offline_run(dir, &offline, "cannot read the Raft data", err);
    if (rv != 0 && offline.machine_error.text[0] != '\0')
        return error_set(err, rv, offline.machine_error.kind, "cannot read the Raft data in %s: %s", dir,
                         offline.machine_error.text);
    if (rv == 0)
        *ret_content = offline.content;
    return rv;
}
