/* Recovery from one survivor; the steps are in the header. */
#include "controller/cluster_recover.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/file.h"
#include "controller/environment.h"
#include "controller/fsm/apply.h"
#include "controller/fsm/snapshot.h"
#include "controller/raft/raft_node.h"

struct look {
    struct state *state;
    struct error error; /* a command that only a newer version knows */
};

static void look_apply(void *ctx, uint64_t index, const void *entry, size_t size, void **ret_result)
{
    struct look *look = ctx;
    struct apply_result result;
    (void)ret_result;
    if (look->error.code != 0)
        return;
    fsm_apply(look->state, index, entry, size, &result);
    if (result.fatal)
        look->error = result.error;
}

static int look_restore(void *ctx, const void *data, size_t size, struct error *err)
{
    return snapshot_restore(((struct look *)ctx)->state, data, size, err);
}

static int fill_plan(const struct data_dir *dir, const struct state *state, struct cluster_recover_plan *plan,
                     struct error *err)
{
    const struct record *me = state_get(state, object_kind_CONTROLLER, dir->identity.id);
    uint64_t identity_epoch = data_dir_epoch(dir);
    if (!state_initialized(state) || me == NULL)
        return error_set(err, -EUCLEAN, ERROR_CONFLICT,
                         "the log in %s does not know controller %s: it joined and received nothing, or was removed; "
                         "use another survivor",
                         dir->path, dir->identity.name);
    plan->epoch = state_cluster(state)->epoch;
    plan->unfinished = identity_epoch > plan->epoch;
    plan->new_epoch = plan->unfinished ? identity_epoch : plan->epoch + 1;
    plan->new_epoch = MAX(plan->new_epoch, dir->identity.superseded_by + 1); /* whoever has heard of that one is to follow */
    snprintf(plan->cluster, sizeof plan->cluster, "%s", state_cluster(state)->name);
    snprintf(plan->survivor, sizeof plan->survivor, "%s", me->common->name);
    snprintf(plan->survivor_id, sizeof plan->survivor_id, "%s", me->common->id);
    for (size_t i = 0; i < state_count(state, object_kind_CONTROLLER); i++) {
        const struct record *record = state_at(state, object_kind_CONTROLLER, i);
        if (record != me && plan->lost_count < CLUSTER_RECOVER_LOST_MAX)
            snprintf(plan->lost[plan->lost_count++], sizeof plan->lost[0], "%s", record->common->name);
    }
    plan->vms = state_count(state, object_kind_VM);
    plan->hosts = state_count(state, object_kind_HOST);
    return 0;
}

int cluster_recover_look(const struct data_dir *dir, struct cluster_recover_plan *ret_plan, struct error *err)
{
    struct look look = {.state = state_create()};
    struct raft_machine machine = {.ctx = &look, .apply = look_apply, .restore = look_restore};
    struct cluster_recover_plan plan = {.term = 0};
    struct raft_node_content content;
    char path[DATA_DIR_PATH_MAX];
    int r = raft_node_inspect(data_dir_file(dir, "raft", path), dir->identity.raft_id, &machine, &content, err);
    if (r == 0 && look.error.code != 0)
        r = error_set(err, look.error.code, look.error.kind, "the log was written by a newer version: %s",
                      look.error.text);
    if (r == 0) {
        plan.term = content.term;
        plan.last_index = content.last_index;
        r = fill_plan(dir, look.state, &plan, err);
    }
    state_destroy(look.state);
    if (r == 0)
        *ret_plan = plan;
    return r;
}

static int save_command(const struct data_dir *dir, const struct cluster_recover_plan *plan, struct error *err)
{
    struct command_recover command = {.head = {0}};
    char at[ENVIRONMENT_TIME_SIZE], path[DATA_DIR_PATH_MAX];
    struct bytes_writer json = {0};
    environment_time_text(environment_unix_ms(), at);
    object_mark(&command_recover_desc, &command, "request");
    OBJECT_TEXT(command_request, &command.request, at, at);
    OBJECT_TEXT(command_request, &command.request, by, "drover-controller recover");
    OBJECT_SET(command_recover, &command, epoch, plan->new_epoch);
    OBJECT_TEXT(command_recover, &command, survivor, plan->survivor_id);
    OBJECT_ENCODE(command_recover, &command, &json);
    OBJECT_CLEAR(command_recover, &command);
    int r = file_write_atomic(data_dir_file(dir, "recover.json", path), json.data, json.size, 0600, err);
    bytes_writer_finish(&json);
    return r;
}

int cluster_recover(struct data_dir *dir, const struct cluster_recover_plan *plan, struct error *err)
{
    char path[DATA_DIR_PATH_MAX];
    int r = save_command(dir, plan, err);
    if (r < 0)
        return r;
    OBJECT_SET(node_identity, &dir->identity, epoch, plan->new_epoch);
    if ((r = data_dir_save_identity(dir, err)) < 0)
        return r;
    return raft_node_recover(data_dir_file(dir, "raft", path), dir->identity.raft_id, dir->identity.raft_address, err);
}
