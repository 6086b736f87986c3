/* What a disk that is not whole is filled from: see layer_source.h. Below: reads and clusters (the owner's thread), then the
 * thread with the connection. */
#include "block/layer_source.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "block/layer_map.h"
#include "block/nbd_client.h"

enum { AHEAD_CLUSTERS = 8 }; /* of one read, asked for at once */

enum entry_state { ENTRY_FREE, ENTRY_WANTED, ENTRY_READING, ENTRY_READY };

struct source_entry {
    struct layer_source *source;
    enum entry_state state;
    uint64_t cluster;
    uint64_t order;     /* WANTED: asked for; READY: last used */
    uint64_t retry_ms;  /* WANTED: not before */
    unsigned failures;
    uint8_t *buffer; /* LAYER_CLUSTER_BYTES; owned; NULL before its first use */
    struct iovec iovec;
    struct block_request request; /* to the server: the thread's */
};

struct source_read {
    struct list link; /* in reads */
    struct block_request *request;
    uint64_t got; /* bytes of it that have been copied */
};

struct layer_source {
    struct block block;
    struct layer_source_options options;
    char *socket_path, *export_name; /* owned */
    struct list reads;               /* struct source_read; the owner's */
    pthread_t thread;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed; /* for the thread: something is wanted, has come, or it is to end */
    pthread_cond_t came;    /* for drain */
    bool stopping;
    bool news;     /* a cluster has come, for drain */
    bool answered; /* by the client, for the thread */
    int abort_fd; /* a second descriptor of the connection, to shut it down by; -1: none */
    bool connected;
    struct error why; /* of the last failure */
    uint64_t clock;
    struct source_entry entries[LAYER_SOURCE_CLUSTERS_MAX];
};

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static struct timespec time_of(uint64_t ms)
{
    return (struct timespec){.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
}

static struct layer_source *of_block(struct block *b)
{
    return CONTAINER_OF(b, struct layer_source, block);
}

static void source_wake(const struct layer_source *s)
{
    if (s->options.wake != NULL)
        s->options.wake(s->options.wake_arg);
}

/* ---- clusters (lock held) ---- */

static struct source_entry *entry_find(struct layer_source *s, uint64_t cluster)
{
    for (unsigned i = 0; i < ARRAY_SIZE(s->entries); i++)
        if (s->entries[i].state != ENTRY_FREE && s->entries[i].cluster == cluster)
            return &s->entries[i];
    return NULL;
}

/* Would a read copy it next? */
static bool is_awaited(const struct layer_source *s, uint64_t cluster)
{
    LIST_FOREACH(link, &s->reads) {
        const struct source_read *read = LIST_ENTRY(link, struct source_read, link);
        if ((read->request->offset + read->got) / LAYER_CLUSTER_BYTES == cluster)
            return true;
    }
    return false;
}

/* One that is free, or was used longest ago; @needed: or cannot be read and nobody waits for it any more, as many of which as there are
 * entries must not keep all others from being read. NULL: all are under way or waited for. */
static struct source_entry *entry_take(struct layer_source *s, bool needed)
{
    struct source_entry *best = NULL;
    for (unsigned i = 0; i < ARRAY_SIZE(s->entries); i++) {
        struct source_entry *e = &s->entries[i];
        if (e->state == ENTRY_FREE)
            return e;
        bool idle = e->state == ENTRY_READY || (needed && e->state == ENTRY_WANTED && e->failures > 0);
        if (idle && !is_awaited(s, e->cluster) && (best == NULL || e->order < best->order))
            best = e;
    }
    return best;
}

/* @needed: a read waits for it, and it is not only to be there when one comes. */
static void cluster_want(struct layer_source *s, uint64_t cluster, bool needed)
{
    if (entry_find(s, cluster) != NULL)
        return;
    struct source_entry *e = entry_take(s, needed);
    if (e == NULL) /* when one has become free, the read asks again */
        return;
    uint8_t *buffer = e->buffer != NULL ? e->buffer : aligned_alloc(LAYER_BLOCK_BYTES, LAYER_CLUSTER_BYTES);
    ASSERT(buffer != NULL);
    *e = (struct source_entry){
        .source = s, .state = ENTRY_WANTED, .cluster = cluster, .order = ++s->clock, .buffer = buffer};
    pthread_cond_signal(&s->changed);
}

/* ---- reads ---- */

static void iovecs_copy(const struct block_request *r, uint64_t skip, const uint8_t *from, uint64_t size)
{
    for (unsigned i = 0; i < r->iovec_count && size > 0; i++) {
        size_t length = r->iovecs[i].iov_len;
        if (skip >= length) {
            skip -= length;
            continue;
        }
        size_t take = (size_t)MIN(size, length - skip);
        memcpy((uint8_t *)r->iovecs[i].iov_base + skip, from, take);
        from += take;
        size -= take;
        skip = 0;
    }
}

/* Copy what is there, ask for what is not. True: it is done. Lock held. */
static bool read_goes_on(struct layer_source *s, struct source_read *read)
{
    const struct block_request *r = read->request;
    while (read->got < r->size) {
        uint64_t at = r->offset + read->got, cluster = at / LAYER_CLUSTER_BYTES, within = at % LAYER_CLUSTER_BYTES;
        uint64_t last = (r->offset + r->size - 1) / LAYER_CLUSTER_BYTES;
        struct source_entry *e = entry_find(s, cluster);
        if (e == NULL || e->state != ENTRY_READY) {
            for (uint64_t c = cluster; c <= last && c < cluster + AHEAD_CLUSTERS; c++)
                cluster_want(s, c, c == cluster);
            return false;
        }
        uint64_t size = MIN(r->size - read->got, LAYER_CLUSTER_BYTES - within);
        iovecs_copy(r, read->got, e->buffer + within, size);
        e->order = ++s->clock;
        read->got += size;
    }
    return true;
}

static void read_end(struct layer_source *s, struct source_read *read, int result)
{
    struct block_request *request = read->request;
    list_remove(&read->link);
    free(read);
    request->result = result;
    block_complete(&s->block, request);
}

void layer_source_run(struct block *b)
{
    struct layer_source *s = of_block(b);
    struct list ended;
    list_init(&ended);
    pthread_mutex_lock(&s->lock);
    LIST_FOREACH_SAFE(link, &s->reads)
    {
        if (read_goes_on(s, LIST_ENTRY(link, struct source_read, link))) {
            list_remove(link);
            list_append(&ended, link);
        }
    }
    pthread_mutex_unlock(&s->lock);
    while (!list_empty(&ended))
        read_end(s, LIST_ENTRY(ended.next, struct source_read, link), 0);
}

static int source_submit(struct block *b, struct block_request *request)
{
    struct layer_source *s = of_block(b);
    if (request->op != BLOCK_READ)
        return -EOPNOTSUPP;
    struct source_read *read = NEW(struct source_read);
    read->request = request;
    list_append(&s->reads, &read->link);
    pthread_mutex_lock(&s->lock);
    bool done = read_goes_on(s, read); /* not told from within: run does */
    pthread_mutex_unlock(&s->lock);
    if (done)
        source_wake(s);
    return 0;
}

static void source_drain(struct block *b)
{
    struct layer_source *s = of_block(b);
    uint64_t until = now_ms() + LAYER_SOURCE_DRAIN_MS;
    const struct timespec due = time_of(until);
    layer_source_run(b);
    while (b->in_flight > 0 && now_ms() < until) {
        pthread_mutex_lock(&s->lock);
        while (!s->news && pthread_cond_timedwait(&s->came, &s->lock, &due) == 0)
            ;
        s->news = false;
        pthread_mutex_unlock(&s->lock);
        layer_source_run(b);
    }
    while (!list_empty(&s->reads))
        read_end(s, LIST_ENTRY(s->reads.next, struct source_read, link), -EAGAIN);
}

bool layer_source_is_stuck(struct block *b, struct error *ret_why)
{
    struct layer_source *s = of_block(b);
    pthread_mutex_lock(&s->lock);
    bool stuck = !s->connected;
    for (unsigned i = 0; i < ARRAY_SIZE(s->entries); i++) /* one that was read well is no failure any more */
        stuck = stuck || (s->entries[i].state != ENTRY_FREE && s->entries[i].failures > 0);
    if (ret_why != NULL)
        *ret_why = stuck ? s->why : (struct error){.code = 0};
    pthread_mutex_unlock(&s->lock);
    return stuck;
}

/* ---- the thread ---- */

static void on_client_wake(void *arg)
{
    struct layer_source *s = arg;
    pthread_mutex_lock(&s->lock);
    s->answered = true;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void entry_done(struct block_request *request, int result)
{
    struct source_entry *e = CONTAINER_OF(request, struct source_entry, request);
    struct layer_source *s = e->source;
    pthread_mutex_lock(&s->lock);
    if (result == 0) {
        e->state = ENTRY_READY;
        e->failures = 0;
        s->news = true;
        pthread_cond_broadcast(&s->came);
    } else {
        e->state = ENTRY_WANTED;
        e->failures++;
        e->retry_ms = now_ms() + LAYER_SOURCE_RETRY_MS;
        error_set(&s->why, result, ERROR_UNREACHABLE, "the block at %llu cannot be read there: %s",
                  (unsigned long long)(e->cluster * LAYER_CLUSTER_BYTES), strerror(-result));
    }
    pthread_mutex_unlock(&s->lock);
    source_wake(s); /* also of one that failed: a read that found no place may take its */
}

/* The next one that is due, in the order in which they were asked for; NULL: none, and then *ret_due is when one will be
 * (0: none is waiting), or when an answer has come. Lock held. */
static struct source_entry *entry_due(struct layer_source *s, uint64_t *ret_due)
{
    struct source_entry *best = NULL;
    unsigned reading = 0;
    uint64_t now = now_ms();
    *ret_due = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(s->entries); i++) {
        struct source_entry *e = &s->entries[i];
        reading += e->state == ENTRY_READING;
        if (e->state != ENTRY_WANTED)
            continue;
        if (e->retry_ms > now)
            *ret_due = *ret_due == 0 ? e->retry_ms : MIN(*ret_due, e->retry_ms);
        else if (best == NULL || e->order < best->order)
            best = e;
    }
    return reading < LAYER_SOURCE_IN_FLIGHT_MAX ? best : NULL;
}

/* Send what is wanted; without the lock, which a client's wake takes. */
static void entries_send(struct layer_source *s, struct block *client)
{
    struct source_entry *e;
    uint64_t due;
    pthread_mutex_lock(&s->lock);
    while (!s->stopping && (e = entry_due(s, &due)) != NULL) {
        uint64_t offset = e->cluster * LAYER_CLUSTER_BYTES;
        uint64_t size = MIN((uint64_t)LAYER_CLUSTER_BYTES, s->block.size_bytes - offset);
        e->state = ENTRY_READING;
        pthread_mutex_unlock(&s->lock);
        memset(e->buffer + size, 0, LAYER_CLUSTER_BYTES - size);
        e->iovec = (struct iovec){e->buffer, size};
        e->request = (struct block_request){.op = BLOCK_READ,
                                            .offset = offset,
                                            .size = size,
                                            .iovecs = &e->iovec,
                                            .iovec_count = 1,
                                            .done = entry_done};
        int code = block_submit(client, &e->request);
        if (code < 0)
            entry_done(&e->request, code);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
}

/* Until something is to be done, at most LAYER_SOURCE_RETRY_MS: what a client has lost shows at once, or then. */
static void thread_wait(struct layer_source *s, bool sends)
{
    uint64_t due, until = now_ms() + LAYER_SOURCE_RETRY_MS;
    pthread_mutex_lock(&s->lock);
    bool something = entry_due(s, &due) != NULL && sends;
    const struct timespec at = time_of(due != 0 && due < until ? due : until);
    if (!s->stopping && !something && !s->answered)
        (void)pthread_cond_timedwait(&s->changed, &s->lock, &at);
    s->answered = false;
    pthread_mutex_unlock(&s->lock);
}

static bool is_stopping(struct layer_source *s)
{
    pthread_mutex_lock(&s->lock);
    bool stopping = s->stopping;
    pthread_mutex_unlock(&s->lock);
    return stopping;
}

static int socket_connect(const struct layer_source *s, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", s->socket_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); /* a full backlog is no reason to wait */
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof address) == 0 && fcntl(fd, F_SETFL, 0) == 0)
        return fd;
    int code = error_errno(err, -errno, "nobody serves what is missing of the disk");
    close_fd(&fd);
    return code;
}

