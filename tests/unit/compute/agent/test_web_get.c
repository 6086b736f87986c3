/* Files from the web by a process of its own: what comes of answers, what that process may do, and what is made of one that says
 * what it may not. THREADED: the caller waits in the loop's pool. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "common/http_server.h"
#include "compute/agent/image_import.h"
#include "compute/agent/web_get.h"

#define USER 1900004099u /* nobody's */
#define LIE "DROVER_TEST_LIE"

struct fixture {
    uv_loop_t loop;
    struct http_server *server;
    struct http_request *endless;
    uv_timer_t more;
    char url[128];
    /* what the caller asked for and saw */
    uv_work_t work;
    uint64_t offset;
    int refuse; /* by on_data */
    atomic_bool stop;
    bool done;
    int code, status;
    unsigned heads, head_status;
    struct bytes_writer body;
    struct error err;
    struct image_work image;
    struct image_result result;
    /* of the process, while its request was answered */
    unsigned long uid, capabilities, no_new_privileges;
    pid_t child;
};

/* ---- the process that gets it, looked at ---- */

static unsigned long status_number(const char *text, const char *name, int base)
{
    const char *at = strstr(text, name);
    return at != NULL ? strtoul(at + strlen(name), NULL, base) : 0;
}

static void look_at_child(struct fixture *f)
{
    DIR *d = opendir("/proc");
    struct dirent *entry;
    while (d != NULL && (entry = readdir(d)) != NULL) {
        char path[300];
        CLEANUP_FREE char *text = NULL;
        size_t size;
        snprintf(path, sizeof path, "/proc/%s/status", entry->d_name);
        if (file_read(path, 1 << 16, &text, &size, NULL) < 0 || status_number(text, "\nPPid:", 10) != (unsigned long)getpid())
            continue;
        f->child = (pid_t)strtol(entry->d_name, NULL, 10);
        f->uid = status_number(text, "\nUid:", 10);
        f->capabilities = status_number(text, "\nCapPrm:", 16) | status_number(text, "\nCapBnd:", 16);
        f->no_new_privileges = status_number(text, "\nNoNewPrivs:", 10);
    }
    if (d != NULL)
        closedir(d);
}

/* ---- the server ---- */

static void more(uv_timer_t *timer)
{
    struct fixture *f = timer->data;
    char text[1000] = {0};
    if (f->endless != NULL && http_stream_write(f->endless, text, sizeof text) < 0) {
        http_stream_end(f->endless);
        f->endless = NULL;
    }
    atomic_store(&f->stop, true); /* it is under way */
}

static void serve(struct http_request *request, void *arg)
{
    struct fixture *f = arg;
    const char *range = http_request_header(request, "Range");
    look_at_child(f);
    if (strcmp(request->path, "/file") == 0 && range != NULL)
        http_respond(request, 206, "text/plain", "Content-Range: bytes 4-9/10\r\n", "456789", 6);
    else if (strcmp(request->path, "/file") == 0)
        http_respond(request, 200, "text/plain", NULL, "0123456789", 10);
    else if (strcmp(request->path, "/moved") == 0)
        http_respond(request, 302, "text/plain", "Location: /file\r\n", "", 0);
    else if (strcmp(request->path, "/endless") == 0) {
        http_stream_begin(request, &(struct http_stream_options){.content_type = "text/plain"});
        f->endless = request;
        uv_timer_start(&f->more, more, 0, 10);
    } else
        http_respond(request, 404, "text/plain", NULL, "no", 2);
}

