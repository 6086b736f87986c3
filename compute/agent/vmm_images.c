/* Requests to a VMM about images of its disks; see vmm_images.h. */
#include "compute/agent/vmm_images.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "compute/agent/task_child.h"

enum {
    VMM_ANSWER_BYTES_MAX = 64 * 1024,
    VMM_ANSWER_S = 90, /* longer than a freeze may take */
    POINTS_LOOK_MS = 200,
    POINTS_WAIT_S = 3600, /* a snapshot with much memory takes its time */
};

static const char backup_path[] = "backup", points_path[] = "points";

static int vmm_connect(const char *path, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = VMM_ANSWER_S};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0 &&
        connect(fd, (const struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    int code = error_errno(err, -errno, "cannot reach the VMM");
    close_fd(&fd);
    return code;
}

/* One request; the caller frees *ret_body, a text. The HTTP status, or negative errno. */
static int vmm_ask(const char *path, const char *method, const char *what, const struct bytes_writer *body, char **ret_body,
                   struct error *err)
{
    CLEANUP_FREE char *answer = xcalloc(1, VMM_ANSWER_BYTES_MAX + 1);
    size_t size = 0;
    int status = 0;
    CLEANUP_FD int fd = vmm_connect(path, err);
    if (fd < 0)
        return fd;
    CLEANUP_FREE char *request =
        xasprintf("%s /v1/vm/%s HTTP/1.1\r\nHost: vm\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%.*s", method, what,
                  body != NULL ? body->size : 0, body != NULL ? (int)body->size : 0,
                  body != NULL ? (const char *)body->data : "");
    if (send(fd, request, strlen(request), MSG_NOSIGNAL) != (ssize_t)strlen(request))
        return error_errno(err, -EIO, "cannot ask the VMM");
    for (ssize_t n = 1; n > 0 && size < VMM_ANSWER_BYTES_MAX; size += n > 0 ? (size_t)n : 0)
        n = recv(fd, answer + size, VMM_ANSWER_BYTES_MAX - size, 0);
    const char *end = strstr(answer, "\r\n\r\n");
    if (end == NULL || sscanf(answer, "HTTP/1.1 %3d ", &status) != 1)
        return error_set(err, -EPROTO, ERROR_UNREACHABLE, "the VMM does not answer");
    *ret_body = xstrdup(end + 4);
    return status;
}

/* What went wrong by the VMM's own words. */
static int vmm_refused(const char *text, struct error *err)
{
    json_t *problem = json_loads(text, 0, NULL);
    const char *code = json_string_value(json_object_get(problem, "code"));
    const char *detail = json_string_value(json_object_get(problem, "detail"));
    int r = error_set(err, -EIO, error_kind_from_code(code != NULL ? code : "internal"), "its VMM: %s",
                      detail != NULL ? detail : "it does not say why");
    json_decref(problem);
    return r;
}

int vmm_images_end(const char *control_path, const char *name, bool kept, struct error *err)
{
    struct vmm_backup_end order = {.kept = false};
    struct bytes_writer body = {0};
    CLEANUP_FREE char *text = NULL;
    OBJECT_TEXT(vmm_backup_end, &order, name, name);
    OBJECT_SET(vmm_backup_end, &order, kept, kept);
    OBJECT_ENCODE(vmm_backup_end, &order, &body);
    int status = vmm_ask(control_path, "PUT", backup_path, &body, &text, err);
    bytes_writer_finish(&body);
    OBJECT_CLEAR(vmm_backup_end, &order);
    return status < 0 ? status : status == 200 ? 0 : vmm_refused(text, err);
}

/* Those that a process left which was killed. */
static void images_left(const char *control_path)
{
    struct vmm_backup left = {.phase = 0};
    CLEANUP_FREE char *text = NULL;
    if (vmm_ask(control_path, "GET", backup_path, NULL, &text, NULL) == 200 &&
        OBJECT_DECODE(vmm_backup, text, strlen(text), OBJECT_STORED, &left, NULL) == 0) {
        if (left.phase != vmm_backup_phase_NONE && left.name != NULL)
            (void)vmm_images_end(control_path, left.name, false, NULL);
        OBJECT_CLEAR(vmm_backup, &left);
    }
}

/* Is a snapshot of the VM's disks being made, or the name of one taken away? */
static bool points_are_busy(const char *control_path)
{
    struct vmm_points points = {.busy = false};
    CLEANUP_FREE char *text = NULL;
    bool busy = vmm_ask(control_path, "GET", points_path, NULL, &text, NULL) == 200 &&
                OBJECT_DECODE(vmm_points, text, strlen(text), OBJECT_LENIENT, &points, NULL) == 0 && points.busy;
    OBJECT_CLEAR(vmm_points, &points);
    return busy;
}

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* @err: how it refused. False: not for a snapshot's sake, or that was waited for long enough. One may have come to its end since it refused:
 * then it is asked once more. */
static bool snapshot_wait(const char *control_path, const struct error *err, uint64_t until_ms, bool *asked_again)
{
    const struct timespec pause = {.tv_nsec = POINTS_LOOK_MS * 1000000L};
    if (err->kind != ERROR_CONFLICT || now_ms() >= until_ms)
        return false;
    if (!points_are_busy(control_path)) {
        bool again = !*asked_again;
        *asked_again = true;
        return again;
    }
    task_child_tell("waiting for a snapshot of the VM, which is being made or removed", 0, 0);
    *asked_again = false;
    do
        nanosleep(&pause, NULL);
    while (points_are_busy(control_path) && now_ms() < until_ms);
    return true;
}

int vmm_images_begin(const char *control_path, const struct vmm_backup_order *order, struct vmm_backup *ret_images, struct error *err)
{
    const uint64_t until_ms = now_ms() + POINTS_WAIT_S * UINT64_C(1000);
    bool asked_again = false;
    images_left(control_path);
    for (;;) {
        struct bytes_writer body = {0};
        CLEANUP_FREE char *text = NULL;
        struct error why;
        OBJECT_ENCODE(vmm_backup_order, order, &body);
        int status = vmm_ask(control_path, "POST", backup_path, &body, &text, &why);
        bytes_writer_finish(&body);
        if (status == 201)
            return OBJECT_DECODE(vmm_backup, text, strlen(text), OBJECT_STORED, ret_images, err);
        int code = status < 0 ? status : vmm_refused(text, &why);
        if (status >= 0 && snapshot_wait(control_path, &why, until_ms, &asked_again))
            continue;
        *err = why;
        return code;
    }
}
