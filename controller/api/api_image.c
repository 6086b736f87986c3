/* Content of images.
 *
 *   GET /v1/images/{id}/content     any controller -> https://<a holder>/v1/images/<sha256> with the controller's
 *                                   certificate; Range goes with it, the answer is piped
 *
 *   HEAD, PATCH /v1/images/{id}/upload  any controller -> https://<the host that takes it>/v1/uploads/<image>
 *
 * Any controller does it, so that not all bytes go through the leader. One that has not heard of the image asks the
 * leader. Holders take turns, so that a client that asks again, because one did not answer (502), comes to another. */
#include "controller/api/api_image.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "controller/api/api_forward.h"
#include "controller/fsm/image_copies.h"

#define CONNECT_MS 2000u

/* A host to go to. */
struct place {
    char host[STATE_ID_BYTES], address[256], path[160];
};

static const struct record *holder(const struct state *state, const struct image_copy *copy)
{
    const struct record *host = copy->state == image_copy_state_HELD ? state_get(state, object_kind_HOST, copy->host) : NULL;
    return host != NULL && host->host->state == host_state_UP && host->host->address != NULL ? host : NULL;
}

/* A holder that is up, each time another one. */
static int find_holder(const struct state *state, const struct image *image, unsigned turn, struct place *ret, struct error *err)
{
    const struct image_copy *copies = image->copies.items;
    for (size_t i = 0; i < image->copies.count; i++) {
        const struct record *host = holder(state, &copies[(i + turn) % image->copies.count]);
        if (host == NULL)
            continue;
        snprintf(ret->host, sizeof ret->host, "%s", host->common->id);
        snprintf(ret->address, sizeof ret->address, "%s", host->host->address);
        snprintf(ret->path, sizeof ret->path, "/v1/images/%s", image->disk.sha256);
        return 0;
    }
    return error_set(err, -ENOENT, ERROR_CONFLICT,
                     "no host that is up has image '%s' (yet): `drover image show %s` lists who has it, and "
                     "`drover image distribute` has hosts fetch it", image->name, image->name);
}

static int upload_place(const struct state *state, const struct image *image, struct place *ret, struct error *err)
{
    const struct record *host = state_get(state, object_kind_HOST, image->host);
    if (image->state != image_state_UPLOADING || host == NULL || host->host->address == NULL)
        return error_set(err, -EINVAL, ERROR_CONFLICT, "image '%s' takes no upload: it is %s%s%.300s", image->name,
                         image_state_desc.names[image->state], image->state_reason != NULL ? ": " : "",
                         image->state_reason != NULL ? image->state_reason : "");
    snprintf(ret->host, sizeof ret->host, "%s", host->common->id);
    snprintf(ret->address, sizeof ret->address, "%s", host->host->address);
    snprintf(ret->path, sizeof ret->path, "/v1/uploads/%s", image->id);
    return 0;
}

static int find_place(struct api_call *call, bool upload, struct place *ret, struct error *err)
{
    int r;
    service_lock_state(call->service);
    const struct record *record = state_get(call->service->state, object_kind_IMAGE, call->id);
    if (record == NULL)
        r = error_set(err, -ENOENT, ERROR_NOT_FOUND, "there is no image '%s'", call->id);
    else if (upload)
        r = upload_place(call->service->state, record->image, ret, err);
    else if (!image_has_copies(record->image))
        r = error_set(err, -EINVAL, ERROR_CONFLICT, "image '%s' has no disk to download%s%s", call->id,
                      record->image->state_reason != NULL ? ": " : "",
                      record->image->state_reason != NULL ? record->image->state_reason : "");
    else
        r = find_holder(call->service->state, record->image, call->service->api.image_turn++, ret, err);
    service_unlock_state(call->service);
    return r;
}

static void pass_on(struct api_call *call, bool upload)
{
    struct place place;
    struct error err;
    if (find_place(call, upload, &place, &err) == 0)
        api_call_pass_to_host(call, place.host, place.address, place.path, CONNECT_MS);
    else if (call->service->ready || call->caller.hops >= API_CALLER_HOPS_MAX || api_forward(call) < 0)
        api_call_error(call, &err);
}

void api_image_content(struct api_call *call)
{
    pass_on(call, false);
}

void api_image_upload(struct api_call *call)
{
    pass_on(call, true);
}
