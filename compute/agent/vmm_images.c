/* Requests to a VMM about images of its disks; see vmm_images.h. */
#include "compute/agent/vmm_images.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

enum {
    VMM_ANSWER_BYTES_MAX = 64 * 1024,
    VMM_ANSWER_S = 90, /* longer than a freeze may take */
};

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
static int vmm_ask(const char *path, const char *method, const struct bytes_writer *body, char **ret_body, struct error *err)
{
    CLEANUP_FREE char *answer = xcalloc(1, VMM_ANSWER_BYTES_MAX + 1);
    size_t size = 0;
    int status = 0;
    CLEANUP_FD int fd = vmm_connect(path, err);
    if (fd < 0)
        return fd;
    CLEANUP_FREE char *request =
        xasprintf("%s /v1/vm/backup HTTP/1.1\r\nHost: vm\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%.*s", method,
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
    int status = vmm_ask(control_path, "PUT", &body, &text, err);
    bytes_writer_finish(&body);
    OBJECT_CLEAR(vmm_backup_end, &order);
    return status < 0 ? status : status == 200 ? 0 : vmm_refused(text, err);
}

/* Those that a process left which was killed. */
static void images_left(const char *control_path)
{
    struct vmm_backup left = {.phase = 0};
    CLEANUP_FREE char *text = NULL;
    if (vmm_ask(control_path, "GET", NULL, &text, NULL) == 200 &&
        OBJECT_DECODE(vmm_backup, text, strlen(text), OBJECT_STORED, &left, NULL) == 0) {
        if (left.phase != vmm_backup_phase_NONE && left.name != NULL)
            (void)vmm_images_end(control_path, left.name, false, NULL);
        OBJECT_CLEAR(vmm_backup, &left);
    }
}

int vmm_images_begin(const char *control_path, const struct vmm_backup_order *order, struct vmm_backup *ret_images, struct error *err)
{
    struct bytes_writer body = {0};
    CLEANUP_FREE char *text = NULL;
    images_left(control_path);
    OBJECT_ENCODE(vmm_backup_order, order, &body);
    int status = vmm_ask(control_path, "POST", &body, &text, err);
    bytes_writer_finish(&body);
    if (status < 0)
        return status;
    if (status != 201)
        return vmm_refused(text, err);
    return OBJECT_DECODE(vmm_backup, text, strlen(text), OBJECT_STORED, ret_images, err);
}