static int setup(void **state)
{
    struct fixture *f = NEW(struct fixture);
    uv_loop_init(&f->loop);
    uv_timer_init(&f->loop, &f->more);
    f->more.data = f;
    const struct http_server_options options = {.address = "127.0.0.1:0", .handler = serve, .arg = f};
    assert_int_equal(http_server_start(&f->loop, &options, &f->server, NULL), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    if (f->endless != NULL)
        http_stream_end(f->endless);
    http_server_stop(f->server, NULL, NULL);
    uv_close((uv_handle_t *)&f->more, NULL);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    bytes_writer_finish(&f->body);
    free(f);
    unsetenv(LIE);
    return 0;
}

/* ---- the caller ---- */

static int on_head(const struct web_get_head *head, void *arg)
{
    struct fixture *f = arg;
    f->heads++;
    f->head_status = head->status;
    if (head->status == 206)
        assert_string_equal(head->content_range, "bytes 4-9/10");
    else if (f->offset == 0 && head->content_length != NULL)
        assert_string_equal(head->content_length, "10");
    return 0;
}

static int on_data(const void *data, size_t size, void *arg)
{
    struct fixture *f = arg;
    bytes_put(&f->body, data, size);
    return f->refuse;
}

static void work(uv_work_t *w)
{
    struct fixture *f = w->data;
    const struct web_get_options options = {
        .url = f->url, .offset = f->offset, .user = USER, .stop = &f->stop, .on_head = on_head, .on_data = on_data, .arg = f};
    f->code = web_get_perform(&options, &f->status, &f->err);
}

static void after(uv_work_t *w, int status)
{
    assert_int_equal(status, 0);
    ((struct fixture *)w->data)->done = true;
}

static void get(struct fixture *f, const char *path)
{
    snprintf(f->url, sizeof f->url, "http://127.0.0.1:%u%s", http_server_port(f->server), path);
    f->work.data = f;
    f->done = false;
    assert_int_equal(uv_queue_work(&f->loop, &f->work, work, after), 0);
    while (!f->done)
        uv_run(&f->loop, UV_RUN_ONCE);
    uv_timer_stop(&f->more);
    bytes_put_u8(&f->body, 0);
}

static void assert_child_gone(const struct fixture *f)
{
    if (geteuid() == 0)
        assert_true(f->child > 0 && kill(f->child, 0) < 0 && errno == ESRCH);
}

static void test_whole(void **state)
{
    struct fixture *f = *state;
    get(f, "/moved");
    assert_int_equal(f->code, 0);
    assert_int_equal(f->status, 200);
    assert_int_equal(f->heads, 1);
    assert_string_equal((char *)f->body.data, "0123456789");
    assert_child_gone(f);
}

static void test_from_an_offset(void **state)
{
    struct fixture *f = *state;
    f->offset = 4;
    get(f, "/file");
    assert_int_equal(f->code, 0);
    assert_int_equal(f->head_status, 206);
    assert_string_equal((char *)f->body.data, "456789");
}

static void test_has_no_rights(void **state)
{
    struct fixture *f = *state;
    if (geteuid() != 0) {
        print_message("SKIPPED: only root has rights to give up\n");
        skip();
    }
    get(f, "/file");
    assert_int_equal(f->code, 0);
    assert_int_equal(f->uid, USER);
    assert_int_equal(f->capabilities, 0);
    assert_int_equal(f->no_new_privileges, 1);
}

static void test_not_there(void **state)
{
    struct fixture *f = *state;
    get(f, "/nothing");
    assert_int_equal(f->code, 0);
    assert_int_equal(f->status, 404);
    assert_int_equal(f->heads, 0);
    assert_string_equal((char *)f->body.data, "");
}

static void test_nobody_listens(void **state)
{
    struct fixture *f = *state;
    snprintf(f->url, sizeof f->url, "http://127.0.0.1:1/file");
    const struct web_get_options options = {.url = f->url, .user = USER, .on_head = on_head, .on_data = on_data, .arg = f};
    assert_int_equal(web_get_perform(&options, &f->status, &f->err), -ECONNREFUSED);
    assert_int_equal(f->err.kind, ERROR_UNREACHABLE);
    assert_true(f->err.text[0] != '\0');
}

static void test_refused_by_the_caller(void **state)
{
    struct fixture *f = *state;
    f->refuse = -ENOSPC;
    get(f, "/file");
    assert_int_equal(f->code, -ENOSPC);
    assert_child_gone(f);
}

static void test_stopped(void **state)
{
    struct fixture *f = *state;
    get(f, "/endless");
    assert_int_equal(f->code, -ECANCELED);
    assert_child_gone(f);
}

/* ---- one that was taken over ---- */

static void put_record(uint32_t kind, uint32_t says, const char *data, size_t size)
{
    const uint32_t head[] = {kind, says};
    bool written = write(STDOUT_FILENO, head, sizeof head) == sizeof head && write(STDOUT_FILENO, data, size) == (ssize_t)size;
    if (!written)
        _exit(1);
}

static int lie(const char *how)
{
    static char large[WEB_GET_DATA_BYTES_MAX + 1], padded[WEB_GET_JSON_BYTES_MAX + 1];
    static const char end[] = "{\"status\":200}", odd[] = "{\"status\":99999}", head[] = "{\"status\":404}";
    memset(padded, ' ', sizeof padded); /* well-formed, but for its size */
    memcpy(padded, end, sizeof end - 1);
    if (strcmp(how, "large") == 0)
        put_record(WEB_GET_DATA, sizeof large, large, sizeof large);
    else if (strcmp(how, "empty") == 0)
        put_record(WEB_GET_DATA, 0, "", 0);
    else if (strcmp(how, "large-end") == 0)
        put_record(WEB_GET_END, WEB_GET_JSON_BYTES_MAX + 1, padded, WEB_GET_JSON_BYTES_MAX + 1);
    else if (strcmp(how, "unknown") == 0)
        put_record(77, 3, "abc", 3);
    else if (strcmp(how, "cut") == 0)
        put_record(WEB_GET_END, sizeof end - 1, end, 5);
    else if (strcmp(how, "head") == 0)
        put_record(WEB_GET_HEAD, sizeof head - 1, head, sizeof head - 1);
    else if (strcmp(how, "odd") == 0)
        put_record(WEB_GET_END, sizeof odd - 1, odd, sizeof odd - 1);
    return 0;
}

static void test_lies(void **state)
{
    static const char *const lies[] = {"nothing", "large", "empty", "large-end", "unknown", "cut", "head", "odd"};
    struct fixture *f = *state;
    if (geteuid() != 0) {
        print_message("SKIPPED: without root there is no process of its own\n");
        skip();
    }
    for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
        setenv(LIE, lies[i], 1);
        f->err = (struct error){.code = 0};
        f->code = 0;
        get(f, "/file");
        assert_int_equal(f->code, -EPROTO);
        assert_true(strstr(f->err.text, f->url) != NULL);
        assert_int_equal(f->heads, 0);
    }
}

