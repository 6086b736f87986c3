/* The files that hold a VM's disks: sparse raw files, empty or begun as a copy of an image; or layers above an image,
 * which is then shared by all that begin with it. Blocking; any thread. */
#ifndef COMPUTE_AGENT_DISK_FILE_H
#define COMPUTE_AGENT_DISK_FILE_H

#include "common/base.h"
#include "common/error.h"

/* Make @path unless it is there: an existing disk is never touched. @image_path NULL: empty, of @size_bytes. Else a
 * copy of it (shared blocks where the file system can, holes stay holes), grown to @size_bytes; 0 = the image's own
 * size. The name appears only when the content is on disk.
 * -EFBIG: the image is larger than @size_bytes. */
int disk_file_make(const char *path, uint64_t size_bytes, const char *image_path, struct error *err);
/* Make the layered disk @directory/@name.disk (block/layer_disk.h) unless it is there, above @image_path (NULL: empty, of
 * @size_bytes): nothing is
 * copied. The image gets a second name in @directory, so it stays whatever becomes of the first one; it must never be
 * written to. -EFBIG as above. -EXDEV, without words: this image cannot be shared there (another file system, a size
 * that is no multiple of 512); make a copy. */
int disk_file_clone(const char *directory, const char *name, uint64_t size_bytes, const char *image_path,
                    struct error *err);

#endif
