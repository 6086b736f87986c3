/* Images of the host: what the controllers want kept and know of other holders, what VMs use, and who may have them. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "compute/agent/agent.h"

#define IMAGES_PATH "/v1/images/"
#define SHA256_LENGTH 64
#define STREAM_PATH "/stream"
#define UPLOADS_PATH "/v1/uploads/"

/* ---- VMs, orders, reports ---- */

static bool order_names(const struct vm_order *order, const char *sha256)
{
    const char *const names[] = {order->kernel.sha256, order->initrd.sha256, order->disk.sha256};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (names[i] != NULL && strcmp(names[i], sha256) == 0)
            return true;
    return false;
}

static bool in_use(const char *sha256, void *arg)
{
    const struct agent *a = arg;
    const struct local_vm *vm;
    for (size_t i = 0; (vm = map_next(&a->vms, &i)) != NULL;)
        if (order_names(vm_order_of(vm), sha256))
            return true;
    return agent_volumes_use(a, sha256);
}

static void changed(void *arg)
{
    struct agent *a = arg;
    if (a->session != NULL)
        session_poke(a->session);
}

int agent_images_start(struct agent *a, struct error *err)
{
    CLEANUP_FREE char *imports = xasprintf("%s/imports", a->data_dir);
    a->image_identity.tls = a->tls;
    a->image_identity.host_prefix = xasprintf("spiffe://drover/%s/host/", a->identity.cluster_id);
    const struct image_cache_owner owner = {.identity = &a->image_identity, .in_use = in_use, .changed = changed, .arg = a};
    image_cache_set_owner(a->images, &owner);
    return image_upload_init(&a->uploads, a->loop, imports, err);
}

void agent_images_learn(struct agent *a, const struct node_orders *orders)
{
    image_cache_learn(a->images, &orders->images);
    for (size_t i = 0; i < orders->forget_images.count; i++)
        image_cache_forget(a->images, orders->forget_images.items[i]);
}

void agent_images_put_seen(struct agent *a, struct node_report *report)
{
    OBJECT_SET(node_report, report, disk_free_bytes, a->facts.disk_free_bytes);
    image_cache_put_seen(a->images, report);
}

void agent_images_tick(struct agent *a)
{
    image_cache_tick(a->images);
}

void agent_images_stop(struct agent *a)
{
    a->closing += 2;
    image_serve_close(&a->image_serves, agent_part_closed, a);
    image_upload_close(&a->uploads, agent_part_closed, a);
}

void agent_images_finish(struct agent *a)
{
    free((char *)a->image_identity.host_prefix);
    image_upload_finish(&a->uploads);
}

/* ---- requests ---- */

/* "<sha256>" or "<sha256>/stream" behind IMAGES_PATH. */
static bool path_parse(const char *path, char sha256[SHA256_LENGTH + 1], bool *ret_stream)
{
    const char *rule, *name = path + strlen(IMAGES_PATH);
    if (strncmp(path, IMAGES_PATH, strlen(IMAGES_PATH)) != 0 || strlen(name) < SHA256_LENGTH)
        return false;
    memcpy(sha256, name, SHA256_LENGTH);
    sha256[SHA256_LENGTH] = '\0';
    *ret_stream = strcmp(name + SHA256_LENGTH, STREAM_PATH) == 0;
    return text_format_ok(FORMAT_sha256, sha256, &rule) && (*ret_stream || name[SHA256_LENGTH] == '\0');
}

static bool upload_handle(struct agent *a, struct http_request *request)
{
    const char *rule, *id = request->path + strlen(UPLOADS_PATH);
    if (strncmp(request->path, UPLOADS_PATH, strlen(UPLOADS_PATH)) != 0 || !text_format_ok(FORMAT_id, id, &rule))
        return false;
    image_upload_handle(&a->uploads, request, id);
    return true;
}

bool agent_images_handle(struct agent *a, struct http_request *request, bool controller)
{
    char sha256[SHA256_LENGTH + 1], path[IMAGE_CACHE_PATH_BYTES_MAX];
    const struct artifact artifact = {.sha256 = sha256};
    struct error err = {.code = 0};
    bool stream;
    if (controller && upload_handle(a, request))
        return true;
    if (!path_parse(request->path, sha256, &stream) || (!controller && !stream))
        return false;
    if (request->method != HTTP_GET)
        error_set(&err, -EINVAL, ERROR_METHOD, "an image that is here is only read");
    else if (image_cache_find(a->images, &artifact, path, sizeof(path)) < 0)
        error_set(&err, -ENOENT, ERROR_NOT_FOUND, "this host does not hold that image (any more)");
    if (err.code != 0)
        http_respond_error(request, &err);
    else if (stream)
        image_serve_stream(&a->image_serves, request, path);
    else
        image_serve_content(&a->image_serves, request, path);
    return true;
}
