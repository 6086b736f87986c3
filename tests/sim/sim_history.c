/* The simulator's own state machine: eight registers, written, added to and compared, and a hash of everything that
 * ever happened. Small enough that a simulated minute costs milliseconds, and any lost, repeated, reordered or
 * invented command changes the hash for good. */
#include "tests/sim/sim_node.h"

#include <errno.h>
#include <stdio.h>

enum { REGISTERS = 8 };
enum history_op { OP_SET = 1, OP_ADD, OP_COMPARE_AND_SET };

struct history {
    uint64_t count, hash;
    uint64_t registers[REGISTERS];
};

static uint64_t hash_mix(uint64_t hash, uint64_t value)
{
    hash ^= value + 0x9e3779b97f4a7c15ull + (hash << 6) + (hash >> 2);
    return hash * 0xff51afd7ed558ccdull;
}

static void history_apply(void *ctx, uint64_t index, const void *entry, size_t size, void **ret_result UNUSED)
{
    struct history *history = ctx;
    struct bytes_reader reader = bytes_reader(entry, size);
    uint64_t id = bytes_get_u64(&reader);
    uint32_t op = bytes_get_u32(&reader), at = bytes_get_u32(&reader) % REGISTERS;
    uint64_t value = bytes_get_u64(&reader), expected = bytes_get_u64(&reader);
    uint64_t *target = &history->registers[at];

    if (op == OP_SET || (op == OP_COMPARE_AND_SET && *target == expected))
        *target = value;
    else if (op == OP_ADD)
        *target += value;
    history->count++;
    history->hash = hash_mix(hash_mix(hash_mix(history->hash, index), id), *target);
}

static void history_snapshot(void *ctx, struct bytes_writer *out)
{
    const struct history *history = ctx;

    bytes_put_u64(out, history->count);
    bytes_put_u64(out, history->hash);
    for (unsigned i = 0; i < REGISTERS; i++)
        bytes_put_u64(out, history->registers[i]);
}

static int history_restore(void *ctx, const void *data, size_t size, struct error *err)
{
    struct history *history = ctx, read;
    struct bytes_reader reader = bytes_reader(data, size);

    read.count = bytes_get_u64(&reader);
    read.hash = bytes_get_u64(&reader);
    for (unsigned i = 0; i < REGISTERS; i++)
        read.registers[i] = bytes_get_u64(&reader);
    if (reader.bad || bytes_left(&reader) != 0)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the snapshot has the wrong size");
    *history = read;
    return 0;
}

static void history_create(struct sim_node *node UNUSED, struct raft_machine *ret_machine)
{
    *ret_machine = (struct raft_machine){.ctx = NEW(struct history),
                                         .apply = history_apply,
                                         .snapshot = history_snapshot,
                                         .restore = history_restore};
}

static void history_destroy(struct raft_machine *machine)
{
    free(machine->ctx);
}

static uint64_t history_hash(const struct raft_machine *machine)
{
    const struct history *history = machine->ctx;
    uint64_t hash = hash_mix(history->hash, history->count);

    for (unsigned i = 0; i < REGISTERS; i++)
        hash = hash_mix(hash, history->registers[i]);
    return hash;
}

static void history_generate(struct sim_node *node, struct bytes_writer *out)
{
    struct sim *sim = &node->cluster->sim;
    const struct history *history = node->machine.ctx;
    unsigned at = (unsigned)sim_below(sim, REGISTERS);

    bytes_put_u64(out, sim_random(sim));
    bytes_put_u32(out, (uint32_t)sim_between(sim, OP_SET, OP_COMPARE_AND_SET));
    bytes_put_u32(out, at);
    bytes_put_u64(out, sim_random(sim));
    bytes_put_u64(out, history->registers[at]);
}

const struct sim_machine_class sim_history_class = {
    .name = "history",
    .create = history_create,
    .destroy = history_destroy,
    .hash = history_hash,
    .generate = history_generate,
};
