/* See backup_live.h. Two threads: one has drover-backup run, the other does the rest. */
#include "compute/agent/backup_live.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "block/nbd_client.h"
#include "compute/agent/backup_disks.h"
#include "compute/agent/task_child.h"

enum {
    LISTEN_BACKLOG = 64, /* a few connections for each disk, and again after each loss */
    LOOK_MS = 500,
    STUCK_WORDS_MS = 10000,
    RETRY_MS = 2000,
    COMPLAINT_S = 10, /* so long one stands for why nothing comes */
    ANSWER_BYTES_MAX = 16 * 1024,
    ANSWER_S = 10,
    WORDS_MAX = 199, /* of a step */
};

struct live {
    const struct backup_work *work;
    int listen_fd;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    bool serving;
    unsigned failures;  /* times that the program has ended */
    struct error why;   /* of the last one */
    char complaint[WORDS_MAX + 1];
    struct timespec complained;
    char repository[33];
};

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void wait_ms(unsigned ms)
{
    const struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

/* ---- the program: a thread ---- */

static void program_said(void *arg, const json_t *line)
{
    struct live *live = arg;
    const char *step = json_string_value(json_object_get(line, "step"));
    const char *complaint = json_string_value(json_object_get(line, "complaint"));
    pthread_mutex_lock(&live->lock);
    if (step != NULL && strcmp(step, "serving") == 0) {
        live->serving = true;
        pthread_cond_broadcast(&live->changed);
    }
    if (complaint != NULL) {
        text_copy(live->complaint, sizeof live->complaint, complaint);
        clock_gettime(CLOCK_MONOTONIC, &live->complained);
    }
    pthread_mutex_unlock(&live->lock);
}

static int program_serve(struct live *live, struct error *err)
{
    struct backup_program p;
    json_t *result = NULL;
    char socket[24];
    int fd = fcntl(live->listen_fd, F_DUPFD_CLOEXEC, 3);
    int code = backup_program_begin(&p, "serve", live->work, err);
    snprintf(socket, sizeof socket, "fd:%d", fd);
    p.said = program_said;
    p.said_arg = live;
    if (fd >= 0)
        backup_program_inherit(&p, fd);
    else if (code == 0)
        code = error_errno(err, -errno, "cannot hand on a socket");
    backup_program_option(&p, "socket", socket);
    backup_program_option(&p, "backup", live->work->task.id);
    for (size_t i = 0; i < live->work->disks.count; i++)
        backup_program_option(&p, "disk", ((const struct backup_work_disk *)live->work->disks.items)[i].name);
    if (code == 0)
        code = backup_program_run(&p, &result, NULL, err);
    pthread_mutex_lock(&live->lock);
    if (p.repository[0] != '\0')
        memcpy(live->repository, p.repository, sizeof live->repository);
    pthread_mutex_unlock(&live->lock);
    json_decref(result);
    backup_program_finish(&p);
    return code;
}

/* It ends with the process. */
static void *serve_main(void *arg)
{
    struct live *live = arg;
    for (;;) {
        struct error err = {.code = 0};
        if (program_serve(live, &err) == 0)
            error_set(&err, -EPIPE, ERROR_INTERNAL, "drover-backup has ended");
        pthread_mutex_lock(&live->lock);
        live->serving = false;
        live->failures++;
        live->why = err;
        pthread_cond_broadcast(&live->changed);
        pthread_mutex_unlock(&live->lock);
        wait_ms(RETRY_MS);
    }
    return NULL;
}

/* Until it serves; or its words, when it cannot. */
static int serving_wait(struct live *live, struct error *err)
{
    int code = 0;
    pthread_mutex_lock(&live->lock);
    while (!live->serving && live->failures == 0)
        pthread_cond_wait(&live->changed, &live->lock);
    if (!live->serving) {
        *err = live->why;
        code = live->why.code;
    }
    pthread_mutex_unlock(&live->lock);
    return code;
}

/* ---- the socket ---- */

/* What an earlier child left goes: whoever is connected to that comes here when it asks again. */
static int socket_listen(const struct backup_work *work, int *ret_fd, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    uid_t user = geteuid() == 0 ? work->user : geteuid();
    snprintf(address.sun_path, sizeof address.sun_path, "%s", work->source_path);
    if (unlink(work->source_path) < 0 && errno != ENOENT)
        return error_errno(err, -errno, "cannot remove %s", work->source_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (const struct sockaddr *)&address, sizeof address) < 0 || chmod(work->source_path, 0600) < 0 ||
        (user != geteuid() && lchown(work->source_path, user, user) < 0) || listen(fd, LISTEN_BACKLOG) < 0) {
        int code = error_errno(err, -errno, "cannot listen at %s", work->source_path);
        close_fd(&fd);
        return code;
    }
    *ret_fd = fd;
    return 0;
}

/* ---- the disks ---- */

/* As drover-backup has them. */
static int sizes_ask(struct backup_work *work, struct error *err)
{
    struct backup_work_disk *disks = work->disks.items;
    int code = 0;
    for (size_t i = 0; code == 0 && i < work->disks.count; i++) {
        const struct nbd_client_options options = {
            .socket_path = work->source_path, .export_name = disks[i].name, .read_only = true};
        struct block *b;
        code = nbd_client_open(&options, &b, err);
        if (code == 0) {
            OBJECT_SET(backup_work_disk, &disks[i], size_bytes, b->size_bytes);
            block_close(b);
        }
    }
    return code;
}

