/* How raft servers reach each other: mutual TLS 1.3, in libraft's loop.
 *
 * libraft wants a uv_stream_t and uses each connection in one direction: who connects writes, who accepts reads. So
 * each TLS connection (common/tls_stream.h) gives libraft one end of a socket pair and pumps between the other end
 * and TLS.
 *
 * Who is who: the certificate's URI must be spiffe://drover/<cluster id>/controller/<raft id>; both sides check it,
 * the connecting one against the id it wants, the accepting one against the id that the preamble claims. libraft
 * believes every byte that comes through, so nothing else may.
 *
 * Epoch: a cluster that was rebuilt from a survivor (raft_node_recover) has a higher one, and nothing of a lower one may
 * talk to it: the lost majority still has a configuration in which it is one. Whoever learns from a peer's preamble, or
 * from the answer to its own, that the cluster is further, is told so by `superseded`.
 *
 * On the wire: the connector sends {u64 version 3, u64 raft id, u64 epoch, u64 length, its own address} and then
 * libraft's bytes. The acceptor answers the preamble of another epoch with {u8 1, u64 its epoch} and hangs up a moment
 * later. Otherwise it sends one zero byte each second; a connector that hears nothing for RAFT_TRANSPORT_SILENCE_MS
 * hangs up and libraft connects again (TCP alone would need minutes to notice a cut cable, and as long again after it
 * is mended). This way back also carries our own messages to the connector: {u8 2 or 3, u64 term, u64 round}, the
 * questions and answers of raft_confirm.h. Any other first byte ends the connection.
 *
 * Limits: RAFT_TRANSPORT_PENDING_MAX connections that have not yet proved who they are; further ones are closed at
 * once. One accepted connection per raft id: a newer one replaces it. Both directions stop reading at
 * RAFT_TRANSPORT_QUEUE_BYTES_MAX unsent. Thread: the loop's. */
#ifndef CONTROLLER_RAFT_RAFT_TRANSPORT_H
#define CONTROLLER_RAFT_RAFT_TRANSPORT_H

#include "common/error.h"

#include <raft.h>
#include <raft/uv.h>

#define RAFT_TRANSPORT_PENDING_MAX 16u
#define RAFT_TRANSPORT_OPEN_TIMEOUT_MS 5000u     /* connect, handshake and preamble, each */
#define RAFT_TRANSPORT_BEAT_MS 1000u
#define RAFT_TRANSPORT_REFUSAL_MS 200u           /* for a refusal to arrive before the connection closes */
#define RAFT_TRANSPORT_SILENCE_MS 4000u
#define RAFT_TRANSPORT_QUEUE_BYTES_MAX (1u << 20)
#define RAFT_TRANSPORT_ADDRESS_MAX 256u          /* NUL included */

struct raft_transport;
struct raft_confirm_message;

struct raft_transport_config { /* borrowed for the call, but the listen address: until destroy */
    uint64_t id;
    uint64_t epoch; /* of the cluster */
    /* A peer has a higher epoch. May be called more than once. NULL: ignored */
    void (*superseded)(void *arg, uint64_t epoch);
    void *arg;
    /* A message of ours has come from @id, whose certificate says so. NULL: ignored */
    void (*received)(void *receiver, uint64_t id, const struct raft_confirm_message *message);
    void *receiver;
    const char *cluster_id;
    const char *listen_address; /* NULL: the address given to raft_init */
    const char *certificate_pem, *key_pem, *ca_pem;
};

/* Give raft_transport_uv() to raft_uv_init. Nothing is opened before raft_start. */
int raft_transport_create(const struct raft_transport_config *config, uv_loop_t *loop,
                          struct raft_transport **ret_transport, struct error *err);
/* After raft_close has called back (or where raft_init was never called). NULL is fine. */
void raft_transport_destroy(struct raft_transport *transport);
struct raft_uv_transport *raft_transport_uv(struct raft_transport *transport);
/* To @id, on the connection that it has opened to this server. False: there is none, or it does not take more now. A true
 * does not mean that it arrives. */
bool raft_transport_send(struct raft_transport *transport, uint64_t id, const struct raft_confirm_message *message);

/* The preamble at the start of @data: its length, and id, epoch and address (NUL-terminated in @ret_address); 0 where
 * more bytes are needed; -EBADMSG where it can't become one. */
int raft_transport_parse_preamble(const void *data, size_t size, uint64_t *ret_id, uint64_t *ret_epoch,
                                  char ret_address[RAFT_TRANSPORT_ADDRESS_MAX]);
/* "host:port", "192.0.2.1:port", "[2001:db8::1]:port" apart. -EINVAL with words. */
int raft_transport_parse_address(const char *address, char ret_host[RAFT_TRANSPORT_ADDRESS_MAX], char ret_port[8],
                                 struct error *err);

#endif
