/* The files that hold a VM's disks: sparse raw files, empty or begun as a copy of an image. Blocking; any thread. */
#ifndef COMPUTE_AGENT_DISK_FILE_H
#define COMPUTE_AGENT_DISK_FILE_H

#include "common/base.h"
#include "common/error.h"

/* Make @path unless it is there: an existing disk is never touched. @image_path NULL: empty, of @size_bytes. Else a
 * copy of it (shared blocks where the file system can, holes stay holes), grown to @size_bytes; 0 = the image's own
 * size. The name appears only when the content is on disk.
 * -EFBIG: the image is larger than @size_bytes. */
int disk_file_make(const char *path, uint64_t size_bytes, const char *image_path, struct error *err);

#endif
