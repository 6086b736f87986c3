/* Reading and writing of join tokens; the form is in the header. */
#include "schema/join_token.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/object.h"
#include "common/pki.h"

#define PREFIX "drover2/"
#define PREFIX_OLD "drover1/"

static int refuse(struct error *err, const char *why)
{
    return error_set_field(err, -EINVAL, ERROR_INVALID, "/token",
                           "this is not a join token: %s; make one with `drover token create`", why);
}

/* Copy the part of *at up to the next '/' and step past it. */
static bool take_part(const char **at, char *buffer, size_t size)
{
    size_t length = strcspn(*at, "/");
    if ((*at)[length] != '/' || length >= size)
        return false;
    memcpy(buffer, *at, length);
    buffer[length] = '\0';
    *at += length + 1;
    return true;
}

static bool take_addresses(const char *at, struct join_token *token)
{
    while (*at != '\0') {
        size_t length = strcspn(at, ",");
        if (token->address_count == JOIN_TOKEN_ADDRESSES_MAX || length == 0 || length >= JOIN_TOKEN_ADDRESS_SIZE)
            return false;
        char *address = token->addresses[token->address_count];
        memcpy(address, at, length);
        address[length] = '\0';
        const char *rule;
        if (!text_format_ok(FORMAT_address, address, &rule))
            return false;
        token->address_count++;
        at += length + (at[length] == ',');
    }
    return token->address_count > 0;
}

int join_token_parse(const char *text, struct join_token *ret_token, struct error *err)
{
    struct join_token token = {.address_count = 0};
    const char *at = text, *rule;
    if (strlen(text) >= JOIN_TOKEN_TEXT_MAX)
        return refuse(err, "it is too long");
    bool old = strncmp(at, PREFIX_OLD, strlen(PREFIX_OLD)) == 0;
    if (!old && strncmp(at, PREFIX, strlen(PREFIX)) != 0)
        return refuse(err, "it does not begin with " PREFIX);
    at += strlen(PREFIX);
    if (!take_part(&at, token.id, sizeof token.id) || !text_format_ok(FORMAT_id, token.id, &rule))
        return refuse(err, "its id is damaged");
    if (!take_part(&at, token.secret, sizeof token.secret) || !text_format_ok(FORMAT_sha256, token.secret, &rule))
        return refuse(err, "its secret is damaged");
    if (!take_part(&at, token.ca_sha256, sizeof token.ca_sha256) ||
        !text_format_ok(FORMAT_sha256, token.ca_sha256, &rule))
        return refuse(err, "its CA fingerprint is damaged");
    if (!old && (!take_part(&at, token.cluster_id, sizeof token.cluster_id) ||
                 !text_format_ok(FORMAT_id, token.cluster_id, &rule)))
        return refuse(err, "its cluster id is damaged");
    if (!take_addresses(at, &token))
        return refuse(err, "its addresses are damaged");
    *ret_token = token;
    return 0;
}

void join_token_peer_prefix(const struct join_token *token, char prefix[JOIN_TOKEN_PREFIX_SIZE])
{
    snprintf(prefix, JOIN_TOKEN_PREFIX_SIZE, "spiffe://drover/%s/controller/",
             token->cluster_id[0] != '\0' ? token->cluster_id : "*");
}

int join_token_check(const struct join_token *token, const char *ca_pem, const char *certificate_pem,
                     const char *cluster_id, const char *role_name, const char *id, struct error *err)
{
    char fingerprint[PKI_FINGERPRINT_SIZE], uri[sizeof(((struct pki_info *)0)->uri)];
    struct pki_info info;
    int r = pki_fingerprint(ca_pem, fingerprint, err);
    if (r < 0)
        return r;
    if (strcmp(fingerprint, token->ca_sha256) != 0)
        return error_set(err, -EACCES, ERROR_UNAUTHENTICATED, "the answer's CA is not the one that the token names");
    if (token->cluster_id[0] != '\0' && strcmp(cluster_id, token->cluster_id) != 0)
        return error_set(err, -EACCES, ERROR_UNAUTHENTICATED, "the answer is of cluster %s, the token of %s", cluster_id,
                         token->cluster_id);
    if ((r = pki_verify(certificate_pem, ca_pem, err)) < 0 || (r = pki_read_info(certificate_pem, &info, err)) < 0)
        return r;
    snprintf(uri, sizeof uri, "spiffe://drover/%s/%s/%s", cluster_id, role_name, id);
    if (strcmp(info.uri, uri) != 0)
        return error_set(err, -EACCES, ERROR_UNAUTHENTICATED, "the certificate that came is of '%s', not of '%s'",
                         info.uri, uri);
    return 0;
}

void join_token_format(const struct join_token *token, char text[JOIN_TOKEN_TEXT_MAX])
{
    int n = snprintf(text, JOIN_TOKEN_TEXT_MAX, PREFIX "%s/%s/%s/%s/", token->id, token->secret, token->ca_sha256,
                     token->cluster_id);
    for (size_t i = 0; i < token->address_count; i++) {
        size_t room = JOIN_TOKEN_TEXT_MAX - (size_t)n, need = strlen(token->addresses[i]) + (i > 0);
        if (need >= room)
            break;
        n += snprintf(text + n, room, "%s%s", i > 0 ? "," : "", token->addresses[i]);
    }
}
