/* Fixture of the tests of raft_node: up to three whole servers in this process, on loopback ports, with directories
 * of their own under build/ and certificates of a CA of their own; answers come to the loop of the test. Included
 * once by each test, after cmocka.h. */
#ifndef TESTS_UNIT_CONTROLLER_RAFT_RAFT_BED_H
#define TESTS_UNIT_CONTROLLER_RAFT_RAFT_BED_H

#include "common/pki.h"
#include "controller/raft/raft_node.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

enum { SERVERS = 3, WAIT_MS = 300000 };

/* A machine whose state is the number of commands and a hash of their order. */
struct history {
    pthread_rwlock_t lock;
    uint64_t count, hash, last_index;
    bool gap; /* an index was skipped or repeated */
    unsigned apply_us;    /* that a command takes at least */
    pthread_mutex_t gate; /* of the next three */
    pthread_cond_t gate_opened;
    bool shut;   /* a restore waits */
    bool refuse; /* it fails */
};

struct server {
    struct history history;
    struct raft_node *node;
    char dir[128], address[64];
    struct raft_node_leader leader;
    uint64_t told_index;
    unsigned leader_calls;
    uint64_t superseded_by; /* atomic */
};

struct bed {
    uv_loop_t loop;
    uv_timer_t tick;
    char base[96];
    char *ca_pem, *ca_key;
    struct server servers[SERVERS];
    struct raft_node_config extra; /* limits and thresholds for all */
};

/* --- The machine ------------------------------------------------------------------------------------------------ */

UNUSED static void history_apply(void *ctx, uint64_t index, const void *entry, size_t size, void **ret_result)
{
    struct history *h = ctx;
    uint64_t *result = NEW(uint64_t);

    for (uint64_t end = uv_hrtime() + h->apply_us * UINT64_C(1000); uv_hrtime() < end;)
        ;
    h->gap = h->gap || index != h->last_index + 1;
    h->last_index = index;
    h->count++;
    for (size_t i = 0; i < size; i++)
        h->hash = (h->hash ^ ((const uint8_t *)entry)[i]) * 1099511628211ull;
    *result = index;
    *ret_result = result;
}

UNUSED static void history_snapshot(void *ctx, struct bytes_writer *out)
{
    struct history *h = ctx;

    bytes_put_u64(out, h->count);
    bytes_put_u64(out, h->hash);
    bytes_put_u64(out, h->last_index);
}

UNUSED static int history_restore(void *ctx, const void *data, size_t size, struct error *err)
{
    struct history *h = ctx;
    struct bytes_reader reader = bytes_reader(data, size);
    uint64_t count = bytes_get_u64(&reader), hash = bytes_get_u64(&reader), last = bytes_get_u64(&reader);

    bool refuse;

    pthread_mutex_lock(&h->gate);
    while (h->shut)
        pthread_cond_wait(&h->gate_opened, &h->gate);
    refuse = h->refuse;
    pthread_mutex_unlock(&h->gate);
    if (reader.bad || refuse)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "too short");
    pthread_rwlock_wrlock(&h->lock);
    h->count = count;
    h->hash = hash;
    h->last_index = last;
    pthread_rwlock_unlock(&h->lock);
    return 0;
}

UNUSED static void history_release(void *ctx UNUSED, void *result)
{
    free(result);
}

UNUSED static uint64_t history_hash(struct server *server)
{
    uint64_t hash;

    pthread_rwlock_rdlock(&server->history.lock);
    hash = server->history.hash;
    pthread_rwlock_unlock(&server->history.lock);
    return hash;
}

UNUSED static uint64_t history_count(struct server *server)
{
    uint64_t count;

    pthread_rwlock_rdlock(&server->history.lock);
    count = server->history.count;
    pthread_rwlock_unlock(&server->history.lock);
    return count;
}

/* --- The bed ---------------------------------------------------------------------------------------------------- */

UNUSED static void bed_tick(uv_timer_t *timer UNUSED)
{
}

