/* The way of a migration from host to host: the VMMs speak Unix sockets only, and between the hosts goes mutual TLS 1.3
 * with the hosts' own certificates.
 *
 *   source VMM --> Unix socket ==[tunnel of the source]== TLS ==[tunnel of the target]== Unix socket --> target VMM
 *                  listens here                           listens here
 *
 * Why not TLS in the VMM: its sandbox knows no network and holds no key, and a guest that took its VMM over would have both;
 * and a VMM that was started before the certificates changed would have the old ones. Why not on the agent's loop: encrypting
 * at the speed of the network would take it for itself. So each end of a migration has a process of its own, `drover-agent
 * tunnel`, which ends with its agent (its standard input closes) or when it is told to. When a tunnel ends, its migration
 * ends; what that means is for the VMMs and the owner of the VM to say, and never that two of them run it.
 *
 * The listening end of TLS takes only the one peer that it was told, by its whole identity: a certificate of another host of
 * the cluster is refused as one of nobody.
 *
 * Failure modes: a connection that breaks on one side is ended on the other, after what was sent has been handed on. One
 * that cannot be made ends the one that it was for; the words are kept (migrate_tunnel_failure).
 *
 * Threads: those of its loop. */
#ifndef COMPUTE_AGENT_MIGRATE_TUNNEL_H
#define COMPUTE_AGENT_MIGRATE_TUNNEL_H

#include "common/base.h" /* before uv.h, which brings other MIN and MAX */

#include <sys/types.h>
#include <uv.h>

#include "common/error.h"
#include "common/tls.h"

#define MIGRATE_TUNNEL_CONNECTIONS_MAX 32u        /* at one time, those that have not said who they are included */
#define MIGRATE_TUNNEL_QUEUE_BYTES_MAX (1u << 20) /* of one direction; then the faster side waits */
#define MIGRATE_TUNNEL_LINGER_MS 5000u            /* for what is still to be handed on */

struct migrate_tunnel;

/* All borrowed for the call but @tls, which is counted. */
struct migrate_tunnel_options {
    uv_loop_t *loop;
    struct tls_context *tls;
    bool is_source;
    const char *listen;  /* source: path of a Unix socket, which must not exist; target: "host:port", port 0: any */
    const char *connect; /* source: "host:port"; target: "unix:/path" */
    const char *peer;    /* identity of the other host, spiffe://drover/<cluster>/host/<id> */
    uid_t owner;         /* source: of the Unix socket */
};

int migrate_tunnel_start(const struct migrate_tunnel_options *options, struct migrate_tunnel **ret_tunnel,
                         struct error *err);
/* Where it listens: "host:port" or the path. */
const char *migrate_tunnel_endpoint(const struct migrate_tunnel *tunnel);
/* Why the last connection that could not be made was not; "" where there is none. */
const char *migrate_tunnel_failure(const struct migrate_tunnel *tunnel);
/* Ends all connections at once; @closed (may be NULL) when the memory is gone. */
void migrate_tunnel_stop(struct migrate_tunnel *tunnel, void (*closed)(void *arg), void *arg);

#endif
