/* raft_node: whole servers, up to three in this process, on loopback ports with directories under build/. THREADED:
 * each server has its thread, commands come from several more, answers come to the loop of this one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

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

enum { SERVERS = 3, WAIT_MS = 30000 };

/* A machine whose state is the number of commands and a hash of their order. */
struct history {
    pthread_rwlock_t lock;
    uint64_t count, hash, last_index;
    bool gap; /* an index was skipped or repeated */
};

struct server {
    struct history history;
    struct raft_node *node;
    char dir[128], address[64];
    struct raft_node_leader leader;
    uint64_t told_index;
    unsigned leader_calls;
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

static void history_apply(void *ctx, uint64_t index, const void *entry, size_t size, void **ret_result)
{
    struct history *h = ctx;
    uint64_t *result = NEW(uint64_t);

    h->gap = h->gap || index != h->last_index + 1;
    h->last_index = index;
    h->count++;
    for (size_t i = 0; i < size; i++)
        h->hash = (h->hash ^ ((const uint8_t *)entry)[i]) * 1099511628211ull;
    *result = index;
    *ret_result = result;
}

static void history_snapshot(void *ctx, struct bytes_writer *out)
{
    struct history *h = ctx;

    bytes_put_u64(out, h->count);
    bytes_put_u64(out, h->hash);
    bytes_put_u64(out, h->last_index);
}

static int history_restore(void *ctx, const void *data, size_t size, struct error *err)
{
    struct history *h = ctx;
    struct bytes_reader reader = bytes_reader(data, size);
    uint64_t count = bytes_get_u64(&reader), hash = bytes_get_u64(&reader), last = bytes_get_u64(&reader);

    if (reader.bad)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "too short");
    h->count = count;
    h->hash = hash;
    h->last_index = last;
    return 0;
}

static void history_release(void *ctx UNUSED, void *result)
{
    free(result);
}

static uint64_t history_hash(struct server *server)
{
    uint64_t hash;

    pthread_rwlock_rdlock(&server->history.lock);
    hash = server->history.hash;
    pthread_rwlock_unlock(&server->history.lock);
    return hash;
}

static uint64_t history_count(struct server *server)
{
    uint64_t count;

    pthread_rwlock_rdlock(&server->history.lock);
    count = server->history.count;
    pthread_rwlock_unlock(&server->history.lock);
    return count;
}

/* --- The bed ---------------------------------------------------------------------------------------------------- */

static void bed_tick(uv_timer_t *timer UNUSED)
{
}

/* Turn the reply loop until @done holds. */
static void bed_wait(struct bed *bed, bool (*done)(struct bed *bed, void *arg), void *arg, const char *what)
{
    uint64_t end_ms = uv_hrtime() / 1000000 + WAIT_MS;

    while (!done(bed, arg)) {
        if (uv_hrtime() / 1000000 > end_ms)
            fail_msg("%s did not happen within %d ms", what, WAIT_MS);
        uv_run(&bed->loop, UV_RUN_ONCE);
    }
}

static void bed_free_port(char *address, size_t size)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(sa);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&sa, &length), 0);
    close(fd);
    snprintf(address, size, "127.0.0.1:%u", ntohs(sa.sin_port));
}

static void server_reset(struct server *server)
{
    server->history.count = server->history.hash = server->history.last_index = 0;
}

static int setup(void **state)
{
    struct bed *bed = NEW(struct bed);
    struct error err = {0};

    assert_int_equal(uv_loop_init(&bed->loop), 0);
    uv_timer_init(&bed->loop, &bed->tick);
    uv_timer_start(&bed->tick, bed_tick, 5, 5);
    mkdir("build", 0755);
    strcpy(bed->base, "build/test_raft_node.XXXXXX");
    assert_non_null(mkdtemp(bed->base));
    if (pki_create_ca("test", 1, &bed->ca_pem, &bed->ca_key, &err) != 0)
        fail_msg("%s", err.text);
    for (int i = 0; i < SERVERS; i++) {
        struct server *server = &bed->servers[i];

        pthread_rwlock_init(&server->history.lock, NULL);
        snprintf(server->dir, sizeof(server->dir), "%s/%d", bed->base, i + 1);
        mkdir(server->dir, 0700);
        bed_free_port(server->address, sizeof(server->address));
    }
    *state = bed;
    return 0;
}

