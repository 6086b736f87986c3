/* A guest that is two arrays and a few states: what migration/ is tested with. */
#ifndef TESTS_UNIT_MIGRATION_ARRAY_GUEST_H
#define TESTS_UNIT_MIGRATION_ARRAY_GUEST_H

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "migration/guest.h"
#include "migration/stream.h"

struct array_guest {
    struct guest guest;
    size_t sizes[2];
    uint8_t *memory[2];
    char state[32];
    bool can_map, mapped;
};

static inline struct array_guest *array_guest_of(struct guest *g)
{
    return CONTAINER_OF(g, struct array_guest, guest);
}

static size_t array_regions(struct guest *g, struct guest_region regions[GUEST_REGIONS_MAX])
{
    struct array_guest *a = array_guest_of(g);
    for (unsigned i = 0; i < 2; i++)
        regions[i] = (struct guest_region){.gpa = i ? 1ull << 32 : 0, .size = a->sizes[i], .host = a->memory[i]};
    return 2;
}

static int array_state_save(struct guest *g, struct stream_writer *out, struct error *err)
{
    int code = stream_put_state(out, "array", 1, array_guest_of(g)->state, 32, err);
    return code ? code : stream_put_state(out, "empty", 1, NULL, 0, err);
}

static int array_state_load(struct guest *g, struct stream_states *states, struct error *err)
{
    struct stream_state *s = stream_states_take(states, "array", 1, err);
    if (!s || s->size != 32 || !stream_states_take(states, "empty", 1, err))
        return -EBADMSG;
    memcpy(array_guest_of(g)->state, s->data, 32);
    return 0;
}

static int array_memory_map(struct guest *g, size_t region, int fd, uint64_t offset, struct error *err)
{
    struct array_guest *a = array_guest_of(g);
    if (!a->can_map)
        return -ENOTSUP;
    a->mapped = true;
    void *at =
        mmap(a->memory[region], a->sizes[region], PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, (off_t)offset);
    return at == MAP_FAILED ? error_errno(err, -errno, "mmap") : 0;
}

static inline void array_guest_init(struct array_guest *a, size_t size0, size_t size1)
{
    static const struct guest_ops ops = {.regions = array_regions,
                                         .memory_map = array_memory_map,
                                         .state_save = array_state_save,
                                         .state_load = array_state_load};
    *a = (struct array_guest){.guest.ops = &ops, .sizes = {size0, size1}};
    for (unsigned i = 0; i < 2; i++)
        a->memory[i] =
            mmap(NULL, a->sizes[i], PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static inline void array_guest_finish(struct array_guest *a)
{
    for (unsigned i = 0; i < 2; i++)
        munmap(a->memory[i], a->sizes[i]);
}

static inline bool array_guest_equal(const struct array_guest *a, const struct array_guest *b)
{
    return memcmp(a->memory[0], b->memory[0], a->sizes[0]) == 0 &&
           memcmp(a->memory[1], b->memory[1], a->sizes[1]) == 0 && memcmp(a->state, b->state, 32) == 0;
}

#endif
