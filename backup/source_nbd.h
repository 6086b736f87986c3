/* A backup's source that is an export of an NBD server: of a running VM's images (compute/vmm/machine_backup.h), or
 * of any other server at a Unix socket.
 *
 * What has changed since the parent is asked for by the parent's mark (drover:changed, block/nbd_wire.h): a server
 * that knows the state of that name tells, any other one does not, and then all is read. Reads are ahead of the
 * writer by up to NBD_AHEAD_BYTES; what lies NBD_BEHIND_BYTES behind it is given back by TRIM where the server takes
 * that, so that a VM need not keep it any longer. */
#ifndef BACKUP_SOURCE_NBD_H
#define BACKUP_SOURCE_NBD_H

#include "backup/backup_source.h"

enum { NBD_AHEAD_BYTES = 1 << 20, NBD_BEHIND_BYTES = 4 << 20 };

/* @location: "unix:/SOCKET[:EXPORT[@MARK]]", or "fd:N[:EXPORT[@MARK]]" with a connected socket that this program was
 * started with; MARK is the name of the state that the export shows, for the next
 * backup.
 * @parent_mark: of the disk in the parent, or NULL. */
int source_nbd_open(const char *location, const char *parent_mark, struct backup_source **ret_source,
                    struct error *err);

#endif
