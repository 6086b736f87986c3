/* Which hosts have an image's disk, or are to: the rules that apply, the sync with agents and the reconciler share.
 *
 *   to be kept (distribute, reconcile)                      WANTED, keep
 *        host reports that it gets it / could not / has it  FETCHING / FAILED / HELD
 *   had because a VM needed it                              HELD, without keep; gone when the host reports it no more
 *
 * Pure: no state of its own. */
#ifndef CONTROLLER_FSM_IMAGE_COPIES_H
#define CONTROLLER_FSM_IMAGE_COPIES_H

#include "controller/fsm/state.h"

/* The copy of @host_id, or NULL. */
struct image_copy *image_copy_find(const struct image *image, const char *host_id);
/* Would what @host_id reports of it (@seen NULL: nothing) change the copies? */
bool image_copy_differs(const struct image *image, const char *host_id, const struct image_seen *seen);
/* Change them so. True: something changed. */
bool image_copy_see(struct image *image, const char *host_id, const char *host_name, const struct image_seen *seen);
/* The host is to keep it, or need not any more. True: something changed. */
bool image_copy_keep(struct image *image, const char *host_id, const char *host_name, bool keep);
/* The host is no more. True: something changed. */
bool image_copy_remove(struct image *image, const char *host_id);
/* Hosts that have it, but for @without (may be NULL). */
unsigned image_copies_held(const struct image *image, const char *without);
/* Is its disk something that hosts keep files of? */
bool image_has_copies(const struct image *image);
/* Does it live in the cluster alone, so that its last copy is all there is? */
bool image_is_kept(const struct image *image);

#endif
