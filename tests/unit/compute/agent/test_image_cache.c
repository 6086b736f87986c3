/* Image cache on file:// sources: one fetch for many waiters, wrong checksums and sizes, cancelling, leftovers.
 * THREADED: the fetches run in the loop's pool. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "common/http_server.h"
#include "common/log.h"
#include "compute/agent/image_cache.h"

#define SHA_ABC "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  /* FIPS 180-4's example */
#define SHA_NULL "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" /* of nothing */

struct fixture {
    uv_loop_t loop;
    char dir[64], images[96], source[96], url[128];
    struct image_cache *cache;
    unsigned done, closed;
    int status[16];
    enum error_kind kind;
    char path[256];
};

static void write_file(const char *path, const char *text)
{
    assert_int_equal(file_write_atomic(path, text, strlen(text), 0644, NULL), 0);
}

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    strcpy(f->dir, "/tmp/image_cache.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->images, sizeof(f->images), "%s/images", f->dir);
    snprintf(f->source, sizeof(f->source), "%s/source", f->dir);
    snprintf(f->url, sizeof(f->url), "file://%s", f->source);
    write_file(f->source, "abc");
    uv_loop_init(&f->loop);
    assert_int_equal(image_cache_create(&f->loop, f->images, &f->cache, NULL), 0);
    *state = f;
    return 0;
}

static void on_closed(void *arg)
{
    ((struct fixture *)arg)->closed++;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    if (f->cache != NULL)
        image_cache_close(f->cache, on_closed, f);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(f->closed, 1);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    assert_int_equal(file_remove_tree("/tmp", f->dir + 5, NULL), 0);
    free(f);
    return 0;
}

static void on_done(int status, const struct error *err, const char *path, void *arg)
{
    struct fixture *f = arg;
    assert_true((status == 0) == (path != NULL));
    f->status[f->done++] = status;
    f->kind = err->kind;
    snprintf(f->path, sizeof(f->path), "%s", path != NULL ? path : "");
}

static struct image_wait *get(struct fixture *f, const char *sha256, uint64_t size_bytes)
{
    struct artifact artifact = {.url = f->url, .sha256 = (char *)sha256, .size_bytes = size_bytes};
    struct image_wait *wait;
    object_mark(&artifact_desc, &artifact, "url");
    object_mark(&artifact_desc, &artifact, "sha256");
    object_mark(&artifact_desc, &artifact, "size_bytes");
    assert_int_equal(image_cache_get(f->cache, &artifact, on_done, f, &wait, NULL), 0);
    return wait;
}

static void run_until_done(struct fixture *f, unsigned count)
{
    while (f->done < count)
        uv_run(&f->loop, UV_RUN_ONCE);
}

static bool cache_has(struct fixture *f, const char *sha256)
{
    struct artifact artifact = {.sha256 = (char *)sha256};
    char path[256];
    return image_cache_find(f->cache, &artifact, path, sizeof(path)) == 0;
}

static void test_many_waiters_one_fetch(void **state)
{
    struct fixture *f = *state;
    for (unsigned i = 0; i < 5; i++)
        get(f, SHA_ABC, 0);
    assert_int_equal(f->done, 0); /* never from inside */
    assert_false(cache_has(f, SHA_ABC));
    run_until_done(f, 1);
    assert_int_equal(f->done, 5); /* all in one go: there was one fetch */
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(f->status[i], 0);
    assert_true(cache_has(f, SHA_ABC));
    char *text;
    size_t size;
    assert_int_equal(file_read(f->path, 100, &text, &size, NULL), 0);
    assert_string_equal(text, "abc");
    free(text);
}

static void test_wrong_checksum(void **state)
{
    struct fixture *f = *state;
    get(f, SHA_NULL, 0);
    run_until_done(f, 1);
    assert_int_equal(f->status[0], -EBADMSG);
    assert_int_equal(f->kind, ERROR_CHECKSUM);
    assert_false(cache_has(f, SHA_NULL));
    char part[256];
    snprintf(part, sizeof(part), "%s/%s.part", f->images, SHA_NULL);
    assert_int_not_equal(access(part, F_OK), 0);
    /* nothing is remembered of it: once the file is right it works */
    write_file(f->source, "");
    get(f, SHA_NULL, 0);
    run_until_done(f, 2);
    assert_int_equal(f->status[1], 0);
}

static void test_wrong_size(void **state)
{
    struct fixture *f = *state;
    get(f, SHA_ABC, 2);
    run_until_done(f, 1);
    assert_int_equal(f->status[0], -EBADMSG);
    get(f, SHA_ABC, 4);
    run_until_done(f, 2);
    assert_int_equal(f->status[1], -EBADMSG);
    get(f, SHA_ABC, 3);
    run_until_done(f, 3);
    assert_int_equal(f->status[2], 0);
}

