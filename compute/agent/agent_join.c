/* Joining: the token names the controllers and the fingerprint of their CA; the newcomer makes its key here, and it
 * never leaves this host. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/file.h"
#include "common/http_client.h"
#include "common/pki.h"
#include "compute/agent/agent_join.h"
#include "schema/join_token.h"
#include "schema/objects.h"

#define JOIN_DEADLINE_MS 15000
#define IDENTITY_BYTES_MAX (1u << 20)

static void free_secret(char **key_pem)
{
    pki_free_secret(*key_pem);
}

/* "192.0.2.1" -> "192.0.2.1:7445", "2001:db8::1" -> "[2001:db8::1]:7445"; what has a port is kept. */
static char *with_port(const char *address)
{
    const char *rule, *colon = strchr(address, ':');
    if (text_format_ok(FORMAT_address, address, &rule))
        return xstrdup(address);
    if (colon != NULL && strchr(colon + 1, ':') != NULL && address[0] != '[')
        return xasprintf("[%s]:" AGENT_PORT, address);
    return xasprintf("%s:" AGENT_PORT, address);
}

/* One controller's answer. -EAGAIN: another may do better. */
static int ask_controller(const char *controller, const char *peer_prefix, struct tls_context *tls, const struct bytes_writer *body,
                          struct join_answer *ret_answer, struct error *err)
{
    CLEANUP_FREE char *url = xasprintf("https://%s/v1/join", controller);
    CLEANUP_FREE char *text = NULL;
    size_t size = 0;
    int status = 0;
    const struct http_call_options options = {
        .method = "POST",
        .url = url,
        .body = body->data,
        .body_size = body->size,
        .deadline_ms = JOIN_DEADLINE_MS,
        .tls = tls,
        .peer_prefix = peer_prefix,
    };
    int r = http_client_perform(&options, &status, &text, &size, err);
    if (r < 0) {
        error_prefix(err, "controller %s: ", controller);
        return -EAGAIN;
    }
    if (status / 100 != 2) {
        struct problem problem = {.type = NULL};
        bool told = OBJECT_DECODE(problem, text, size, OBJECT_LENIENT, &problem, NULL) == 0 && problem.detail != NULL;
        error_set(err, -EACCES, told && problem.code != NULL ? error_kind_from_code(problem.code) : ERROR_INTERNAL,
                  "controller %s answered %d: %s", controller, status, told ? problem.detail : "");
        OBJECT_CLEAR(problem, &problem);
        return status >= 500 ? -EAGAIN : -EACCES;
    }
    r = OBJECT_DECODE(join_answer, text, size, OBJECT_LENIENT, ret_answer, err);
    if (r == 0 && (ret_answer->cluster_id == NULL || ret_answer->id == NULL || ret_answer->cert_pem == NULL ||
                   ret_answer->ca_pem == NULL || ret_answer->controllers.count == 0)) {
        OBJECT_CLEAR(join_answer, ret_answer);
        r = error_set(err, -EPROTO, ERROR_INTERNAL, "controller %s left out a part of its answer", controller);
    }
    return r;
}

static int ask_cluster(const struct join_token *token, const struct bytes_writer *body,
                       struct join_answer *ret_answer, struct error *err)
{
    const struct tls_identity identity = {.ca_sha256_hex = token->ca_sha256};
    struct tls_context *tls;
    char peer_prefix[JOIN_TOKEN_PREFIX_SIZE];
    join_token_peer_prefix(token, peer_prefix);
    int r = tls_context_create(&identity, &tls, err);
    if (r < 0)
        return r;
    r = -EAGAIN;
    for (size_t i = 0; r == -EAGAIN && i < token->address_count; i++)
        r = ask_controller(token->addresses[i], peer_prefix, tls, body, ret_answer, err);
    tls_context_unref(tls);
    return r;
}

