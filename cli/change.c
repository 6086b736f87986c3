/* Changing an object: read it, lay over, give it back under the revision that was read. */
#include "cli/change.h"

#include <errno.h>
#include <time.h>

#include "cli/body.h"

#define TRIES_MAX 10
#define PAUSE_MS 100

static int build_and_patch(const struct invocation *call, struct client *client, const char *path, const json_t *held,
                           struct reply *ret, struct error *err)
{
    json_t *body = NULL;
    int rc = body_build_change(call, schema_routes[call->verb->route].body, held, &body, err);
    if (rc < 0)
        return rc;
    client->if_revision = (uint64_t)json_integer_value(json_object_get(held, "revision"));
    rc = client_request(client, "PATCH", path, body, ret, err);
    client->if_revision = 0;
    json_decref(body);
    return rc;
}

static int read_and_patch(const struct invocation *call, struct client *client, const char *path, struct reply *ret, struct error *err)
{
    struct reply held;
    CLEANUP_FREE char *show = client_path(call->verb->route, call->name, "");
    int rc = client_request(client, "GET", show, NULL, &held, err);
    if (rc == 0 && !json_is_object(held.json))
        rc = error_set(err, -EPROTO, ERROR_INTERNAL, "the controller's answer is no %s", call->verb->noun);
    if (rc == 0)
        rc = build_and_patch(call, client, path, held.json, ret, err);
    reply_finish(&held);
    return rc;
}

int change_request(const struct invocation *call, struct client *client, const char *path, struct reply *ret, struct error *err)
{
    *ret = (struct reply){0};
    if (!body_change_needs_held(call, schema_routes[call->verb->route].body)) {
        json_t *nothing = json_object();
        int rc = build_and_patch(call, client, path, nothing, ret, err);
        json_decref(nothing);
        return rc;
    }
    for (unsigned tries = 1;; tries++) {
        int rc = read_and_patch(call, client, path, ret, err);
        if (rc == 0 || err->kind != ERROR_STALE || tries == TRIES_MAX)
            return rc;
        reply_finish(ret);
        nanosleep(&(struct timespec){.tv_nsec = PAUSE_MS * 1000000L}, NULL);
    }
}