/* Whom layer_source_close may cut off. False: it is to end. */
static bool abort_fd_set(struct layer_source *s, int fd)
{
    pthread_mutex_lock(&s->lock);
    close_fd(&s->abort_fd);
    s->abort_fd = fd;
    bool goes_on = !s->stopping;
    pthread_mutex_unlock(&s->lock);
    return goes_on;
}

static int server_open(struct layer_source *s, struct block **ret_client, struct error *err)
{
    int fd = socket_connect(s, err);
    if (fd < 0)
        return fd;
    if (!abort_fd_set(s, fcntl(fd, F_DUPFD_CLOEXEC, 0))) {
        close(fd);
        return error_set(err, -ECANCELED, ERROR_CANCELLED, "it ends");
    }
    const struct nbd_client_options options = {.has_fd = true,
                                               .fd = fd,
                                               .export_name = s->export_name,
                                               .read_only = true,
                                               .timeout_ms = LAYER_SOURCE_TIMEOUT_MS,
                                               .reconnect_ms = 1, /* there is no other way back than anew */
                                               .wake = on_client_wake,
                                               .wake_arg = s};
    int code = nbd_client_open(&options, ret_client, err);
    if (code == 0 && (*ret_client)->size_bytes < s->block.size_bytes) {
        code = error_set(err, -ESTALE, ERROR_CONFLICT, "what is served has %llu bytes, and the disk needs %llu",
                         (unsigned long long)(*ret_client)->size_bytes, (unsigned long long)s->block.size_bytes);
        block_close(*ret_client);
    }
    return code;
}

