/* bench_layers_make DIRECTORY NAME MIB LAYERS: a disk of data for a bench, the head of which is DIRECTORY/NAME.disk, and of
 * whose 64 KiB clusters each LAYERS-th in turn is in the same layer: the worst that snapshots can make of it. */
#include <stdio.h>
#include <string.h>

#include "block/layer_disk.h"
#include "block/layer_pool_dir.h"

static int fill(struct layer_disk *disk, uint64_t bytes, unsigned layers, struct error *err)
{
    uint8_t data[LAYER_CLUSTER_BYTES];
    char name[16];
    int code = 0;
    memset(data, 0x5a, sizeof data);
    for (unsigned i = 0; i < layers && code == 0; i++) {
        for (uint64_t at = i * sizeof data; at < bytes && code == 0; at += layers * sizeof data)
            if ((code = block_now(&disk->chain->block, BLOCK_WRITE, at, data, sizeof data)) < 0)
                error_errno(err, code, "cannot write");
        snprintf(name, sizeof name, "s%u", i);
        if (i + 1 < layers && code == 0)
            code = layer_disk_snapshot(disk, name, err);
    }
    return code;
}

int main(int argc, char **argv)
{
    struct layer_pool *pool = NULL;
    struct layer_disk *disk = NULL;
    struct error err = {.code = 0};
    if (argc != 5)
        return fputs("usage: bench_layers_make DIRECTORY NAME MIB LAYERS\n", stderr), 2;
    uint64_t bytes = strtoull(argv[3], NULL, 10) << 20;
    int code = layer_pool_dir_create(argv[1], NULL, NULL, &pool, &err);
    if (code == 0)
        code = layer_disk_create(pool, argv[2], bytes, NULL, &err);
    if (code == 0)
        code = layer_disk_open(pool, argv[2], false, 1, &disk, &err);
    if (code == 0)
        code = fill(disk, bytes, (unsigned)strtoul(argv[4], NULL, 10), &err);
    layer_disk_close(disk);
    layer_pool_dir_destroy(pool);
    if (code < 0)
        fprintf(stderr, "bench_layers_make: %s\n", err.text);
    return code < 0;
}
