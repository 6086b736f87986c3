/* A backup's source that is an export of an NBD server: see source_nbd.h. */
#include "backup/source_nbd.h"

#include <errno.h>

int source_nbd_open(const char *location, struct backup_source **ret_source UNUSED, struct error *err)
{
    return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "%.100s: NBD sources are not built in", location);
}
