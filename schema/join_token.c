/* Reading and writing of join tokens; the form is in the header. */
#include "schema/join_token.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/object.h"

#define PREFIX "drover1/"

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
    if (strncmp(at, PREFIX, strlen(PREFIX)) != 0)
        return refuse(err, "it does not begin with " PREFIX);
    at += strlen(PREFIX);
    if (!take_part(&at, token.id, sizeof token.id) || !text_format_ok(FORMAT_id, token.id, &rule))
        return refuse(err, "its id is damaged");
    if (!take_part(&at, token.secret, sizeof token.secret) || !text_format_ok(FORMAT_sha256, token.secret, &rule))
        return refuse(err, "its secret is damaged");
    if (!take_part(&at, token.ca_sha256, sizeof token.ca_sha256) ||
        !text_format_ok(FORMAT_sha256, token.ca_sha256, &rule))
        return refuse(err, "its CA fingerprint is damaged");
    if (!take_addresses(at, &token))
        return refuse(err, "its addresses are damaged");
    *ret_token = token;
    return 0;
}

void join_token_format(const struct join_token *token, char text[JOIN_TOKEN_TEXT_MAX])
{
    int n = snprintf(text, JOIN_TOKEN_TEXT_MAX, PREFIX "%s/%s/%s/", token->id, token->secret, token->ca_sha256);
    for (size_t i = 0; i < token->address_count; i++) {
        size_t room = JOIN_TOKEN_TEXT_MAX - (size_t)n, need = strlen(token->addresses[i]) + (i > 0);
        if (need >= room)
            break;
        n += snprintf(text + n, room, "%s%s", i > 0 ? "," : "", token->addresses[i]);
    }
}
