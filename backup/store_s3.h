/* A store that is a bucket of S3. */
#ifndef BACKUP_STORE_S3_H
#define BACKUP_STORE_S3_H

#include "backup/store.h"

int store_s3_create(const char *location, struct store **ret_store, struct error *err);

#endif
