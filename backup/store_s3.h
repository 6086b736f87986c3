/* A store that is a bucket of S3 (AWS, Ceph, MinIO, Swift's s3api ...), by libcurl for transport and s3_sign.h.
 *
 * Location: s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME]; endpoint http:// or https://, addressed by path
 * (endpoint/bucket/key), default https://s3.REGION.amazonaws.com; region default us-east-1. Keys come from the
 * environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Further CAs by libcurl's own means (CURL_CA_BUNDLE,
 * SSL_CERT_FILE).
 *
 * Every put carries the SHA-256 of its body, so that the server refuses what was damaged on the way. Objects are put
 * whole: packs are far below the 5 GiB that need parts. The bucket has to be there.
 *
 * A request that fails in transport (no connection, cut, too slow) or with 429, 500, 502, 503, 504 is tried again,
 * six times in all, after 0.2, 0.4 ... seconds and some luck: all requests may be repeated without harm. Errors in
 * words: -EACCES        the access key is unknown, the secret is wrong, or the bucket is not ours -ETIME         the
 * clocks differ: by how much is said -ENOENT        no such object; of the bucket: said so -EHOSTUNREACH  no
 * connection, or it was cut each time -EBUSY         the server was busy each time */
#ifndef BACKUP_STORE_S3_H
#define BACKUP_STORE_S3_H

#include "backup/store.h"

enum { STORE_S3_TRIES = 6, STORE_S3_FIRST_WAIT_MS = 200, STORE_S3_TRANSFERS = 8 };

int store_s3_create(const char *location, struct store **ret_store, struct error *err);

#endif
