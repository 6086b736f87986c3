/* A backup's source that is a disk of layers (layer_disk.h) or a snapshot of one: what has changed since the parent
 * is in the layers' maps, so nothing else is read. */
#ifndef BACKUP_SOURCE_LAYER_H
#define BACKUP_SOURCE_LAYER_H

#include "backup/backup_source.h"

/* @location: "/directory/DISK[@SNAPSHOT]". The mark is the id of the layer that is on top: a snapshot's, which does
 * not change any more. A disk itself (not a snapshot) is opened where nobody writes it, and has no mark: its top goes
 * on.
 * @parent_mark: the layer of the parent, or NULL. It is trusted only while a snapshot of the disk names it: without
 * one a merge may have put later changes into it (layer_merge.h, down). So keep the last backup's snapshot until the
 * next one; else all is read. */
int source_layer_open(const char *location, const char *parent_mark, struct backup_source **ret_source,
                      struct error *err);

#endif
