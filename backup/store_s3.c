/* A store that is a bucket of S3: see store_s3.h. */
#include "backup/store_s3.h"

#include <errno.h>

int store_s3_create(const char *location, struct store **ret_store UNUSED, struct error *err)
{
    return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "%.100s: stores on S3 are not built in", location);
}
