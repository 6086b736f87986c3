/* A pool on a simulated disk that loses power: everything lives in memory, each call on it is a step, and after a
 * given number of steps nothing works any more. power_cut() then leaves what a power cut may leave: all that was
 * synced, and of the rest, call by call, everything, nothing, or parts of 512 or 4096 bytes.
 *
 * Requests wait in queues and are carried out one by one in random order (power_step). */
#ifndef TESTS_POWER_POOL_H
#define TESTS_POWER_POOL_H

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "block/layer_pool.h"
#include "common/bytes.h"

enum { POWER_PAGE = 4096, POWER_FILES_MAX = 256 };

struct power_pages {
    uint64_t size;
    uint64_t count;
    uint8_t **pages; /* NULL: a hole */
};

struct power_change {
    struct list link;
    enum { POWER_WRITE, POWER_ZERO, POWER_SIZE } kind;
    uint64_t offset, size;
    uint8_t *data;
};

struct power_file {
    char name[80]; /* empty: slot unused */
    bool named, lasting; /* there now; there after a cut, if that comes now (different: perhaps) */
    struct power_pages live, durable;
    struct list changes; /* struct power_change, not synced */
    int readers;         /* -1: one writer */
    bool refuses;        /* every request, within submit */
    char *text; /* of one that was made by replace */
    size_t text_size;
};

struct power_pool {
    struct layer_pool pool;
    struct power_file files[POWER_FILES_MAX];
    struct list blocks; /* struct power_block */
    unsigned queued;    /* requests, of all blocks */
    uint64_t random;
    uint64_t steps, steps_max; /* 0: no end */
    bool dead;
    bool all_at_hand; /* else each second page at a time */
    bool unlocked; /* files are opened whoever has them */
    /* Told of what is said to be read next, of @b; NULL: nobody. */
    void (*will_read)(void *arg, const struct block *b, uint64_t offset, uint64_t size);
    void *will_read_arg;
};

struct power_block {
    struct block block;
    struct power_pool *pool;
    struct power_file *file;
    struct list link;  /* in the pool */
    struct list queue; /* struct block_request */
    bool unlocked;
};

static inline uint32_t power_random(struct power_pool *p, uint32_t below)
{
    p->random ^= p->random << 13, p->random ^= p->random >> 7, p->random ^= p->random << 17;
    return (uint32_t)((p->random >> 16) % below);
}

/* ---- pages ---- */

static inline void pages_resize(struct power_pages *s, uint64_t size)
{
    uint64_t count = (size + POWER_PAGE - 1) / POWER_PAGE;
    for (uint64_t i = count; i < s->count; i++)
        free(s->pages[i]);
    if (count > s->count) {
        s->pages = xrealloc(s->pages, count * sizeof *s->pages);
        memset(s->pages + s->count, 0, (count - s->count) * sizeof *s->pages);
    }
    s->count = count;
    s->size = size;
}

static inline void pages_write(struct power_pages *s, uint64_t offset, const uint8_t *data, uint64_t size)
{
    for (uint64_t done = 0; done < size;) {
        uint64_t at = offset + done, page = at / POWER_PAGE, within = at % POWER_PAGE;
        uint64_t n = MIN(size - done, POWER_PAGE - within);
        if (page >= s->count)
            return; /* the file never became so long */
        if (data == NULL && n == POWER_PAGE) {
            free(s->pages[page]);
            s->pages[page] = NULL;
        } else {
            if (s->pages[page] == NULL)
                s->pages[page] = xcalloc(1, POWER_PAGE);
            if (data == NULL)
                memset(s->pages[page] + within, 0, n);
            else
                memcpy(s->pages[page] + within, data + done, n);
        }
        done += n;
    }
}

static inline void pages_read(const struct power_pages *s, uint64_t offset, uint8_t *data, uint64_t size)
{
    for (uint64_t done = 0; done < size;) {
        uint64_t at = offset + done, page = at / POWER_PAGE, within = at % POWER_PAGE;
        uint64_t n = MIN(size - done, POWER_PAGE - within);
        if (s->pages[page] == NULL)
            memset(data + done, 0, n);
        else
            memcpy(data + done, s->pages[page] + within, n);
        done += n;
    }
}

