/* One drill at a time: when it begins, and until when. The clock is asked here and nowhere behind. */
#include "controller/command/decide_internal.h"

#include <stdio.h>
#include <string.h>

#include "controller/fsm/time_text.h"

static int finish(struct deciding *d, struct command_drill *command, const char *what)
{
    const struct record *cluster = state_at(d->state, object_kind_CLUSTER, 0);
    decide_request(d, 200, &command->request);
    decide_object(d, object_kind_CLUSTER, cluster->common->id);
    snprintf(d->decision->summary, sizeof d->decision->summary, "drill %s %s", command->drill, what);
    decide_preview(d, cluster->desc, cluster->object);
    return decide_finish(d, COMMAND_drill, command);
}

int decide_drill_begin(struct deciding *d, const struct drill_reservation *body)
{
    struct command_drill command = {0};
    char until[TIME_TEXT_BYTES];
    time_text_format(time_text_ms(d->context->now) + (uint64_t)body->seconds * 1000, until);
    OBJECT_TEXT(command_drill, &command, drill, body->drill);
    OBJECT_TEXT(command_drill, &command, until, until);
    return finish(d, &command, "begins");
}

int decide_drill_end(struct deciding *d, const char *drill, size_t length)
{
    struct command_drill command = {0};
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)MIN(length, sizeof name - 1), drill != NULL ? drill : "");
    OBJECT_TEXT(command_drill, &command, drill, name);
    return finish(d, &command, "has ended");
}