static int save_identity(const struct agent_join_options *options, const char *address, const char *key_pem,
                         const struct join_answer *answer, struct error *err)
{
    CLEANUP_FREE char *path = xasprintf("%s/identity.json", options->data_dir);
    CLEANUP_FREE char *ca = xasprintf("%s/ca.pem", options->data_dir);
    CLEANUP_FREE char *cert = xasprintf("%s/cert.pem", options->data_dir);
    CLEANUP_FREE char *key = xasprintf("%s/key.pem", options->data_dir);
    struct node_identity identity = {.format = 0}, copy = {.format = 0};
    struct bytes_writer out = {.data = NULL};
    int r;
    OBJECT_SET(node_identity, &identity, format, 1);
    OBJECT_SET(node_identity, &identity, role, role_HOST);
    OBJECT_TEXT(node_identity, &identity, cluster_id, answer->cluster_id);
    OBJECT_TEXT(node_identity, &identity, id, answer->id);
    OBJECT_TEXT(node_identity, &identity, name, options->name);
    OBJECT_TEXT(node_identity, &identity, address, address);
    copy.controllers = answer->controllers; /* borrowed: merge copies */
    object_mark(&node_identity_desc, &copy, "controllers");
    OBJECT_SET(node_identity, &copy, epoch, answer->epoch);
    object_merge(&node_identity_desc, &identity, &copy);
    OBJECT_ENCODE(node_identity, &identity, &out);
    if ((r = pki_save_certificate(ca, answer->ca_pem, err)) == 0 &&
        (r = pki_save_certificate(cert, answer->cert_pem, err)) == 0 && (r = pki_save_key(key, key_pem, err)) == 0)
        r = file_write_atomic(path, out.data, out.size, 0644, err);
    bytes_writer_finish(&out);
    OBJECT_CLEAR(node_identity, &identity);
    return r;
}

/* A directory that is a host's: join with the same words as before does nothing, and that is fine. With others it is refused. */
static int repeated(const struct agent_join_options *options, const char *identity_path, const struct join_token *token, const char *address,
                    struct error *err)
{
    struct node_identity identity = {.format = 0};
    CLEANUP_FREE char *text = NULL;
    size_t size = 0;
    int r = file_read(identity_path, IDENTITY_BYTES_MAX, &text, &size, err);
    if (r == 0)
        r = OBJECT_DECODE(node_identity, text, size, OBJECT_STORED, &identity, err);
    if (r < 0) {
        error_prefix(err, "%s: ", identity_path);
        return r;
    }
    bool same = text_same(identity.name, options->name) && text_same(identity.address, address) &&
                (token->cluster_id[0] == '\0' || text_same(identity.cluster_id, token->cluster_id));
    if (!same)
        r = error_set(err, -EEXIST, ERROR_EXISTS, "%s is host '%s' at %s of cluster %s already; a machine is one host of one cluster",
                      options->data_dir, identity.name, identity.address, identity.cluster_id);
    OBJECT_CLEAR(node_identity, &identity);
    return r;
}

int agent_join(const struct agent_join_options *options, bool *ret_repeated, struct error *err)
{
    struct join_token token;
    struct join_request request = {.token = NULL};
    struct join_answer answer = {.cluster_id = NULL};
    struct bytes_writer body = {.data = NULL};
    CLEANUP(free_secret) char *key_pem = NULL;
    CLEANUP_FREE char *csr_pem = NULL, *address = with_port(options->address);
    CLEANUP_FREE char *identity_path = xasprintf("%s/identity.json", options->data_dir);
    int r = join_token_parse(options->token, &token, err);
    if (r < 0)
        return r;
    *ret_repeated = access(identity_path, F_OK) == 0;
    if (*ret_repeated)
        return repeated(options, identity_path, &token, address, err);
    if ((r = file_make_directories(options->data_dir, 0700, err)) < 0 ||
        (r = pki_create_request(&key_pem, &csr_pem, err)) < 0)
        return r;
    OBJECT_TEXT(join_request, &request, token, options->token);
    OBJECT_SET(join_request, &request, role, role_HOST);
    OBJECT_TEXT(join_request, &request, name, options->name);
    OBJECT_TEXT(join_request, &request, address, address);
    OBJECT_TEXT(join_request, &request, csr_pem, csr_pem);
    r = object_validate(&join_request_desc, &request, OBJECT_CREATE, err);
    OBJECT_ENCODE(join_request, &request, &body);
    OBJECT_CLEAR(join_request, &request);
    if (r == 0)
        r = ask_cluster(&token, &body, &answer, err);
    bytes_writer_finish(&body);
    if (r < 0)
        return r;
    r = join_token_check(&token, answer.ca_pem, answer.cert_pem, answer.cluster_id, role_desc.names[role_HOST], answer.id,
                         err);
    if (r == 0)
        r = save_identity(options, address, key_pem, &answer, err);
    OBJECT_CLEAR(join_answer, &answer);
    return r;
}