/* ---- imports ---- */

#define IMAGE "11111111-2222-4333-8444-555555555555"
#define SHA256_OF_FILE "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"

static void import(uv_work_t *w)
{
    struct fixture *f = w->data;
    f->code = image_import_run(&f->image, NULL, &f->result, &f->err);
}

/* An earlier run has left four bytes of another file. */
static void import_over_a_part(struct fixture *f, const char *sha256, const char *path)
{
    char dir[] = "/tmp/web_get.XXXXXX";
    assert_non_null(mkdtemp(dir));
    CLEANUP_FREE char *images = xasprintf("%s/images", dir), *source = xasprintf("%s/" IMAGE ".source", dir);
    snprintf(f->url, sizeof f->url, "http://127.0.0.1:%u%s", http_server_port(f->server), path);
    assert_int_equal(mkdir(images, 0700), 0);
    assert_int_equal(file_write_atomic(source, "abcd", 4, 0600, NULL), 0);
    OBJECT_TEXT(image_work, &f->image, image, IMAGE);
    OBJECT_TEXT(image_work, &f->image, url, f->url);
    OBJECT_TEXT(image_work, &f->image, sha256, sha256);
    OBJECT_SET(image_work, &f->image, format, image_format_RAW);
    OBJECT_TEXT(image_work, &f->image, work_dir, dir);
    OBJECT_TEXT(image_work, &f->image, images_dir, images);
    OBJECT_SET(image_work, &f->image, user, USER);
    OBJECT_SET(image_work, &f->image, web_user, USER);
    f->work.data = f;
    assert_int_equal(uv_queue_work(&f->loop, &f->work, import, after), 0);
    while (!f->done)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(file_remove_tree("/tmp", dir + 5, NULL), 0);
    OBJECT_CLEAR(image_work, &f->image);
}

static void test_import_without_a_checksum_begins_anew(void **state)
{
    struct fixture *f = *state;
    import_over_a_part(f, NULL, "/file");
    if (f->code < 0)
        fail_msg("%s", f->err.text);
    assert_string_equal(f->result.sha256, SHA256_OF_FILE);
    OBJECT_CLEAR(image_result, &f->result);
}

static void test_import_with_a_checksum_goes_on(void **state)
{
    struct fixture *f = *state;
    import_over_a_part(f, SHA256_OF_FILE, "/file");
    assert_int_equal(f->err.kind, ERROR_CHECKSUM); /* "abcd456789": the part was of another file, and that shows */
    OBJECT_CLEAR(image_result, &f->result);
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "web-get") == 0)
        return getenv(LIE) != NULL ? lie(getenv(LIE)) : web_get_main((pid_t)strtol(argv[2], NULL, 10));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(test_from_an_offset, setup, teardown),
        cmocka_unit_test_setup_teardown(test_has_no_rights, setup, teardown),
        cmocka_unit_test_setup_teardown(test_not_there, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nobody_listens, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused_by_the_caller, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stopped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lies, setup, teardown),
        cmocka_unit_test_setup_teardown(test_import_without_a_checksum_begins_anew, setup, teardown),
        cmocka_unit_test_setup_teardown(test_import_with_a_checksum_goes_on, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
