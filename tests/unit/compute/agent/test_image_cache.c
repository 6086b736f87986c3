/* Image cache on file:// sources: one fetch for many waiters, wrong checksums and sizes, cancelling, leftovers.
 * THREADED: the fetches run in the loop's pool. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

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
    assert_int_equal(image_cache_create(&f->loop, f->images, 0, &f->cache, NULL), 0);
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
    assert_int_equal(image_cache_create(&f->loop, f->images, 0, &second, NULL), 0);
    bool kept = access(part, F_OK) == 0; /* it may be gone on with */
    image_cache_close(second, NULL, NULL);
    const struct timespec old[] = {{.tv_sec = time(NULL) - IMAGE_CACHE_PART_S - 10}, {.tv_sec = time(NULL) - IMAGE_CACHE_PART_S - 10}};
    assert_int_equal(utimensat(AT_FDCWD, part, old, 0), 0);
    assert_int_equal(image_cache_create(&f->loop, f->images, 0, &second, NULL), 0);
    assert_true(kept);
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

/* ---- room, keeping, holes ---- */

static struct node_report seen_of(struct fixture *f)
{
    struct node_report report = {.head = {0}};
    image_cache_put_seen(f->cache, &report);
    return report;
}

static const struct image_seen *find_seen(const struct node_report *report, const char *sha256)
{
    for (size_t i = 0; i < report->images.count; i++)
        if (strcmp(((const struct image_seen *)report->images.items + i)->sha256, sha256) == 0)
            return (const struct image_seen *)report->images.items + i;
    return NULL;
}

static void learn(struct fixture *f, const char *sha256, bool keep, const char *url)
{
    struct node_orders orders = {.head = {0}};
    if (sha256 != NULL) {
        struct image_order *order = OBJECT_ADD(node_orders, &orders, images);
        OBJECT_TEXT(image_order, order, sha256, sha256);
        OBJECT_SET(image_order, order, keep, keep);
        OBJECT_TEXT(image_order, order, url, url);
    }
    image_cache_learn(f->cache, &orders.images);
    OBJECT_CLEAR(node_orders, &orders);
}

/* What is to be kept is fetched without anybody who waits, told of, and thrown away once no image has it any more. */
static void test_keeping(void **state)
{
    struct fixture *f = *state;
    learn(f, SHA_ABC, true, f->url);
    struct node_report report = seen_of(f);
    assert_int_equal(find_seen(&report, SHA_ABC)->state, image_copy_state_FETCHING);
    OBJECT_CLEAR(node_report, &report);
    while (!cache_has(f, SHA_ABC))
        uv_run(&f->loop, UV_RUN_ONCE);
    while (image_cache_is_busy(f->cache))
        uv_run(&f->loop, UV_RUN_ONCE);
    report = seen_of(f);
    assert_int_equal(find_seen(&report, SHA_ABC)->state, image_copy_state_HELD);
    OBJECT_CLEAR(node_report, &report);
    image_cache_forget(f->cache, SHA_ABC); /* but it is to be kept */
    assert_true(cache_has(f, SHA_ABC));
    learn(f, NULL, false, NULL);
    image_cache_forget(f->cache, SHA_ABC);
    assert_false(cache_has(f, SHA_ABC));
    report = seen_of(f);
    assert_int_equal(report.images.count, 0);
    OBJECT_CLEAR(node_report, &report);
}

static void test_what_cannot_be_kept_is_told(void **state)
{
    struct fixture *f = *state;
    learn(f, SHA_NULL, true, f->url);
    while (image_cache_is_busy(f->cache))
        uv_run(&f->loop, UV_RUN_ONCE);
    struct node_report report = seen_of(f);
    const struct image_seen *seen = find_seen(&report, SHA_NULL);
    assert_int_equal(seen->state, image_copy_state_FAILED);
    assert_non_null(strstr(seen->reason, "SHA-256"));
    OBJECT_CLEAR(node_report, &report);
}

/* A report with more than the controllers take would be refused as a whole. What is to be kept comes first. */
static void test_no_more_than_a_report_takes(void **state)
{
    struct fixture *f = *state;
    const size_t most = object_field(&node_report_desc, "images")->max;
    char sha256[65], path[256];
    for (unsigned i = 0; i < most + 100; i++) {
        snprintf(sha256, sizeof sha256, "%064u", i);
        snprintf(path, sizeof path, "%s/%s", f->images, sha256);
        assert_int_equal(symlink(f->source, path), 0);
        image_cache_adopt(f->cache, sha256);
        if (i % 500 == 0)
            learn(f, sha256, true, NULL);
    }
    learn(f, sha256, true, NULL);
    struct node_report report = seen_of(f);
    assert_int_equal(report.images.count, most);
    assert_non_null(find_seen(&report, sha256));
    OBJECT_CLEAR(node_report, &report);
}