static inline void pages_copy(struct power_pages *to, const struct power_pages *from)
{
    pages_resize(to, 0);
    pages_resize(to, from->size);
    for (uint64_t i = 0; i < from->count; i++)
        if (from->pages[i] != NULL) {
            to->pages[i] = xcalloc(1, POWER_PAGE);
            memcpy(to->pages[i], from->pages[i], POWER_PAGE);
        }
}

/* ---- changes ---- */

static inline void change_apply(struct power_pages *to, const struct power_change *c)
{
    if (c->kind == POWER_SIZE)
        pages_resize(to, c->size);
    else
        pages_write(to, c->offset, c->data, c->size);
}

static inline void change_free(struct power_change *c)
{
    list_remove(&c->link);
    free(c->data);
    free(c);
}

static inline void change_add(struct power_file *f, int kind, uint64_t offset, const uint8_t *data, uint64_t size)
{
    struct power_change *c = NEW(struct power_change);
    c->kind = kind;
    c->offset = offset;
    c->size = size;
    if (data != NULL) {
        c->data = xcalloc(1, size);
        memcpy(c->data, data, size);
    }
    change_apply(&f->live, c);
    list_append(&f->changes, &c->link);
}

static inline void file_sync(struct power_file *f)
{
    while (!list_empty(&f->changes)) {
        struct power_change *c = LIST_ENTRY(f->changes.next, struct power_change, link);
        change_apply(&f->durable, c);
        change_free(c);
    }
}

/* Parts of @c as a disk may have got to. */
static inline void change_tear(struct power_pool *p, struct power_pages *to, const struct power_change *c)
{
    uint64_t unit = power_random(p, 2) ? 512 : 4096;
    for (uint64_t at = 0; at < c->size;) {
        uint64_t n = MIN(unit - (c->offset + at) % unit, c->size - at);
        if (power_random(p, 2))
            pages_write(to, c->offset + at, c->data == NULL ? NULL : c->data + at, n);
        at += n;
    }
}

static inline void file_cut(struct power_pool *p, struct power_file *f)
{
    uint32_t mood = power_random(p, 4); /* 0: all is there, 1: nothing, else each by itself */
    LIST_FOREACH(link, &f->changes) {
        const struct power_change *c = LIST_ENTRY(link, struct power_change, link);
        uint32_t fate = mood < 2 ? mood : power_random(p, 3);
        if (fate == 0)
            change_apply(&f->durable, c);
        else if (fate == 2 && c->kind != POWER_SIZE)
            change_tear(p, &f->durable, c);
    }
    while (!list_empty(&f->changes))
        change_free(LIST_ENTRY(f->changes.next, struct power_change, link));
    pages_copy(&f->live, &f->durable);
}

/* ---- the disk ---- */

/* One call on the disk; false: there is no power any more. The last one may or may not get through. */
static inline bool power_call(struct power_pool *p, bool *ret_last)
{
    *ret_last = false;
    if (p->dead)
        return false;
    p->steps++;
    if (p->steps_max != 0 && p->steps >= p->steps_max) {
        p->dead = true;
        *ret_last = true;
    }
    return true;
}

static inline struct power_file *power_find(struct power_pool *p, const char *name)
{
    for (unsigned i = 0; i < POWER_FILES_MAX; i++)
        if (p->files[i].named && strcmp(p->files[i].name, name) == 0)
            return &p->files[i];
    return NULL;
}

static inline void file_forget(struct power_file *f)
{
    pages_resize(&f->live, 0);
    pages_resize(&f->durable, 0);
    free(f->live.pages);
    free(f->durable.pages);
    while (!list_empty(&f->changes))
        change_free(LIST_ENTRY(f->changes.next, struct power_change, link));
    free(f->text);
    *f = (struct power_file){.name = ""};
}