/* Turn the reply loop until @done holds. */
UNUSED static void bed_wait(struct bed *bed, bool (*done)(struct bed *bed, void *arg), void *arg, const char *what)
{
    uint64_t end_ms = uv_hrtime() / 1000000 + WAIT_MS;

    while (!done(bed, arg)) {
        if (uv_hrtime() / 1000000 > end_ms)
            fail_msg("%s did not happen within %d ms", what, WAIT_MS);
        uv_run(&bed->loop, UV_RUN_ONCE);
    }
}

/* A loopback address of this process alone: no other one, and no connection that goes out, takes the port before it is used,
 * or while a server is down. */
static in_addr_t bed_own_address(void)
{
    return htonl(UINT32_C(0x7f400000) + ((uint32_t)getpid() & 0x3fffff)); /* a pid has up to 22 bits */
}

UNUSED static void bed_free_port(char *address, size_t size)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = bed_own_address()};
    char host[INET_ADDRSTRLEN];
    socklen_t length = sizeof(sa);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&sa, &length), 0);
    close(fd);
    assert_non_null(inet_ntop(AF_INET, &sa.sin_addr, host, sizeof(host)));
    snprintf(address, size, "%s:%u", host, ntohs(sa.sin_port));
}

UNUSED static void server_reset(struct server *server)
{
    server->history.count = server->history.hash = server->history.last_index = 0;
}

/* All servers share one process, its turn on the processor and a disk: longer than a crowded machine makes them wait, so
 * that no leader is lost but where a test means it. Tests that wait for the loss of one say so, and bear more of them. */
enum { ELECTION_MS = 5000, QUICK_ELECTION_MS = 1000 };

UNUSED static int setup(void **state)
{
    struct bed *bed = NEW(struct bed);
    struct error err = {0};

    assert_int_equal(uv_loop_init(&bed->loop), 0);
    uv_timer_init(&bed->loop, &bed->tick);
    uv_timer_start(&bed->tick, bed_tick, 5, 5);
    bed->extra.election_timeout_ms = ELECTION_MS;
    mkdir("build", 0755);
    strcpy(bed->base, "build/test_raft_node.XXXXXX");
    assert_non_null(mkdtemp(bed->base));
    if (pki_create_ca("test", 1, &bed->ca_pem, &bed->ca_key, &err) != 0)
        fail_msg("%s", err.text);
    for (int i = 0; i < SERVERS; i++) {
        struct server *server = &bed->servers[i];

        pthread_rwlock_init(&server->history.lock, NULL);
        pthread_mutex_init(&server->history.gate, NULL);
        pthread_cond_init(&server->history.gate_opened, NULL);
        snprintf(server->dir, sizeof(server->dir), "%s/%d", bed->base, i + 1);
        mkdir(server->dir, 0700);
        bed_free_port(server->address, sizeof(server->address));
    }
    *state = bed;
    return 0;
}

UNUSED static void dir_remove(const char *path)
{
    struct dirent **entries = NULL;
    int count = scandir(path, &entries, NULL, NULL);

    for (int i = 0; i < count; i++) {
        char *name = xasprintf("%s/%s", path, entries[i]->d_name);

        unlink(name);
        free(name);
        free(entries[i]);
    }
    free(entries);
    rmdir(path);
}

UNUSED static void history_gate(struct history *h, bool shut, bool refuse)
{
    pthread_mutex_lock(&h->gate);
    h->shut = shut;
    h->refuse = refuse;
    pthread_cond_broadcast(&h->gate_opened);
    pthread_mutex_unlock(&h->gate);
}

UNUSED static void server_stop(struct server *server)
{
    raft_node_destroy(TAKE_PTR(server->node));
}

UNUSED static int teardown(void **state)
{
    struct bed *bed = *state;

    for (int i = 0; i < SERVERS; i++) {
        history_gate(&bed->servers[i].history, false, false); /* where a test has failed */
        server_stop(&bed->servers[i]);
        pthread_rwlock_destroy(&bed->servers[i].history.lock);
        pthread_mutex_destroy(&bed->servers[i].history.gate);
        pthread_cond_destroy(&bed->servers[i].history.gate_opened);
        dir_remove(bed->servers[i].dir);
    }
    rmdir(bed->base);
    uv_close((uv_handle_t *)&bed->tick, NULL);
    uv_run(&bed->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&bed->loop), 0);
    free(bed->ca_pem);
    pki_free_secret(bed->ca_key);
    free(bed);
    return 0;
}