static void state_set(struct layer_source *s, bool connected, const struct error *why)
{
    pthread_mutex_lock(&s->lock);
    s->connected = connected;
    if (why != NULL)
        s->why = *why;
    pthread_mutex_unlock(&s->lock);
}

/* Until the link is lost, or it ends. */
static void server_use(struct layer_source *s, struct block *client)
{
    struct error why = {.code = 0};
    while (!is_stopping(s) && nbd_client_state(client, &why) == NBD_CLIENT_UP) {
        entries_send(s, client);
        nbd_client_run(client);
        thread_wait(s, true);
        nbd_client_run(client);
    }
    nbd_client_break(client);
    block_drain(client); /* what was under way is wanted again */
    block_close(client);
    state_set(s, false, why.code < 0 ? &why : NULL);
}

static void *source_main(void *arg)
{
    struct layer_source *s = arg;
    while (!is_stopping(s)) {
        struct error err = {.code = 0};
        struct block *client;
        if (server_open(s, &client, &err) == 0) {
            state_set(s, true, NULL);
            server_use(s, client);
        } else {
            state_set(s, false, &err);
            thread_wait(s, false);
        }
    }
    return NULL;
}

/* ---- the block ---- */

static void source_free(struct layer_source *s)
{
    for (unsigned i = 0; i < ARRAY_SIZE(s->entries); i++)
        free(s->entries[i].buffer);
    close_fd(&s->abort_fd);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
    pthread_cond_destroy(&s->came);
    free(s->socket_path);
    free(s->export_name);
    free(s);
}

