/* One drill at a time (docs/drills.md). What a drill does is in no log; that it is under way is, so that no two make things
 * fail at once, whoever they ask. A drill whose maker is gone stops counting at its drill_until, which is judged by the time in
 * the command of the one that wants to begin. */
#include "controller/fsm/apply_internal.h"

#include <errno.h>
#include <string.h>

#include "controller/fsm/time_text.h"

static bool is_under_way(const struct cluster *cluster, uint64_t now_ms)
{
    return cluster->drill != NULL && time_text_ms(cluster->drill_until) > now_ms;
}

void apply_drill(struct apply *a, struct command_drill *command)
{
    struct record *record = a->state->tables[object_kind_CLUSTER].order.items[0];
    struct cluster *cluster = record->cluster;
    bool own = cluster->drill != NULL && strcmp(cluster->drill, command->drill) == 0;
    if (command->until != NULL && !own && is_under_way(cluster, time_text_ms(command->request.at))) {
        apply_refuse(a, -EBUSY, ERROR_CONFLICT, "drill %s is under way; wait for its end, at %s at the latest", cluster->drill,
                     cluster->drill_until);
        return;
    }
    if (a->check_only)
        return;
    apply_answer(a, record);
    if (command->until == NULL && !own)
        return; /* has ended already */
    state_edit_begin(a->state, record);
    if (command->until != NULL) {
        OBJECT_TEXT(cluster, cluster, drill, command->drill);
        OBJECT_TEXT(cluster, cluster, drill_until, command->until);
    } else {
        OBJECT_TEXT(cluster, cluster, drill, NULL);
        OBJECT_TEXT(cluster, cluster, drill_until, NULL);
    }
    state_edit_end(a->state, record, a->index);
    if (!own || command->until == NULL)
        apply_event(a, event_type_UPDATED, record, "drill %s %s", command->drill, command->until != NULL ? "begins" : "has ended");
}
