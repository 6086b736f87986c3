/* The first words between an NBD client and its server: connect, and agree on an export. Blocking, with a deadline for
 * the whole of it. The server is not trusted. */
#ifndef BLOCK_NBD_CLIENT_HELLO_H
#define BLOCK_NBD_CLIENT_HELLO_H

#include "block/nbd_wire.h"
#include "common/error.h"

enum { NBD_CONTEXT_ALLOCATION_INDEX, NBD_CONTEXT_CHANGED_INDEX, NBD_CONTEXTS };

/* Who the client is to the server, and which connection of its this is (NBD_OPT_WRITER in nbd_wire.h). */
struct nbd_writer {
    uint8_t id[NBD_WRITER_ID_BYTES];
    uint64_t number;
};

struct nbd_hello {
    uint64_t size_bytes; /* a multiple of 512, not 0 */
    uint32_t block_bytes;
    uint16_t flags; /* of the transmission */
    bool structured;
    bool ends_earlier; /* nothing of the writer's earlier connections is carried out any more */
    bool has_context[NBD_CONTEXTS];
    uint32_t context_id[NBD_CONTEXTS];
};

/* *ret_fd is non-blocking. @socket_path NULL: 127.0.0.1:@port. */
int nbd_hello_connect(const char *socket_path, uint16_t port, unsigned timeout_ms, int *ret_fd, struct error *err);
/* @changed_since (NULL: none): the context drover:changed of that name is asked for as well. @writer: NULL: its earlier connections do
 * not matter. -EPROTO, -ETIMEDOUT, -ENOENT: no such export, in words. The descriptor stays the caller's. */
int nbd_hello_negotiate(int fd, const char *export_name, const char *changed_since, const struct nbd_writer *writer,
                        unsigned timeout_ms, struct nbd_hello *ret_hello, struct error *err);
/* Say goodbye, if that goes at once; @fd may be -1. */
void nbd_hello_leave(int fd);
/* And wait until the server has ended the connection: 0, -ETIMEDOUT. */
int nbd_hello_leave_wait(int fd, unsigned wait_ms);

#endif
