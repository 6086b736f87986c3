/* Timer, tunnel and child of a task; see the header. */
#include "compute/agent/task_way.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/http_client.h"
#include "compute/agent/agent.h"
#include "compute/agent/task_child.h"
#include "compute/agent/tunnel_program.h"

bool task_way_is_main(const struct task_way *w)
{
    return w->task->order.role == task_role_MAIN;
}

struct local_vm *task_way_vm(const struct task_way *w)
{
    return map_get(&w->agent->vms, w->vm);
}

bool task_way_others_work(const struct task_way *w)
{
    const struct agent_task *task;
    for (size_t i = 0; (task = map_next(&w->agent->tasks.all, &i)) != NULL;)
        if (task != w->task && !task->ended && task->order.task.vm != NULL && strcmp(task->order.task.vm, w->vm) == 0)
            return true;
    return false;
}

/* ---- the end ---- */

void task_way_finish(struct task_way *w)
{
    struct agent_task *task = w->task;
    enum operation_state state = w->state;
    struct error err = w->err;
    if (w->tunnel_closing || !w->timer_closed || w->child != NULL || w->call != NULL)
        return;
    if (w->path != NULL)
        unlink(w->path);
    free(w->path);
    w->ops->freed(w);
    task->state = NULL;
    if (task->stopping)
        agent_task_stopped(task);
    else
        agent_task_end(task, state, &err);
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct task_way *w = handle->data;
    w->timer_closed = true;
    task_way_finish(w);
}

static void on_tunnel_closed(void *arg)
{
    struct task_way *w = arg;
    w->tunnel_closing = false;
    task_way_finish(w);
}

void task_way_over(struct task_way *w, enum operation_state state)
{
    if (w->over)
        return;
    w->over = true;
    w->state = state;
    if (w->tunnel != NULL) {
        w->tunnel_closing = true;
        tunnel_child_stop(TAKE_PTR(w->tunnel), on_tunnel_closed, w);
    }
    if (w->child != NULL)
        task_child_kill(w->child);
    if (w->call != NULL)
        http_call_cancel(w->call);
    uv_timer_stop(&w->timer);
    uv_close((uv_handle_t *)&w->timer, on_timer_closed);
}

/* ---- the tunnel ---- */

static void on_listening(void *arg, const char *endpoint)
{
    struct task_way *w = arg;
    if (!w->over && !w->task->stopping)
        w->ops->listening(w, endpoint);
}

static void on_tunnel_ended(void *arg, const char *why)
{
    struct task_way *w = arg;
    char text[512];
    snprintf(text, sizeof text, "the way to the other host is gone: %.400s", why);
    if (!w->over)
        w->ops->failed(w, -EPIPE, text);
}

void task_way_open(struct task_way *w, uid_t owner)
{
    static const struct tunnel_child_callbacks callbacks = {.listening = on_listening, .ended = on_tunnel_ended};
    const struct task *task = &w->task->order.task;
    CLEANUP_FREE char *address = xasprintf("unix:%s", w->path);
    bool is_source = task_way_is_main(w);
    const struct tunnel_program_options options = {.data_dir = w->agent->data_dir,
                                                   .peer = is_source ? task->peer : task->host,
                                                   .listen = is_source ? w->path : w->agent->migrations.listen,
                                                   .connect = is_source ? task->peer_endpoint : address,
                                                   .is_source = is_source,
                                                   .owner = owner};
    struct error err = {.code = 0};
    if (tunnel_child_start(w->agent->loop, &options, &callbacks, w, &w->tunnel, &err) < 0)
        w->ops->failed(w, err.code, err.text);
}

/* ---- the beginning ---- */

static void on_timer(uv_timer_t *timer)
{
    struct task_way *w = timer->data;
    w->ops->look(w);
}

void task_way_look_in(struct task_way *w, uint64_t ms)
{
    if (!w->over)
        uv_timer_start(&w->timer, on_timer, ms, 0);
}

void task_way_init(struct task_way *w, struct agent_task *task, const struct task_way_ops *ops)
{
    *w = (struct task_way){.ops = ops, .task = task, .agent = task->agent};
    snprintf(w->vm, sizeof w->vm, "%s", task->order.task.vm != NULL ? task->order.task.vm : "");
    uv_timer_init(w->agent->loop, &w->timer);
    w->timer.data = w;
    task_way_look_in(w, 0);
}

void task_way_clean(struct agent *agent)
{
    DIR *d = opendir(agent->run_dir);
    for (struct dirent *entry; d != NULL && (entry = readdir(d)) != NULL;)
        if (strncmp(entry->d_name, TASK_WAY_BEGINS, strlen(TASK_WAY_BEGINS)) == 0)
            (void)unlinkat(dirfd(d), entry->d_name, 0);
    if (d != NULL)
        closedir(d);
}