static inline struct power_file *power_add(struct power_pool *p, const char *name)
{
    for (unsigned i = 0; i < POWER_FILES_MAX; i++) {
        struct power_file *f = &p->files[i];
        if (f->named || f->lasting || f->readers != 0)
            continue; /* with a name, or with one after a cut, or held by somebody */
        if (f->name[0] != '\0')
            file_forget(f);
        *f = (struct power_file){.named = true};
        snprintf(f->name, sizeof f->name, "%s", name);
        list_init(&f->changes);
        return f;
    }
    abort();
}

static inline void names_sync(struct power_pool *p)
{
    for (unsigned i = 0; i < POWER_FILES_MAX; i++)
        p->files[i].lasting = p->files[i].named;
}

/* The power is back. */
static inline void power_cut(struct power_pool *p)
{
    for (unsigned i = 0; i < POWER_FILES_MAX; i++) {
        struct power_file *f = &p->files[i];
        if (f->name[0] == '\0')
            continue;
        if (f->named != f->lasting)
            f->lasting = power_random(p, 2);
        f->named = f->lasting;
        f->readers = 0;
        if (!f->named)
            file_forget(f);
        else
            file_cut(p, f);
    }
    p->dead = false;
    p->steps = 0;
    p->steps_max = 0;
}

/* ---- blocks ---- */

static inline int request_perform(struct power_pool *p, struct power_file *f, struct block_request *r)
{
    bool last;
    if (!power_call(p, &last))
        return -EIO;
    if (r->op == BLOCK_FLUSH) {
        if (!last || power_random(p, 2))
            file_sync(f);
        return last ? -EIO : 0;
    }
    if (r->op == BLOCK_READ || r->op == BLOCK_WRITE) {
        uint8_t *memory = xcalloc(1, r->size), *at = memory;
        pages_read(&f->live, r->offset, memory, r->op == BLOCK_READ ? r->size : 0);
        for (unsigned i = 0; i < r->iovec_count; at += r->iovecs[i++].iov_len)
            memcpy(r->op == BLOCK_READ ? r->iovecs[i].iov_base : at, r->op == BLOCK_READ ? at : r->iovecs[i].iov_base,
                   r->iovecs[i].iov_len);
        if (r->op == BLOCK_WRITE)
            change_add(f, POWER_WRITE, r->offset, memory, r->size);
        free(memory);
    }
    if (r->op == BLOCK_WRITE_ZEROES || (r->op == BLOCK_DISCARD && power_random(p, 4)))
        change_add(f, POWER_ZERO, r->offset, NULL, r->size);
    return last ? -EIO : 0;
}

/* A random request is carried out; false: there is none. */
static inline bool power_step(struct power_pool *p)
{
    if (p->queued == 0)
        return false;
    uint32_t which = power_random(p, p->queued);
    LIST_FOREACH(link, &p->blocks) {
        struct power_block *b = LIST_ENTRY(link, struct power_block, link);
        LIST_FOREACH(at, &b->queue) {
            if (which-- > 0)
                continue;
            struct block_request *r = LIST_ENTRY(at, struct block_request, link);
            list_remove(&r->link);
            p->queued--;
            r->result = block_may_submit(&b->block) ? request_perform(p, b->file, r) : -EAGAIN;
            block_complete(&b->block, r);
            return true;
        }
    }
    abort();
}

static inline int power_submit(struct block *b, struct block_request *r)
{
    struct power_block *pb = CONTAINER_OF(b, struct power_block, block);
    if (pb->file->refuses)
        return -EIO;
    list_append(&pb->queue, &r->link);
    pb->pool->queued++;
    return 0;
}

/* Now and then; not by chance, so that the other chances stay what they are. */
static inline int power_read_at_hand(struct block *b, const struct block_request *r)
{
    struct power_block *pb = CONTAINER_OF(b, struct power_block, block);
    bool here = pb->pool->all_at_hand || (r->offset / POWER_PAGE + pb->pool->steps) % 2 != 0;
    if (pb->pool->dead || !here || !block_may_submit(b))
        return -EAGAIN;
    CLEANUP_FREE uint8_t *memory = xcalloc(1, r->size);
    const uint8_t *at = memory;
    pages_read(&pb->file->live, r->offset, memory, r->size);
    for (unsigned i = 0; i < r->iovec_count; at += r->iovecs[i++].iov_len)
        memcpy(r->iovecs[i].iov_base, at, r->iovecs[i].iov_len);
    return 0;
}

