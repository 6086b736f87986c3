/* A disk made of layers (block/layer_disk.h) in the VMM: its files are opened with the machine's own engines, and what
 * ends within submit is told from the I/O loop.
 *
 * The fail-stop hook is the disk's: `may_submit` of the struct block that is opened here is asked by every file right
 * before it is touched. Until it is set, that is while the disk is being opened, everything is allowed; but
 * for a disk that other hosts reach (`may_open`): of that one not a byte or name is changed without being asked for.
 *
 * `unlocked`: another process has it still. Its size is looked at, which changes nothing and so needs no right to it; nothing of it is
 * kept but that, and block_own(true) opens it anew, whatever was written meanwhile, under `epoch`.
 *
 * A disk that is not whole (layer_disk_create_from) is opened where options->source_path says who has the rest, and filled from there from
 * the beginning on, while it is used; what fails is begun again after FILL_RETRY_MS. With options->on_demand it is not filled: what is
 * missing is read each time that somebody wants it. */
#ifndef COMPUTE_VMM_BLOCK_LAYERS_H
#define COMPUTE_VMM_BLOCK_LAYERS_H

#include "block/layer_disk.h"
#include "compute/vmm/block/block_file.h"

/* @path: <directory>/<name>.disk. Refused in words: as layer_disk_open, block_file_open. options->name is not used. */
int block_layers_open(const char *path, const struct block_file_options *options, struct io_loop *loop,
                      struct block **ret_block, struct error *err);
/* Of one that was opened `unlocked`, other hosts reach, and no VMM of a lower epoch touches any more, for its last owner has let go of it
 * and said so: block_own(true) does not mind locks, which a file server may keep for a host that is gone. */
void block_layers_released(struct block *b);
/* What is missing of a disk. */
struct block_layers_fill {
    uint64_t done_bytes, total_bytes; /* looked at */
    struct error stuck;               /* why nothing comes just now; code 0: it does */
};
/* False: it is whole. With the device lock held. */
bool block_layers_filling(struct block *b, struct block_layers_fill *ret_fill);
/* The disk behind a block that block_layers_open gave. */
struct layer_disk *block_layers_disk(struct block *b);

#endif
