/* From the file that was uploaded, a URL, or what was copied of a snapshot (image_snapshot.h), to an image in this host's
 * store. Blocking: the work of the task image-import in its child process (task_child.h).
 *
 *   1. <work>/<image>.done of an earlier run, and its image is there   all was done already
 *   2. a URL: fetched to <work>/<image>.source, gone on with where an earlier run ended (Range)
 *   3. its size and SHA-256, where they were given                      differ: ERROR_CHECKSUM
 *   4. raw: the file as it is.  ova: the one vmdk in it.  qcow2, vmdk, vhdx: converted (image_convert.h) to <work>/<image>.raw
 *   5. SHA-256 of the raw disk: its identity
 *   6. synced, renamed to <images>/<sha256>; <image>.done says so
 * A failure leaves <image>.source, for whoever began it to remove. What was copied of a snapshot is in <image>.copy instead,
 * and raw: nobody goes on with that, so it goes at the agent's start. */
#ifndef COMPUTE_AGENT_IMAGE_IMPORT_H
#define COMPUTE_AGENT_IMAGE_IMPORT_H

#include "common/base.h"
#include "common/error.h"
#include "schema/objects.h"

/* How far it is; may be NULL. */
struct image_import_listener {
    void (*progress)(const char *step, uint64_t done, uint64_t total, void *arg);
    void *arg;
};

int image_import_run(const struct image_work *work, const struct image_import_listener *listener, struct image_result *ret_result,
                     struct error *err);
/* Every file of @image in @work_dir but <image>.source, which goes too with @source. */
void image_import_clean(const char *work_dir, const char *image, bool source);

#endif