static void source_close(struct block *b)
{
    struct layer_source *s = of_block(b);
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    if (s->abort_fd >= 0)
        shutdown(s->abort_fd, SHUT_RDWR);
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    source_free(s);
}

static const struct block_ops source_ops = {.submit = source_submit, .drain = source_drain, .close = source_close};

static struct layer_source *source_new(const struct layer_source_options *options)
{
    struct layer_source *s = NEW(struct layer_source);
    pthread_condattr_t clock;
    s->block = (struct block){
        .ops = &source_ops, .size_bytes = options->size_bytes, .block_bytes = LAYER_CLUSTER_BYTES, .read_only = true};
    s->options = *options;
    s->socket_path = xstrdup(options->socket_path);
    s->export_name = xstrdup(options->export_name);
    s->abort_fd = -1;
    list_init(&s->reads);
    error_set(&s->why, -ENOTCONN, ERROR_UNREACHABLE, "what is missing of the disk is not served yet");
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &clock);
    pthread_cond_init(&s->came, &clock);
    pthread_condattr_destroy(&clock);
    return s;
}

int layer_source_open(const struct layer_source_options *options, struct block **ret_block, struct error *err)
{
    if (strlen(options->socket_path) >= sizeof((struct sockaddr_un *)NULL)->sun_path)
        return error_set(err, -ENAMETOOLONG, ERROR_INVALID, "a socket's path has at most %zu bytes, unlike %s",
                         sizeof((struct sockaddr_un *)NULL)->sun_path - 1, options->socket_path);
    struct layer_source *s = source_new(options);
    int code = -pthread_create(&s->thread, NULL, source_main, s);
    if (code < 0) {
        source_free(s);
        return error_errno(err, code, "cannot start a thread");
    }
    *ret_block = &s->block;
    return 0;
}
