/* Sessions of a store: an object that says that a backup is being made, and a thread that goes on saying so. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "backup/repo.h"

struct repo_session {
    struct repo *repo;
    char name[REPO_SESSION_TEXT_BYTES];
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t woken;
    bool ending, left;
    uint64_t beats;
};

static void object_name(const char *folder, const char *session, char *ret_name)
{
    snprintf(ret_name, STORE_NAME_BYTES, "%s/%s", folder, session);
}

/* What is in it is for people who look; the store's time of it is what counts. */
static int beat(struct repo_session *s, struct error *err)
{
    char name[STORE_NAME_BYTES], host[64] = "", text[160];
    object_name("active", s->name, name);
    gethostname(host, sizeof host - 1);
    int n = snprintf(text, sizeof text, "{\"format\":1,\"host\":\"%s\",\"pid\":%ld,\"beat\":%llu}\n", host,
                     (long)getpid(), (unsigned long long)++s->beats);
    return store_put(s->repo->store, name, text, (size_t)n, err);
}

static void *run(void *arg)
{
    struct repo_session *s = arg;
    pthread_mutex_lock(&s->lock);
    while (!s->ending) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += REPO_BEAT_MS / 1000;
        if (pthread_cond_timedwait(&s->woken, &s->lock, &until) != ETIMEDOUT || s->ending)
            continue;
        pthread_mutex_unlock(&s->lock);
        beat(s, NULL); /* one that fails is made up by the next; too many, and the check before the end tells */
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

int repo_session_begin(struct repo *repo, struct repo_session **ret_session, struct error *err)
{
    struct repo_session *s = NEW(struct repo_session);
    pthread_condattr_t attr;
    s->repo = repo;
    repo_session_make(s->name);
    int code = beat(s, err);
    if (code < 0) {
        free(s);
        return code;
    }
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->woken, &attr);
    pthread_condattr_destroy(&attr);
    code = -pthread_create(&s->thread, NULL, run, s);
    if (code < 0) {
        pthread_cond_destroy(&s->woken);
        pthread_mutex_destroy(&s->lock);
        free(s);
        return error_errno(err, code, "cannot start a thread");
    }
    *ret_session = s;
    return 0;
}

const char *repo_session_name(const struct repo_session *session)
{
    return session->name;
}

int repo_session_check(struct repo_session *session, struct error *err)
{
    char name[STORE_NAME_BYTES];
    bool fenced = false;
    object_name("fences", session->name, name);
    int code = store_has(session->repo->store, name, &fenced, err);
    if (code < 0 || !fenced)
        return code;
    return error_set(
        err, -ESTALE, ERROR_CONFLICT,
        "this backup has not been heard of for so long that a collection has given it up: make it again");
}

static void thread_end(struct repo_session *session)
{
    if (session->left)
        return;
    session->left = true;
    pthread_mutex_lock(&session->lock);
    session->ending = true;
    pthread_cond_signal(&session->woken);
    pthread_mutex_unlock(&session->lock);
    pthread_join(session->thread, NULL);
}

void repo_session_leave(struct repo_session *session)
{
    char name[STORE_NAME_BYTES];
    bool there = !session->left;
    thread_end(session);
    object_name("active", session->name, name);
    if (there)
        store_remove(session->repo->store, name, NULL);
}

void repo_session_end(struct repo_session *session, bool keep)
{
    if (session == NULL)
        return;
    if (keep)
        thread_end(session);
    else
        repo_session_leave(session);
    pthread_cond_destroy(&session->woken);
    pthread_mutex_destroy(&session->lock);
    free(session);
}
