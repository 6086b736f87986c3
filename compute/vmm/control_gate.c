/* One posted item for each call, owned by whoever comes last; see control_gate.h. */
#include "compute/vmm/control_gate.h"

#include <errno.h>

struct item {
    struct control_gate *gate;
    control_gate_fn function;
    void *arg;
    bool done;
    int code;
    struct error err;
};

void control_gate_init(struct control_gate *g, struct io_loop *loop)
{
    *g = (struct control_gate){.loop = loop};
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, NULL);
}

void control_gate_finish(struct control_gate *g)
{
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->lock);
}

static void on_item(void *arg)
{
    struct item *item = arg;
    struct control_gate *g = item->gate;
    item->code = item->function(item->arg, &item->err);
    pthread_mutex_lock(&g->lock);
    item->done = true;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

int control_gate_run(struct control_gate *g, control_gate_fn function, void *arg, struct error *err)
{
    struct item *item = NEW(struct item);
    item->gate = g;
    item->function = function;
    item->arg = arg;
    pthread_mutex_lock(&g->lock);
    if (!g->closed)
        io_loop_post(g->loop, on_item, item);
    while (!item->done && !g->closed)
        pthread_cond_wait(&g->changed, &g->lock);
    bool done = item->done;
    pthread_mutex_unlock(&g->lock);
    int code = done ? item->code : error_set(err, -ECANCELED, ERROR_CANCELLED, "the VM ends");
    if (done && code < 0 && err)
        *err = item->err;
    free(item); /* a closed gate's loop never comes to it: control_gate_close says so */
    return code;
}

void control_gate_close(struct control_gate *g)
{
    pthread_mutex_lock(&g->lock);
    g->closed = true;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}
