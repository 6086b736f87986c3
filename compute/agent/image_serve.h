/* Answers to requests for an image that this host holds:
 *
 *   image_serve_stream   to other agents: runs of data from ?from= on (image_stream.h)
 *   image_serve_content  to controllers, for people: the bytes as they are, a Range of them where one is asked for
 *
 *   1. a piece is read in the thread pool      failure: the connection is broken off, so that nobody takes it for the end
 *   2. and written to the client; when all has left, the next one: at most IMAGE_SERVE_PIECE_BYTES wait
 *   3. the end
 *   At most IMAGE_SERVE_MAX at once (503 beyond: an agent goes to another holder). A client that goes away ends it after
 *   the piece being read. A file that is removed meanwhile is read on: it was opened at the start. The loop's thread. */
#ifndef COMPUTE_AGENT_IMAGE_SERVE_H
#define COMPUTE_AGENT_IMAGE_SERVE_H

#include "common/http_server.h"
#include "common/list.h"

#define IMAGE_SERVE_MAX 4u                  /* at once: each has a thread of the pool for a while */
#define IMAGE_SERVE_PIECE_BYTES (256u * 1024)

struct image_serve_list {
    struct list active;
    unsigned count;
    void (*closed)(void *arg);
    void *closed_arg;
};

void image_serve_init(struct image_serve_list *list);
/* Once the server is told to stop: @closed when none is under way any more, perhaps at once. */
void image_serve_close(struct image_serve_list *list, void (*closed)(void *arg), void *arg);
/* The request is answered in any case. @path: of the file, whole. */
void image_serve_stream(struct image_serve_list *list, struct http_request *request, const char *path);
void image_serve_content(struct image_serve_list *list, struct http_request *request, const char *path);
#endif
