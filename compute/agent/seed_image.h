/* A small FAT12 disk image with a few files in its root, as cloud-init's NoCloud source reads it (label CIDATA). Made
 * whole in memory, the same bytes for the same files. Pure. FAT as in Microsoft's "FAT General Overview" 1.03 with long
 * names. */
#ifndef COMPUTE_AGENT_SEED_IMAGE_H
#define COMPUTE_AGENT_SEED_IMAGE_H

#include "common/bytes.h"

#define SEED_IMAGE_FILES_MAX 8u
#define SEED_IMAGE_NAME_BYTES_MAX 26u /* two entries of a long name */
#define SEED_IMAGE_BYTES_MAX (1u << 20)

struct seed_image_file {
    const char *name; /* ASCII; shown to the guest exactly so */
    const void *data;
    size_t size;
};

/* Append the image: a multiple of 512 bytes. @label: up to 11 characters, upper case. -EFBIG: more than fits into
 * SEED_IMAGE_BYTES_MAX. */
int seed_image_make(const char *label, const struct seed_image_file *files, unsigned count, struct bytes_writer *out);

#endif