UNUSED static void server_on_leader(void *arg, const struct raft_node_leader *leader)
{
    struct server *server = arg;

    server->leader = *leader;
    server->leader_calls++;
}

UNUSED static void server_on_applied(void *arg, uint64_t index)
{
    struct server *server = arg;

    assert_true(index >= server->told_index);
    server->told_index = index;
}

UNUSED static int server_try_start_as(struct bed *bed, int i, const char *cluster, uint64_t certificate_id,
                               struct error *err)
{
    struct server *server = &bed->servers[i];
    struct raft_node_config config = bed->extra;
    struct pki_subject subject = {.common_name = "controller", .valid_days = 1};
    char *uri = xasprintf("spiffe://drover/%s/controller/%llu", cluster, (unsigned long long)certificate_id);
    char *certificate = NULL, *key = NULL;
    int rv;

    subject.uri = uri;
    assert_int_equal(pki_issue(bed->ca_pem, bed->ca_key, &subject, &certificate, &key, err), 0);
    server_reset(server);
    server->told_index = 0;
    config.dir = server->dir;
    config.id = (uint64_t)i + 1;
    config.address = server->address;
    config.cluster_id = "c1";
    config.certificate_pem = certificate;
    config.key_pem = key;
    config.ca_pem = bed->ca_pem;
    config.machine = (struct raft_machine){.ctx = &server->history,
                                           .lock = &server->history.lock,
                                           .apply = history_apply,
                                           .snapshot = history_snapshot,
                                           .restore = history_restore,
                                           .release = history_release};
    config.reply_loop = &bed->loop;
    config.leader = server_on_leader;
    config.applied = server_on_applied;
    config.arg = server;
    rv = raft_node_create(&config, &server->node, err);
    free(uri);
    free(certificate);
    pki_free_secret(key);
    return rv;
}

UNUSED static void server_start(struct bed *bed, int i)
{
    struct error err = {0};

    if (server_try_start_as(bed, i, "c1", (uint64_t)i + 1, &err) != 0)
        fail_msg("server %d: %s", i + 1, err.text);
}

UNUSED static int bed_leader(struct bed *bed)
{
    for (int i = 0; i < SERVERS; i++) {
        struct raft_node_status status;

        if (bed->servers[i].node == NULL)
            continue;
        raft_node_status(bed->servers[i].node, &status);
        if (status.leader.role == RAFT_NODE_LEADER)
            return i;
    }
    return -1;
}

UNUSED static bool has_leader(struct bed *bed, void *arg UNUSED)
{
    return bed_leader(bed) >= 0;
}

UNUSED static bool all_level(struct bed *bed, void *arg UNUSED)
{
    int leader = bed_leader(bed);

    for (int i = 0; leader >= 0 && i < SERVERS; i++)
        if (bed->servers[i].node != NULL && history_hash(&bed->servers[i]) != history_hash(&bed->servers[leader]))
            return false;
    return leader >= 0;
}

/* --- Work ------------------------------------------------------------------------------------------------------- */

struct change_wait {
    bool done;
    int status;
    char text[512];
};

UNUSED static void change_cb(void *arg, int status, const struct error *err)
{
    struct change_wait *wait = arg;

    assert_false(wait->done);
    wait->done = true;
    wait->status = status;
    snprintf(wait->text, sizeof(wait->text), "%s", err->text);
}

UNUSED static bool change_done(struct bed *bed UNUSED, void *arg)
{
    return ((struct change_wait *)arg)->done;
}

UNUSED static int change_run(struct bed *bed, enum raft_node_change change, uint64_t id, const char *address,
                             char *text)
{
    struct change_wait wait = {0};
    struct error err = {0};
    int rv;

    bed_wait(bed, has_leader, NULL, "a leader");
    rv = raft_node_change(bed->servers[bed_leader(bed)].node, change, id, address, change_cb, &wait, &err);
    if (rv != 0) {
        strcpy(wait.text, err.text);
        wait.status = rv;
    } else {
        bed_wait(bed, change_done, &wait, "the change of members");
    }
    if (text != NULL)
        strcpy(text, wait.text);
    return wait.status;
}