static void test_missing_source(void **state)
{
    struct fixture *f = *state;
    unlink(f->source);
    get(f, SHA_ABC, 0);
    run_until_done(f, 1);
    assert_int_equal(f->status[0], -ENOENT);
    assert_false(cache_has(f, SHA_ABC));
}

/* A source that gives bytes only when we say so: a pipe with a name. */
static void test_cancel(void **state)
{
    struct fixture *f = *state;
    unlink(f->source);
    assert_int_equal(mkfifo(f->source, 0600), 0);
    struct image_wait *first = get(f, SHA_ABC, 0), *second = get(f, SHA_ABC, 0);
    int writer = open(f->source, O_WRONLY); /* returns when the worker has opened it: it is under way */
    assert_true(writer >= 0);
    image_cache_cancel(first);
    assert_int_equal(f->done, 0);
    run_until_done(f, 1);
    assert_int_equal(f->status[0], -ECANCELED); /* while the fetch goes on for the other */
    assert_int_equal(write(writer, "abc", 3), 3);
    close(writer);
    run_until_done(f, 2);
    assert_int_equal(f->status[1], 0);
    (void)second;
}

static void test_last_waiter_cancels_and_another_comes(void **state)
{
    struct fixture *f = *state;
    unlink(f->source);
    assert_int_equal(mkfifo(f->source, 0600), 0);
    struct image_wait *first = get(f, SHA_ABC, 0);
    int writer = open(f->source, O_WRONLY);
    assert_true(writer >= 0);
    image_cache_cancel(first);
    get(f, SHA_ABC, 0); /* the worker has been told to stop, and does not know of this one */
    unlink(f->source);
    write_file(f->source, "abc");
    assert_int_equal(write(writer, "xyz", 3), 3); /* the worker finds out now */
    close(writer);
    run_until_done(f, 2);
    assert_int_equal(f->status[0], -ECANCELED);
    assert_int_equal(f->status[1], 0);
    assert_true(cache_has(f, SHA_ABC));
}

static void test_close_ends_a_fetch(void **state)
{
    struct fixture *f = *state;
    unlink(f->source);
    assert_int_equal(mkfifo(f->source, 0600), 0);
    get(f, SHA_ABC, 0);
    int writer = open(f->source, O_WRONLY);
    image_cache_close(f->cache, on_closed, f);
    f->cache = NULL;
    assert_int_equal(write(writer, "abc", 3), 3);
    close(writer);
    run_until_done(f, 1);
    assert_int_equal(f->status[0], -ECANCELED);
}

static void test_leftovers_are_removed_at_start(void **state)
{
    struct fixture *f = *state;
    char part[256], whole[256];
    struct image_cache *second;
    snprintf(part, sizeof(part), "%s/%s.part", f->images, SHA_ABC);
    snprintf(whole, sizeof(whole), "%s/%s", f->images, SHA_NULL);
    write_file(part, "half");
    write_file(whole, "");
    assert_int_equal(image_cache_create(&f->loop, f->images, &second, NULL), 0);
    assert_int_not_equal(access(part, F_OK), 0);
    assert_int_equal(access(whole, F_OK), 0);
    image_cache_close(second, NULL, NULL);
}

static void serve(struct http_request *request, void *arg)
{
    (void)arg;
    if (strcmp(request->path, "/moved") == 0)
        http_respond(request, 302, "text/plain", "Location: /image\r\n", "go", 2);
    else
        http_respond(request, 200, "application/octet-stream", NULL, "abc", 3);
}

/* Names of images on the web lead to mirrors. */
static void test_redirect(void **state)
{
    struct fixture *f = *state;
    const struct http_server_options options = {.address = "127.0.0.1:0", .handler = serve};
    struct http_server *server;
    assert_int_equal(http_server_start(&f->loop, &options, &server, NULL), 0);
    snprintf(f->url, sizeof(f->url), "http://127.0.0.1:%u/moved", http_server_port(server));
    get(f, SHA_ABC, 0);
    run_until_done(f, 1);
    http_server_stop(server, NULL, NULL);
    assert_int_equal(f->status[0], 0);
    assert_true(cache_has(f, SHA_ABC));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_many_waiters_one_fetch),
        T(test_wrong_checksum),
        T(test_wrong_size),
        T(test_missing_source),
        T(test_cancel),
        T(test_last_waiter_cancels_and_another_comes),
        T(test_close_ends_a_fetch),
        T(test_leftovers_are_removed_at_start),
        T(test_redirect),
    };
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
