/* Uploads of images that this host takes: pieces in order into <dir>/<image id>.source (schema/upload_protocol.h).
 *
 *   1. image_upload_expect: from now on pieces of the image are taken; what an earlier agent had got is gone on with
 *   2. a piece: written and synced in the thread pool, then answered, then told       one at a time for each image
 *        at the wrong place                       409 with the right one
 *        while another one is being written       503
 *        beyond the announced size                400
 *        no room                                  507, what was there stays
 *        of an image that is not expected (yet)   503: its order may be on its way
 *   3. image_upload_release: none are taken any more; the file is the caller's
 *
 * The file is always a prefix of what was sent: a killed agent has at most written more than it has answered. Zeros become
 * holes. The loop's thread. */
#ifndef COMPUTE_AGENT_IMAGE_UPLOAD_H
#define COMPUTE_AGENT_IMAGE_UPLOAD_H

#include "common/http_server.h"
#include "common/map.h"

#define IMAGE_UPLOAD_ID_LENGTH 36

struct image_uploads {
    uv_loop_t *loop;
    char *dir;
    struct map all; /* by image id */
    unsigned busy;  /* pieces being written */
    void (*closed)(void *arg);
    void *closed_arg;
};

/* @offset: bytes that are there; also told once by expect, before it returns. */
typedef void (*image_upload_told)(uint64_t offset, void *arg);

/* Makes @dir where it is missing. */
int image_upload_init(struct image_uploads *uploads, uv_loop_t *loop, const char *dir, struct error *err);
/* The server has been told to stop: @closed when no piece is being written any more, perhaps at once. */
void image_upload_close(struct image_uploads *uploads, void (*closed)(void *arg), void *arg);
void image_upload_finish(struct image_uploads *uploads); /* after that; also where init failed */

int image_upload_expect(struct image_uploads *uploads, const char *id, uint64_t size_bytes, image_upload_told told, void *arg,
                        struct error *err);
/* Not expected: nothing. @told does not come any more. */
void image_upload_release(struct image_uploads *uploads, const char *id);
/* Path of the file; the caller frees. */
char *image_upload_path(const struct image_uploads *uploads, const char *id);
/* Answers the request, HEAD, GET or PATCH, about the image @id. */
void image_upload_handle(struct image_uploads *uploads, struct http_request *request, const char *id);

#endif