static inline void power_will_read(struct block *b, uint64_t offset, uint64_t size)
{
    struct power_pool *p = CONTAINER_OF(b, struct power_block, block)->pool;
    if (p->will_read != NULL)
        p->will_read(p->will_read_arg, b, offset, size);
}

static inline void power_drain(struct block *b)
{
    while (b->in_flight > 0)
        if (!power_step(CONTAINER_OF(b, struct power_block, block)->pool))
            abort();
}

static inline void power_close(struct block *b)
{
    struct power_block *pb = CONTAINER_OF(b, struct power_block, block);
    if (!pb->unlocked)
        pb->file->readers = pb->file->readers > 0 ? pb->file->readers - 1 : 0;
    list_remove(&pb->link);
    free(pb);
}

static inline int power_grow(struct block *b, uint64_t size_bytes, struct error *err)
{
    struct power_block *pb = CONTAINER_OF(b, struct power_block, block);
    bool last;
    if (!power_call(pb->pool, &last))
        return error_errno(err, -EIO, "no power");
    change_add(pb->file, POWER_SIZE, 0, NULL, size_bytes);
    if (last)
        return error_errno(err, -EIO, "no power");
    b->size_bytes = size_bytes;
    return 0;
}

static inline int power_next_data(struct block *b, uint64_t from, uint64_t *ret_start, uint64_t *ret_end)
{
    const struct power_pages *s = &CONTAINER_OF(b, struct power_block, block)->file->live;
    uint64_t page = from / POWER_PAGE, end;
    while (page < s->count && s->pages[page] == NULL)
        page++;
    for (end = page; end < s->count && s->pages[end] != NULL;)
        end++;
    *ret_start = MAX(from, page * POWER_PAGE);
    *ret_end = MIN(end * POWER_PAGE, b->size_bytes);
    return page < s->count;
}

static inline void power_share(struct block *b)
{
    CONTAINER_OF(b, struct power_block, block)->file->readers = 1;
}

static inline struct block *block_of_file(struct power_pool *p, struct power_file *f, bool read_only)
{
    static const struct block_ops ops = {.submit = power_submit,
                                         .read_at_hand = power_read_at_hand,
                                         .will_read = power_will_read,
                                         .drain = power_drain,
                                         .close = power_close,
                                         .grow = power_grow,
                                         .next_data = power_next_data,
                                         .share = power_share};
    struct power_block *b = NEW(struct power_block);
    b->block = (struct block){.ops = &ops,
                              .size_bytes = f->live.size,
                              .block_bytes = 4096,
                              .read_only = read_only,
                              .can_discard = true,
                              .can_write_zeroes = true};
    b->pool = p;
    b->file = f;
    list_init(&b->queue);
    list_append(&p->blocks, &b->link);
    b->unlocked = p->unlocked;
    if (!b->unlocked)
        f->readers = read_only ? f->readers + 1 : -1;
    return &b->block;
}

/* ---- the pool ---- */

static inline struct power_pool *power_of(struct layer_pool *pool)
{
    return CONTAINER_OF(pool, struct power_pool, pool);
}

static inline int power_open(struct layer_pool *pool, const char *name, bool read_only, struct block **ret_block,
                             struct error *err)
{
    struct power_pool *p = power_of(pool);
    struct power_file *f = power_find(p, name);
    if (p->dead)
        return error_errno(err, -EIO, "no power");
    if (f == NULL)
        return error_errno(err, -ENOENT, "cannot open %s", name);
    if (!p->unlocked && (f->readers < 0 || (!read_only && f->readers > 0)))
        return error_set(err, -EBUSY, ERROR_IN_USE, "%s is in use", name);
    if (f->live.size == 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "%s is empty", name);
    *ret_block = block_of_file(p, f, read_only);
    return 0;
}

