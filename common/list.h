/* Intrusive doubly linked list. A struct list is both head and link; an unlinked link points at itself. */
#ifndef COMMON_LIST_H
#define COMMON_LIST_H

#include "common/base.h"

struct list {
    struct list *next, *prev;
};

static inline void list_init(struct list *l)
{
    l->next = l->prev = l;
}
static inline bool list_empty(const struct list *l)
{
    return l->next == l;
}
static inline void list_append(struct list *head, struct list *link)
{
    link->prev = head->prev;
    link->next = head;
    head->prev->next = link;
    head->prev = link;
}
static inline void list_remove(struct list *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
    list_init(link);
}
/* Move all of @from to the end of @to, leaving @from empty: call back from @to, and callbacks may add to @from. */
static inline void list_take(struct list *to, struct list *from)
{
    if (list_empty(from))
        return;
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    list_init(from);
}

#define LIST_ENTRY(link, type, member) CONTAINER_OF(link, type, member)
#define LIST_FOREACH(link, head) for (struct list *link = (head)->next; link != (head); link = link->next)
/* Safe against removal of the current link. */
#define LIST_FOREACH_SAFE(link, head)                                                                                \
    for (struct list *link = (head)->next, *link##_next = link->next; link != (head);                                \
         link = link##_next, link##_next = link->next)

#endif