static int disks_place(struct backup_work *work, struct error *err)
{
    struct backup_targets targets = {.count = 0};
    int code = sizes_ask(work, err);
    if (code < 0)
        return code;
    code = backup_targets_live(work, &targets, err);
    if (code == 0)
        code = backup_targets_place(&targets, err);
    backup_targets_finish(&targets, code == 0);
    return code;
}

/* ---- following ---- */

/* The VMM's word: 0; negative errno: it does not answer, that is, mostly, it is not there. */
static int vmm_look(const char *path, struct vmm_fill *ret_fill)
{
    static const char request[] = "GET /v1/vm/fill HTTP/1.1\r\nHost: vm\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const struct timeval limit = {.tv_sec = ANSWER_S};
    CLEANUP_FREE char *answer = xcalloc(1, ANSWER_BYTES_MAX + 1);
    size_t size = 0;
    int status = 0;
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0 ||
        connect(fd, (const struct sockaddr *)&address, sizeof address) < 0 ||
        send(fd, request, sizeof request - 1, MSG_NOSIGNAL) != (ssize_t)(sizeof request - 1))
        return -errno;
    for (ssize_t n = 1; n > 0 && size < ANSWER_BYTES_MAX; size += n > 0 ? (size_t)n : 0)
        n = recv(fd, answer + size, ANSWER_BYTES_MAX - size, 0);
    const char *body = strstr(answer, "\r\n\r\n");
    if (body == NULL || sscanf(answer, "HTTP/1.1 %3d ", &status) != 1 || status != 200)
        return -EPROTO;
    return OBJECT_DECODE(vmm_fill, body + 4, strlen(body + 4), OBJECT_STORED, ret_fill, NULL);
}

/* Why nothing comes: the program's words rather than what the VMM sees of it. */
static void stuck_words(struct live *live, const char *vmm, char words[WORDS_MAX + 1])
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    pthread_mutex_lock(&live->lock);
    bool fresh = live->complaint[0] != '\0' && now.tv_sec - live->complained.tv_sec <= COMPLAINT_S;
    const char *why = !live->serving && live->failures > 0 ? live->why.text : fresh ? live->complaint : vmm;
    CLEANUP_FREE char *text = xasprintf("what the guest reads waits for the store: %s", why);
    text_copy(words, WORDS_MAX + 1, text);
    pthread_mutex_unlock(&live->lock);
}

static void follow(struct live *live)
{
    char words[WORDS_MAX + 1] = "";
    bool off = false; /* and looked at since */
    uint64_t stuck_until_ms = 0; /* the words of what is stuck stay so long: each change goes through the controllers */
    for (;; wait_ms(LOOK_MS)) {
        struct vmm_fill fill = {.whole = false};
        struct error err = {.code = 0};
        if (vmm_look(live->work->control_path, &fill) < 0) {
            if (!off && backup_disks_look(live->work, &err) == 0)
                return; /* it was whole when it went off */
            off = true;
            task_child_tell("the VM is off; the rest of its disks comes when it runs", 0, 0);
            continue;
        }
        off = false;
        bool whole = fill.whole;
        if (fill.stuck == NULL) {
            snprintf(words, sizeof words, "the VM can run; what is missing of its disks comes from the store");
            stuck_until_ms = 0;
        } else if (now_ms() >= stuck_until_ms) {
            stuck_words(live, fill.stuck, words);
            stuck_until_ms = now_ms() + STUCK_WORDS_MS;
        }
        if (!whole)
            task_child_tell(words, fill.done_bytes, fill.total_bytes);
        OBJECT_CLEAR(vmm_fill, &fill);
        if (whole)
            return;
    }
}

/* Which repository it was; or that none was opened, so that nothing was changed. */
static void repository_tell(struct live *live, struct task_seen *ret_seen)
{
    pthread_mutex_lock(&live->lock);
    if (live->repository[0] != '\0')
        OBJECT_TEXT(backup_result, &ret_seen->backup, repository, live->repository);
    else
        OBJECT_SET(backup_result, &ret_seen->backup, untouched, true);
    pthread_mutex_unlock(&live->lock);
    object_mark(&task_seen_desc, ret_seen, "backup");
}

int backup_live_restore(struct backup_work *work, struct task_seen *ret_seen, struct error *err)
{
    struct live *live = NEW(struct live); /* the thread's as long as the process lives */
    pthread_t thread;
    live->work = work;
    pthread_mutex_init(&live->lock, NULL);
    pthread_cond_init(&live->changed, NULL);
    task_child_tell("reading the lists of the store", 0, 0);
    int code = socket_listen(work, &live->listen_fd, err);
    if (code == 0 && (code = -pthread_create(&thread, NULL, serve_main, live)) < 0)
        error_errno(err, code, "cannot start a thread");
    if (code == 0 && !work->placed)
        code = serving_wait(live, err);
    if (code == 0 && !work->placed) {
        task_child_tell("putting the disks in their place", 0, 0);
        code = disks_place(work, err);
    }
    if (code == 0) {
        task_child_tell_ready("the VM can be started");
        follow(live);
    }
    repository_tell(live, ret_seen);
    return code;
}