static inline int power_create(struct layer_pool *pool, const char *name, uint64_t size_bytes,
                               struct block **ret_block, struct error *err)
{
    struct power_pool *p = power_of(pool);
    bool last;
    if (power_find(p, name) != NULL)
        return error_errno(err, -EEXIST, "cannot make %s", name);
    if (!power_call(p, &last))
        return error_errno(err, -EIO, "no power");
    struct power_file *f = power_add(p, name);
    change_add(f, POWER_SIZE, 0, NULL, size_bytes);
    if (last)
        return error_errno(err, -EIO, "no power");
    *ret_block = block_of_file(p, f, false);
    return 0;
}

static inline int power_remove(struct layer_pool *pool, const char *name, struct error *err)
{
    struct power_pool *p = power_of(pool);
    struct power_file *f = power_find(p, name);
    bool last;
    if (!power_call(p, &last))
        return error_errno(err, -EIO, "no power");
    if (f != NULL)
        f->named = false;
    return last ? error_errno(err, -EIO, "no power") : 0;
}

static inline int power_read(struct layer_pool *pool, const char *name, char **ret_data, size_t *ret_size,
                             struct error *err)
{
    struct power_pool *p = power_of(pool);
    struct power_file *f = power_find(p, name);
    if (p->dead)
        return error_errno(err, -EIO, "no power");
    if (f == NULL || f->text == NULL)
        return error_errno(err, -ENOENT, "cannot open %s", name);
    *ret_data = xcalloc(1, f->text_size + 1);
    memcpy(*ret_data, f->text, f->text_size);
    *ret_size = f->text_size;
    return 0;
}

/* Its own rename and sync of the folder: lasting when it returns 0, either when the power goes. */
static inline int power_replace(struct layer_pool *pool, const char *name, const void *data, size_t size,
                                struct error *err)
{
    struct power_pool *p = power_of(pool);
    struct power_file *f = power_find(p, name);
    bool last;
    if (!power_call(p, &last))
        return error_errno(err, -EIO, "no power");
    if (!last || power_random(p, 2)) {
        f = f != NULL ? f : power_add(p, name);
        free(f->text);
        f->text = xcalloc(1, size + 1);
        memcpy(f->text, data, size);
        f->text_size = size;
        names_sync(p);
    }
    return last ? error_errno(err, -EIO, "no power") : 0;
}

static inline int power_sync(struct layer_pool *pool, struct error *err)
{
    struct power_pool *p = power_of(pool);
    bool last;
    if (!power_call(p, &last))
        return error_errno(err, -EIO, "no power");
    if (!last || power_random(p, 2))
        names_sync(p);
    return last ? error_errno(err, -EIO, "no power") : 0;
}

static inline int power_list(struct layer_pool *pool, int (*each)(void *arg, const char *name), void *arg,
                             struct error *err)
{
    struct power_pool *p = power_of(pool);
    int code = p->dead ? error_errno(err, -EIO, "no power") : 0;
    for (unsigned i = 0; i < POWER_FILES_MAX && code >= 0; i++)
        if (p->files[i].named)
            code = each(arg, p->files[i].name);
    return MIN(code, 0);
}

static inline int power_lock(struct layer_pool *pool UNUSED, bool locked UNUSED, struct error *err UNUSED)
{
    return 0;
}

static inline struct power_pool *power_pool_create(uint64_t seed)
{
    static const struct layer_pool_ops ops = {.open = power_open,
                                              .create = power_create,
                                              .remove = power_remove,
                                              .read = power_read,
                                              .replace = power_replace,
                                              .sync = power_sync,
                                              .list = power_list,
                                              .lock = power_lock};
    struct power_pool *p = NEW(struct power_pool);
    p->pool.ops = &ops;
    p->random = seed * 0x9e3779b97f4a7c15ull + 1;
    list_init(&p->blocks);
    return p;
}

static inline void power_pool_destroy(struct power_pool *p)
{
    for (unsigned i = 0; i < POWER_FILES_MAX; i++)
        if (p->files[i].name[0] != '\0')
            file_forget(&p->files[i]);
    free(p);
}

#endif
