/* The text of a join token: all that a newcomer needs to find the cluster, to know that it is the right one and to be
 * let in. Made by the controllers, read by controllers and agents that join.
 *
 *   drover2/<token id>/<secret>/<fingerprint of the CA>/<cluster id>/<address>[,<address>...]
 *   drover1/<token id>/<secret>/<fingerprint of the CA>/<address>[,<address>...]       read, not made any more
 *
 * Secret and fingerprint (SHA-256 of the CA's certificate) are 64 hex digits each. The newcomer connects to one of the
 * addresses after another and sends the whole text as join_request.token, but only to a server whose CA has that
 * fingerprint (tls_identity.ca_sha256_hex) and whose certificate is of a controller, of this cluster
 * (join_token_peer_prefix): hosts and users have certificates of the same CA, and the secret is not for them. Controllers
 * keep only a hash of the secret. Pure; any thread. */
#ifndef SCHEMA_JOIN_TOKEN_H
#define SCHEMA_JOIN_TOKEN_H

#include "common/base.h"
#include "common/error.h"

#define JOIN_TOKEN_TEXT_MAX 513 /* bytes, terminator included */
#define JOIN_TOKEN_ADDRESSES_MAX 5u
#define JOIN_TOKEN_ADDRESS_SIZE 256
#define JOIN_TOKEN_PREFIX_SIZE 80

struct join_token {
    char id[37]; /* of the token object */
    char secret[65];
    char ca_sha256[65];
    char cluster_id[37]; /* "" in a token of the first form */
    char addresses[JOIN_TOKEN_ADDRESSES_MAX][JOIN_TOKEN_ADDRESS_SIZE]; /* "host:port", API addresses of controllers */
    size_t address_count;
};

/* -EINVAL with words where @text is not a token. */
int join_token_parse(const char *text, struct join_token *ret_token, struct error *err);
/* What the identity of a server must begin with that may see the token (tls_identity_matches). */
void join_token_peer_prefix(const struct join_token *token, char prefix[JOIN_TOKEN_PREFIX_SIZE]);
/* Is the answer what the token promises? @ca_pem has its fingerprint, @certificate_pem is signed by it and is of
 * @role_name and @id (a controller's is its Raft id) in the token's cluster. -EACCES with words if not; -EINVAL where the PEM is unreadable. */
int join_token_check(const struct join_token *token, const char *ca_pem, const char *certificate_pem,
                     const char *cluster_id, const char *role_name, const char *id, struct error *err);
/* The text (second form); addresses that would not fit are left out. */
void join_token_format(const struct join_token *token, char text[JOIN_TOKEN_TEXT_MAX]);

#endif