enum { TRANSFER_TRIES = 10 };

UNUSED static void change_expect(struct bed *bed, enum raft_node_change change, uint64_t id, const char *address)
{
    char text[512];
    int rv, tries = 0;

    do /* libraft gives a transfer one election timeout, which a crowded machine may need for less */
        rv = change_run(bed, change, id, address, text);
    while (rv == -EHOSTUNREACH && change == RAFT_NODE_TRANSFER && ++tries < TRANSFER_TRIES);
    if (rv != 0)
        fail_msg("%s", text);
}

UNUSED static void bed_start_cluster(struct bed *bed, int count)
{
    struct error err = {0};

    if (raft_node_bootstrap(bed->servers[0].dir, 1, bed->servers[0].address, &err) != 0)
        fail_msg("%s", err.text);
    for (int i = 0; i < count; i++)
        server_start(bed, i);
    for (int i = 1; i < count; i++)
        change_expect(bed, RAFT_NODE_ADD, (uint64_t)i + 1, bed->servers[i].address);
}

enum { LOAD_THREADS = 4, LOAD_EACH = 500 };

struct load {
    struct raft_node *node;
    unsigned answered, ok, unknown, refused; /* on the loop's thread */
    unsigned calls[LOAD_THREADS * LOAD_EACH]; /* of each callback */
    unsigned accepted;                       /* atomic */
    unsigned want;                           /* accepted in all */
};
struct load_call {
    struct load *load;
    unsigned number;
};

UNUSED static void load_cb(void *arg, int status, void *result)
{
    struct load_call *call = arg;
    struct load *load = call->load;

    load->calls[call->number]++;
    load->answered++;
    load->ok += status == 0;
    load->unknown += status == -EINPROGRESS;
    load->refused += status != 0 && status != -EINPROGRESS;
    assert_true(status != 0 || result != NULL);
    free(result);
    free(call);
}

UNUSED static int load_propose(struct load *load, unsigned number)
{
    struct load_call *call = NEW(struct load_call);
    char *command = xasprintf("command %u", number);
    int rv;

    *call = (struct load_call){load, number};
    rv = raft_node_propose(load->node, command, strlen(command) + 1, load_cb, call);
    if (rv != 0) {
        free(command);
        free(call);
    } else {
        __atomic_add_fetch(&load->accepted, 1, __ATOMIC_RELAXED);
    }
    return rv;
}

struct load_thread {
    struct load *load;
    unsigned first;
};

UNUSED static void *load_thread(void *arg)
{
    struct load_thread *thread = arg;

    for (unsigned i = 0; i < LOAD_EACH; i++)
        assert_int_equal(load_propose(thread->load, thread->first + i), 0);
    return NULL;
}

UNUSED static bool load_done(struct bed *bed UNUSED, void *arg)
{
    return ((struct load *)arg)->answered == ((struct load *)arg)->want;
}

/* One command after another, until one is acknowledged. */
UNUSED static void propose_one(struct bed *bed, unsigned number)
{
    struct load load = {0};

    while (load.ok == 0) {
        bed_wait(bed, has_leader, NULL, "a leader");
        load.node = bed->servers[bed_leader(bed)].node;
        if (load_propose(&load, number) == 0)
            load.want++;
        bed_wait(bed, load_done, &load, "an answer");
        uv_run(&bed->loop, UV_RUN_ONCE);
    }
}

struct barrier_wait {
    unsigned answered, ok;
    uint64_t index;
    unsigned want;
};

UNUSED static void barrier_cb(void *arg, int status, uint64_t index)
{
    struct barrier_wait *wait = arg;

    wait->answered++;
    wait->ok += status == 0;
    wait->index = index;
}

UNUSED static bool barrier_done(struct bed *bed UNUSED, void *arg)
{
    return ((struct barrier_wait *)arg)->answered == ((struct barrier_wait *)arg)->want;
}

#endif
