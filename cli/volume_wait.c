/* Polls the volume, and its VM where it has one; see the header. */
#include "cli/volume_wait.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli/output.h"

#define LOOK_PAUSE_MS 200
#define REASON_BYTES_MAX 500

static const char *text_of(const json_t *o, const char *field)
{
    const char *s = json_string_value(json_object_get(o, field));
    return s != NULL ? s : "";
}

/* Has the VM come to what is wanted of it? @reason: why not. */
static bool vm_settled(struct client *client, const char *vm, char reason[REASON_BYTES_MAX])
{
    struct reply reply = {0};
    CLEANUP_FREE char *path = client_path(ROUTE_ID_vm_show, vm, "");
    int rc = client_request(client, "GET", path, NULL, &reply, NULL);
    json_int_t wanted = json_integer_value(json_object_get(reply.json, "generation"));
    bool settled = rc == 0 && json_integer_value(json_object_get(reply.json, "seen_generation")) >= wanted;
    if (text_of(reply.json, "state_reason")[0] != '\0')
        snprintf(reason, REASON_BYTES_MAX, "%.499s", text_of(reply.json, "state_reason"));
    reply_finish(&reply);
    return settled;
}

static bool is_settled(struct client *client, const json_t *volume, char reason[REASON_BYTES_MAX])
{
    const char *state = text_of(volume, "state"), *vm = text_of(volume, "vm");
    const char *why = text_of(volume, "state_reason");
    snprintf(reason, REASON_BYTES_MAX, "%.60s%s%.400s", state, why[0] != '\0' ? ": " : "", why);
    bool vm_has = vm[0] == '\0' || vm_settled(client, vm, reason);
    return strcmp(state, "available") == 0 || (strcmp(state, "attached") == 0 && vm_has);
}

int volume_wait(const struct invocation *call, struct client *client, const char *id, json_t **ret_volume, struct error *err)
{
    time_t end = time(NULL) + call->timeout_s;
    CLEANUP_FREE char *path = client_path(ROUTE_ID_volume_show, id, "");
    for (;;) {
        struct reply reply = {0};
        char reason[REASON_BYTES_MAX], clean[REASON_BYTES_MAX];
        int rc = client_request(client, "GET", path, NULL, &reply, err);
        bool gone = rc < 0 && err->kind == ERROR_NOT_FOUND;
        bool settled = rc == 0 && is_settled(client, reply.json, reason);
        if (settled)
            *ret_volume = json_incref(reply.json);
        reply_finish(&reply);
        if (gone || settled || rc < 0)
            return gone ? 0 : rc;
        if (time(NULL) >= end)
            return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT, "not done within %u s (%s); it goes on: `drover volume show`",
                             call->timeout_s, output_clean(reason, clean, sizeof clean));
        nanosleep(&(struct timespec){.tv_nsec = LOOK_PAUSE_MS * 1000000L}, NULL);
    }
}
