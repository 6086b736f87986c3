/* event list and follow, vm events. Following survives the loss of a controller: it goes on at the next one after
 * the last index seen, so nothing is shown twice or left out. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli/client.h"
#include "cli/verb_functions.h"
#include "cli/output.h"
#include "common/http_client.h"

#define EVENT_COLUMNS "index,at,type,object_kind,object_name,message"
#define FOLLOW_IDLE_MS 45000 /* the server sends a comment every 15 s */
#define FOLLOW_PAUSE_MS 300

static int parse_after(const struct invocation *call, uint64_t *ret, struct error *err)
{
    const char *text = invocation_option(call, "after");
    char *end;
    if (text == NULL)
        return 0;
    *ret = strtoull(text, &end, 10);
    if (end == text || *end != '\0')
        return error_set(err, -EINVAL, ERROR_INVALID, "--after takes the index of an event, not '%s'", text);
    return 0;
}

/* Events carry ids; a person may have typed a name: keep both. */
static json_t *events_of(const json_t *events, const char *object)
{
    json_t *kept = json_array();
    const json_t *e;
    size_t i;
    json_array_foreach(events, i, e)
    {
        const char *id = json_string_value(json_object_get(e, "object_id")), *name = json_string_value(json_object_get(e, "object_name"));
        const char *kind = json_string_value(json_object_get(e, "object_kind"));
        if (object == NULL || ((kind == NULL || strcmp(kind, "vm") == 0) &&
                               ((id && strcmp(id, object) == 0) || (name && strcmp(name, object) == 0))))
            json_array_append(kept, (json_t *)(uintptr_t)e);
    }
    return kept;
}

int event_list(const struct invocation *call, struct error *err)
{
    struct client client;
    struct reply reply = {0};
    uint64_t after = 0;
    int rc = client_init(&client, call, err);
    if (rc == 0)
        rc = parse_after(call, &after, err);
    if (rc == 0) {
        CLEANUP_FREE char *path = xasprintf("/v1/events?after=%" PRIu64, after);
        rc = client_request(&client, "GET", path, NULL, &reply, err);
    }
    if (rc == 0) {
        json_t *kept = events_of(reply.json, call->name);
        output_list(call, kept, EVENT_COLUMNS);
        json_decref(kept);
    }
    reply_finish(&reply);
    client_finish(&client);
    return rc;
}

struct follow {
    const struct invocation *call;
    struct http_event_reader reader;
    uint64_t after;
    bool resync;
    bool unread; /* whoever read what is shown has gone */
};

static void show_event(const struct http_event *event, void *arg)
{
    struct follow *f = arg;
    char at[64], kind[64], name[128], message[800];
    json_t *e = json_loadb(event->data, event->data_size, JSON_REJECT_DUPLICATES, NULL);
    if (strcmp(event->name, "resync") == 0)
        f->resync = true;
    const json_t *index = json_object_get(e, "index");
    if (json_is_integer(index)) {
        f->after = (uint64_t)json_integer_value(index);
        if (f->call->output == OUTPUT_TABLE)
            printf("%s  %-10s %-20s %s\n", output_cell("at", json_object_get(e, "at"), at, sizeof at),
                   output_cell("k", json_object_get(e, "object_kind"), kind, sizeof kind),
                   output_cell("n", json_object_get(e, "object_name"), name, sizeof name),
                   output_cell("m", json_object_get(e, "message"), message, sizeof message));
        else
            output_object(f->call, e);
        f->unread = fflush(stdout) != 0 || ferror(stdout);
    }
    json_decref(e);
}

static int feed(const void *data, size_t size, void *arg)
{
    struct follow *f = arg;
    int rc = http_event_reader_feed(&f->reader, data, size);
    return f->unread ? -EPIPE : rc;
}

int event_follow(const struct invocation *call, struct error *err)
{
    struct client client;
    struct follow follow = {.call = call, .reader = {.on_event = show_event}};
    follow.reader.arg = &follow;
    int rc = client_init(&client, call, err);
    if (rc == 0)
        rc = parse_after(call, &follow.after, err);
    while (rc == 0 && !follow.unread) {
        int status = 0;
        CLEANUP_FREE char *url = xasprintf("https://%s/v1/events?after=%" PRIu64, client_endpoint(&client), follow.after);
        struct http_call_options options = {.url = url,
                                            .tls = client.tls,
                                            .peer_prefix = client.controllers,
                                            .headers = (const char *const[]){"Accept: text/event-stream", NULL},
                                            .idle_ms = FOLLOW_IDLE_MS,
                                            .on_data = feed,
                                            .arg = &follow};
        int ended = http_client_perform(&options, &status, NULL, NULL, err);
        http_event_reader_finish(&follow.reader);
        follow.reader = (struct http_event_reader){.on_event = show_event, .arg = &follow};
        if (follow.resync || status == 410)
            rc = error_set(err, -EPROTO, ERROR_GONE, "events after %" PRIu64 " are no longer held; begin anew without --after", follow.after);
        else if (!follow.unread && (ended == -EACCES || (status >= 400 && status != 503)))
            rc = ended < 0 ? ended : error_set(err, -EPROTO, ERROR_INTERNAL, "the controller answered with status %d", status);
        client.at = (client.at + 1) % client.n_endpoints;
        nanosleep(&(struct timespec){.tv_nsec = FOLLOW_PAUSE_MS * 1000000L}, NULL);
    }
    http_event_reader_finish(&follow.reader);
    client_finish(&client);
    return rc;
}
