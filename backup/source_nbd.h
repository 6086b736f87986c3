/* A backup's source that is an export of an NBD server. */
#ifndef BACKUP_SOURCE_NBD_H
#define BACKUP_SOURCE_NBD_H

#include "backup/backup_source.h"

int source_nbd_open(const char *location, struct backup_source **ret_source, struct error *err);

#endif
