/* The text of a join token: all that a newcomer needs to find the cluster, to know that it is the right one and to be
 * let in. Made by the controllers, read by controllers and agents that join.
 *
 *   drover1/<token id>/<secret, 64 hex digits>/<SHA-256 of the CA certificate, 64 hex
 * digits>/<address>[,<address>...]
 *
 * The newcomer connects to one of the addresses after another, accepts only a server whose CA has that fingerprint
 * (tls_identity.ca_sha256_hex), and sends the whole text as join_request.token. Controllers keep only a hash of the
 * secret. Pure; any thread. */
#ifndef SCHEMA_JOIN_TOKEN_H
#define SCHEMA_JOIN_TOKEN_H

#include "common/base.h"
#include "common/error.h"

#define JOIN_TOKEN_TEXT_MAX 513 /* bytes, terminator included */
#define JOIN_TOKEN_ADDRESSES_MAX 5u
#define JOIN_TOKEN_ADDRESS_SIZE 256

struct join_token {
    char id[37]; /* of the token object */
    char secret[65];
    char ca_sha256[65];
    char addresses[JOIN_TOKEN_ADDRESSES_MAX][JOIN_TOKEN_ADDRESS_SIZE]; /* "host:port", API addresses of controllers */
    size_t address_count;
};

/* -EINVAL with words where @text is not a token. */
int join_token_parse(const char *text, struct join_token *ret_token, struct error *err);
/* The text; addresses that would not fit are left out. */
void join_token_format(const struct join_token *token, char text[JOIN_TOKEN_TEXT_MAX]);

#endif
