/* What is left out of orders for agents of older versions; see the header. */
#include "controller/nodes/orders_older.h"

#include <string.h>

static bool pool_is_rbd(const void *pool)
{
    return ((const struct pool_order *)pool)->kind == pool_kind_RBD;
}

static bool volume_is_rbd(const void *volume)
{
    return pool_is_rbd(&((const struct volume_order *)volume)->pool);
}

/* Take out what @goes says of. */
static void drop(const struct object_desc *desc, struct object_list *list, bool (*goes)(const void *item))
{
    char *items = list->items;
    size_t kept = 0;
    for (size_t i = 0; i < list->count; i++) {
        if (goes(items + i * desc->size))
            object_clear(desc, items + i * desc->size);
        else
            memmove(items + kept++ * desc->size, items + i * desc->size, desc->size);
    }
    list->count = kept;
}

static void drop_pools(struct object_list *pools)
{
    drop(&pool_order_desc, pools, pool_is_rbd);
}

void orders_without_rbd(struct node_orders *orders)
{
    struct vm_order *vms = orders->vms.items;
    struct incoming_order *incoming = orders->incoming.items;
    struct task_order *tasks = orders->tasks.items;
    for (size_t i = 0; i < orders->vms.count; i++)
        drop_pools(&vms[i].pools);
    for (size_t i = 0; i < orders->incoming.count; i++)
        drop_pools(&incoming[i].vm.pools);
    for (size_t i = 0; i < orders->tasks.count; i++)
        drop_pools(&tasks[i].boot.pools);
    drop(&volume_order_desc, &orders->volumes, volume_is_rbd);
    drop_pools(&orders->pools);
}