static void dir_remove(const char *path)
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

static void server_stop(struct server *server)
{
    raft_node_destroy(TAKE_PTR(server->node));
}

static int teardown(void **state)
{
    struct bed *bed = *state;

    for (int i = 0; i < SERVERS; i++) {
        server_stop(&bed->servers[i]);
        pthread_rwlock_destroy(&bed->servers[i].history.lock);
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

static void server_on_leader(void *arg, const struct raft_node_leader *leader)
{
    struct server *server = arg;

    server->leader = *leader;
    server->leader_calls++;
}

static void server_on_applied(void *arg, uint64_t index)
{
    struct server *server = arg;

    assert_true(index >= server->told_index);
    server->told_index = index;
}

static int server_try_start_as(struct bed *bed, int i, const char *cluster, uint64_t certificate_id,
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

static void server_start(struct bed *bed, int i)
{
    struct error err = {0};

    if (server_try_start_as(bed, i, "c1", (uint64_t)i + 1, &err) != 0)
        fail_msg("server %d: %s", i + 1, err.text);
}

static int bed_leader(struct bed *bed)
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

static bool has_leader(struct bed *bed, void *arg UNUSED)
{
    return bed_leader(bed) >= 0;
}

static bool all_level(struct bed *bed, void *arg UNUSED)
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

static void change_cb(void *arg, int status, const struct error *err)
{
    struct change_wait *wait = arg;

    assert_false(wait->done);
    wait->done = true;
    wait->status = status;
    snprintf(wait->text, sizeof(wait->text), "%s", err->text);
}

static bool change_done(struct bed *bed UNUSED, void *arg)
{
    return ((struct change_wait *)arg)->done;
}

static int change_run(struct bed *bed, enum raft_node_change change, uint64_t id, const char *address, char *text)
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

static void change_expect(struct bed *bed, enum raft_node_change change, uint64_t id, const char *address)
{
    char text[512];

    if (change_run(bed, change, id, address, text) != 0)
        fail_msg("%s", text);
}

static void bed_start_cluster(struct bed *bed, int count)
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

static void load_cb(void *arg, int status, void *result)
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

static int load_propose(struct load *load, unsigned number)
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

static void *load_thread(void *arg)
{
    struct load_thread *thread = arg;

    for (unsigned i = 0; i < LOAD_EACH; i++)
        assert_int_equal(load_propose(thread->load, thread->first + i), 0);
    return NULL;
}

static bool load_done(struct bed *bed UNUSED, void *arg)
{
    return ((struct load *)arg)->answered == ((struct load *)arg)->want;
}

/* One command after another, until one is acknowledged. */
static void propose_one(struct bed *bed, unsigned number)
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

static void barrier_cb(void *arg, int status, uint64_t index)
{
    struct barrier_wait *wait = arg;

    wait->answered++;
    wait->ok += status == 0;
    wait->index = index;
}

static bool barrier_done(struct bed *bed UNUSED, void *arg)
{
    return ((struct barrier_wait *)arg)->answered == ((struct barrier_wait *)arg)->want;
}

/* --- Tests ------------------------------------------------------------------------------------------------------ */

static void test_threads_propose_and_all_agree(void **state)
{
    struct bed *bed = *state;
    struct load *load = NEW(struct load);
    struct load_thread threads[LOAD_THREADS];
    pthread_t ids[LOAD_THREADS];
    struct barrier_wait barrier = {.want = 50};
    struct raft_node_status status;
    uint64_t raft_last;

    bed_start_cluster(bed, 3);
    bed_wait(bed, has_leader, NULL, "a leader");
    load->node = bed->servers[bed_leader(bed)].node;
    load->want = LOAD_THREADS * LOAD_EACH;
    for (unsigned i = 0; i < LOAD_THREADS; i++) {
        threads[i] = (struct load_thread){load, i * LOAD_EACH};
        assert_int_equal(pthread_create(&ids[i], NULL, load_thread, &threads[i]), 0);
    }
    bed_wait(bed, load_done, load, "all answers");
    for (unsigned i = 0; i < LOAD_THREADS; i++)
        pthread_join(ids[i], NULL);
    assert_int_equal(load->ok, load->want);
    for (unsigned i = 0; i < load->want; i++)
        assert_int_equal(load->calls[i], 1);

    /* Many commands share an entry, and many readers share a barrier. */
    raft_node_status(load->node, &status);
    assert_true(status.groups < load->want);
    assert_int_equal(status.index, load->want);
    raft_last = status.raft_last;
    for (unsigned i = 0; i < barrier.want; i++)
        assert_int_equal(raft_node_barrier(load->node, barrier_cb, &barrier), 0);
    bed_wait(bed, barrier_done, &barrier, "the barriers");
    assert_int_equal(barrier.ok, barrier.want);
    assert_int_equal(barrier.index, load->want);
    raft_node_status(load->node, &status);
    assert_true(status.raft_last - raft_last < 10);
    assert_true(status.disk_writes > 0);

    bed_wait(bed, all_level, NULL, "equal state");
    for (int i = 0; i < SERVERS; i++) {
        assert_int_equal(history_count(&bed->servers[i]), load->want);
        assert_false(bed->servers[i].history.gap);
    }
    free(load);
}

static void test_follower_refuses(void **state)
{
    struct bed *bed = *state;
    struct load load = {0};
    struct barrier_wait barrier = {0};
    struct error err = {0};

    bed_start_cluster(bed, 2);
    load.node = bed->servers[1].node;
    assert_int_equal(load_propose(&load, 1), -ENOTCONN);
    assert_int_equal(raft_node_barrier(load.node, barrier_cb, &barrier), -ENOTCONN);
    assert_int_equal(raft_node_change(load.node, RAFT_NODE_REMOVE, 1, NULL, change_cb, NULL, &err), -ENOTCONN);
    assert_int_equal(err.kind, ERROR_NO_LEADER);
    assert_int_equal(load_propose(&load, 1), -ENOTCONN);
    assert_int_equal(raft_node_propose(load.node, &load, RAFT_NODE_COMMAND_BYTES_MAX + 1, load_cb, NULL), -E2BIG);
}

static void test_leader_dies_and_returns(void **state)
{
    struct bed *bed = *state;
    uint64_t hash;
    int dead;

    bed_start_cluster(bed, 3);
    for (unsigned i = 0; i < 20; i++)
        propose_one(bed, i);
    dead = bed_leader(bed);
    server_stop(&bed->servers[dead]);
    propose_one(bed, 100);
    server_start(bed, dead);
    bed_wait(bed, all_level, NULL, "equal state after the return");
    hash = history_hash(&bed->servers[0]);
    assert_true(history_count(&bed->servers[dead]) >= 21);

    for (int i = 0; i < SERVERS; i++) /* all together: nothing but the disks remains */
        server_stop(&bed->servers[i]);
    for (int i = 0; i < SERVERS; i++)
        server_start(bed, i);
    propose_one(bed, 200);
    bed_wait(bed, all_level, NULL, "equal state after all restarted");
    assert_true(history_hash(&bed->servers[0]) != hash);
    for (int i = 0; i < SERVERS; i++)
        assert_false(bed->servers[i].history.gap);
}

static bool is_restored(struct bed *bed, void *arg)
{
    struct raft_node_status status;

    raft_node_status(bed->servers[*(int *)arg].node, &status);
    return status.snapshots_restored > 0;
}

static void test_snapshot_is_installed_in_a_joined_server(void **state)
{
    struct bed *bed = *state;
    struct raft_node_status status;
    int joined = 2;

    bed->extra.snapshot_threshold = 32;
    bed->extra.snapshot_trailing = 8;
    bed_start_cluster(bed, 2);
    for (unsigned i = 0; i < 200; i++)
        propose_one(bed, i);
    server_start(bed, joined);
    change_expect(bed, RAFT_NODE_ADD, 3, bed->servers[joined].address);
    bed_wait(bed, is_restored, &joined, "the snapshot");
    bed_wait(bed, all_level, NULL, "equal state");
    raft_node_status(bed->servers[bed_leader(bed)].node, &status);
    assert_true(status.snapshots_taken > 0);
    assert_int_equal(status.member_count, 3);
    assert_int_equal(history_count(&bed->servers[joined]), status.index);

    server_stop(&bed->servers[joined]); /* and it starts from that snapshot */
    server_start(bed, joined);
    assert_true(history_count(&bed->servers[joined]) > 0);
    propose_one(bed, 1000);
    bed_wait(bed, all_level, NULL, "equal state after the restart");
    assert_false(bed->servers[joined].history.gap);
}

static void test_overload_is_refused(void **state)
{
    struct bed *bed = *state;
    struct load *load = NEW(struct load);
    struct raft_node_status status;
    unsigned refused = 0;

    bed->extra.proposals_max = 16;
    bed_start_cluster(bed, 1);
    bed_wait(bed, has_leader, NULL, "a leader");
    load->node = bed->servers[0].node;
    for (unsigned i = 0; i < 1000; i++) { /* the reply loop stands still: nothing is answered */
        int rv = load_propose(load, i);

        assert_true(rv == 0 || rv == -EAGAIN);
        refused += rv == -EAGAIN;
    }
    assert_int_equal(load->accepted, 16);
    assert_int_equal(refused, 1000 - 16);
    raft_node_status(load->node, &status);
    assert_int_equal(status.proposals, 16);
    assert_int_equal(status.commands_refused, refused);
    load->want = 16;
    bed_wait(bed, load_done, load, "the accepted ones");
    assert_int_equal(load->ok, 16);
    assert_int_equal(load_propose(load, 0), 0); /* and there is room again */
    load->want = 17;
    bed_wait(bed, load_done, load, "one more");
    raft_node_status(load->node, &status);
    assert_int_equal(status.proposals, 0);
    assert_int_equal(status.proposal_bytes, 0);
    free(load);
}

static void test_stop_answers_everything(void **state)
{
    struct bed *bed = *state;
    struct load *load = NEW(struct load);
    struct barrier_wait barrier = {.want = 3};

    bed_start_cluster(bed, 1);
    bed_wait(bed, has_leader, NULL, "a leader");
    load->node = bed->servers[0].node;
    for (unsigned i = 0; i < 300; i++)
        assert_int_equal(load_propose(load, i), 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(raft_node_barrier(load->node, barrier_cb, &barrier), 0);
    server_stop(&bed->servers[0]);
    assert_int_equal(load->answered, 300);
    assert_int_equal(barrier.answered, 3);
    free(load);
}

static void test_members(void **state)
{
    struct bed *bed = *state;
    struct raft_node_status status;
    char text[512];
    int leader;

    bed_start_cluster(bed, 3);
    leader = bed_leader(bed);
    assert_int_equal(change_run(bed, RAFT_NODE_ADD, 2, bed->servers[1].address, text), -EEXIST);
    assert_non_null(strstr(text, "id exists"));
    assert_int_equal(change_run(bed, RAFT_NODE_PROMOTE, 2, NULL, text), -EALREADY);
    assert_int_equal(change_run(bed, RAFT_NODE_REMOVE, 9, NULL, text), -ENOENT);
    assert_int_equal(change_run(bed, RAFT_NODE_ADD, 9, "nonsense", text), -EINVAL);

    change_expect(bed, RAFT_NODE_TRANSFER, leader == 0 ? 2 : 1, NULL);
    bed_wait(bed, has_leader, NULL, "a leader");
    assert_int_equal(bed_leader(bed), leader == 0 ? 1 : 0);
    leader = bed_leader(bed);
    propose_one(bed, 1); /* directly after a transfer a change may be refused as busy */

    change_expect(bed, RAFT_NODE_DEMOTE, 3, NULL);
    raft_node_status(bed->servers[leader].node, &status);
    assert_int_equal(status.members[2].vote, RAFT_NODE_STANDBY);
    change_expect(bed, RAFT_NODE_PROMOTE, 3, NULL);
    change_expect(bed, RAFT_NODE_REMOVE, 3, NULL);
    raft_node_status(bed->servers[leader].node, &status);
    assert_int_equal(status.member_count, 2);
}

static bool follows(struct bed *bed, void *arg)
{
    return bed->servers[*(int *)arg].leader.leader_id != 0;
}

static void test_wrong_certificate_is_refused(void **state)
{
    struct bed *bed = *state;
    struct error err = {0};
    uint64_t end_ms;
    int third = 2;

    bed_start_cluster(bed, 3);
    propose_one(bed, 1);
    server_stop(&bed->servers[third]);
    /* First the certificate of another controller, then one of another cluster; both signed by our CA. */
    for (int try = 0; try < 2; try++) {
        assert_int_equal(server_try_start_as(bed, third, try == 0 ? "c1" : "c2", try == 0 ? 2 : 3, &err), 0);
        end_ms = uv_hrtime() / 1000000 + 1500;
        while (uv_hrtime() / 1000000 < end_ms) {
            uv_run(&bed->loop, UV_RUN_ONCE);
            assert_int_equal(bed->servers[third].leader.leader_id, 0);
        }
        server_stop(&bed->servers[third]);
        memset(&bed->servers[third].leader, 0, sizeof(bed->servers[third].leader));
    }
    server_start(bed, third);
    bed_wait(bed, follows, &third, "the right certificate to be accepted");
}

static void file_damage(const char *path, off_t at, bool cut)
{
    CLEANUP_FD int fd = open(path, O_RDWR | O_CLOEXEC);

    assert_true(fd >= 0);
    if (cut)
        assert_int_equal(ftruncate(fd, at), 0);
    else
        assert_int_equal(pwrite(fd, "damaged!", 8, at), 8);
}

static void server_damage(struct server *server, const char *prefix, off_t at, bool cut)
{
    struct dirent **entries = NULL;
    int count = scandir(server->dir, &entries, NULL, NULL);
    unsigned hit = 0;

    for (int i = 0; i < count; i++) {
        const char *name = entries[i]->d_name;

        if (strncmp(name, prefix, strlen(prefix)) == 0 && strstr(name, ".meta") == NULL) {
            char *path = xasprintf("%s/%s", server->dir, name);

            file_damage(path, at, cut);
            free(path);
            hit++;
        }
        free(entries[i]);
    }
    free(entries);
    assert_true(hit > 0);
}

static void test_damaged_directory_is_refused(void **state)
{
    struct bed *bed = *state;
    struct server *server = &bed->servers[0];
    struct error err = {0};
    char *path;

    bed->extra.snapshot_threshold = 16;
    bed->extra.snapshot_trailing = 4;
    bed_start_cluster(bed, 1);
    for (unsigned i = 0; i < 50; i++)
        propose_one(bed, i);
    server_stop(server);
    assert_int_equal(raft_node_bootstrap(server->dir, 1, server->address, &err), -EEXIST);

    server_damage(server, "snapshot-", 48, false);
    assert_int_equal(server_try_start_as(bed, 0, "c1", 1, &err), -EUCLEAN);
    assert_non_null(strstr(err.text, "checksum"));
    assert_non_null(strstr(err.text, "join again under a new id"));

    for (int i = 1; i <= 2; i++) {
        path = xasprintf("%s/metadata%d", server->dir, i);
        unlink(path); /* a young server has only one of the two */
        free(path);
    }
    assert_int_equal(server_try_start_as(bed, 0, "c1", 1, &err), -EUCLEAN);
    assert_non_null(strstr(err.text, "term and vote"));

    path = xasprintf("%s/open-99", server->dir);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    free(path);
    server_damage(server, "open-99", 0, false);
    server_damage(server, "open-99", 5000, true);
    assert_int_equal(server_try_start_as(bed, 0, "c1", 1, &err), -EUCLEAN);
    assert_non_null(strstr(err.text, "cut short"));
}

static void test_recover_from_one_survivor(void **state)
{
    struct bed *bed = *state;
    struct error err = {0};
    uint64_t count;

    bed_start_cluster(bed, 3);
    for (unsigned i = 0; i < 10; i++)
        propose_one(bed, i);
    bed_wait(bed, all_level, NULL, "equal state");
    for (int i = 0; i < SERVERS; i++)
        server_stop(&bed->servers[i]);
    if (raft_node_recover(bed->servers[1].dir, 2, bed->servers[1].address, &err) != 0)
        fail_msg("%s", err.text);
    server_start(bed, 1);
    propose_one(bed, 100);
    count = history_count(&bed->servers[1]);
    assert_true(count >= 11);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_threads_propose_and_all_agree, setup, teardown),
        cmocka_unit_test_setup_teardown(test_follower_refuses, setup, teardown),
        cmocka_unit_test_setup_teardown(test_leader_dies_and_returns, setup, teardown),
        cmocka_unit_test_setup_teardown(test_snapshot_is_installed_in_a_joined_server, setup, teardown),
        cmocka_unit_test_setup_teardown(test_overload_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stop_answers_everything, setup, teardown),
        cmocka_unit_test_setup_teardown(test_members, setup, teardown),
        cmocka_unit_test_setup_teardown(test_wrong_certificate_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged_directory_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_recover_from_one_survivor, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