static bool used(const char *sha256, void *arg)
{
    return strcmp(sha256, arg) == 0;
}

/* Room is made by throwing away what was not used for the longest time, never what is used or to be kept. */
static void test_room(void **state)
{
    struct fixture *f = *state;
    static const char *const names[] = {
        "1111111111111111111111111111111111111111111111111111111111111111",
        "2222222222222222222222222222222222222222222222222222222222222222",
        "3333333333333333333333333333333333333333333333333333333333333333",
        "4444444444444444444444444444444444444444444444444444444444444444",
    };
    struct error err = {.code = 0};
    char path[256], second[256];
    for (unsigned i = 0; i < 4; i++) {
        const struct timespec times[] = {{.tv_sec = 1000 + i}, {.tv_sec = 1000}};
        snprintf(path, sizeof(path), "%s/%s", f->images, names[i]);
        write_file(path, "x");
        assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
        image_cache_adopt(f->cache, names[i]);
    }
    const struct image_cache_owner owner = {.in_use = used, .arg = (void *)names[0]};
    image_cache_set_owner(f->cache, &owner);
    snprintf(path, sizeof(path), "%s/%s", f->images, names[1]);
    snprintf(second, sizeof(second), "%s/second-name", f->dir);
    assert_int_equal(link(path, second), 0); /* a disk of a VM */
    /* no room in the world is enough: all goes that may, but only once it is known what is to be kept */
    assert_int_equal(image_cache_make_room(f->cache, UINT64_C(1) << 60, &err), -ENOSPC);
    assert_int_equal(err.kind, ERROR_NO_SPACE);
    for (unsigned i = 0; i < 4; i++) {
        snprintf(path, sizeof(path), "%s/%s", f->images, names[i]);
        assert_int_equal(access(path, F_OK), 0);
    }
    learn(f, names[2], true, "file:///nonexistent");
    assert_int_equal(image_cache_make_room(f->cache, UINT64_C(1) << 60, &err), -ENOSPC);
    for (unsigned i = 0; i < 4; i++) {
        snprintf(path, sizeof(path), "%s/%s", f->images, names[i]);
        assert_int_equal(access(path, F_OK), i < 3 ? 0 : -1);
    }
    assert_int_equal(image_cache_make_room(f->cache, 1, &err), 0);
}

/* Holes of a file stay holes, and blocks of zeros become some. */
static void test_holes(void **state)
{
    struct fixture *f = *state;
    char hex[65], got_path[256];
    struct stat st;
    CLEANUP_FREE char *data = xcalloc(1, 4 << 20);
    CLEANUP_FD int fd = open(f->source, O_RDWR | O_CREAT | O_TRUNC, 0600);
    uint8_t digest[32];
    unsigned n;
    memset(data + (2 << 20) + 100, 'x', 5000);
    memcpy(data + (4 << 20) - 3, "end", 3);
    assert_int_equal(pwrite(fd, data + (1 << 20), 3 << 20, 1 << 20), 3 << 20); /* 1 MiB of hole, then zeros that are written */
    assert_int_equal(EVP_Digest(data, 4 << 20, digest, &n, EVP_sha256(), NULL), 1);
    for (unsigned i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    get(f, hex, 0);
    run_until_done(f, 1);
    assert_int_equal(f->status[0], 0);
    snprintf(got_path, sizeof(got_path), "%s/%s", f->images, hex);
    assert_int_equal(stat(got_path, &st), 0);
    assert_int_equal(st.st_size, 4 << 20);
    assert_true(st.st_blocks * 512 <= 4 * 4096); /* 3 blocks of data, perhaps one of the file system's own */
    char *back;
    size_t size;
    assert_int_equal(file_read(got_path, 5 << 20, &back, &size, NULL), 0);
    assert_int_equal(size, 4 << 20);
    assert_memory_equal(back, data, size);
    free(back);
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
        T(test_keeping),
        T(test_what_cannot_be_kept_is_told), T(test_no_more_than_a_report_takes),
        T(test_room),
        T(test_holes),
    };
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
