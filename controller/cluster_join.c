/* Joining: a key and a signing request; POST /v1/join over TLS that trusts only a controller of the cluster that the
 * token names (the secret goes to nobody else); the answer must be what the token promises; then the files. */
#include "controller/cluster_join.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/file.h"
#include "common/http_client.h"
#include "common/pki.h"
#include "schema/join_token.h"

static int fill_request(struct join_request *request, const struct cluster_join_options *options, const char *csr,
                        struct error *err)
{
    char address[CLUSTER_ADDRESS_SIZE], raft_address[CLUSTER_ADDRESS_SIZE], host[CLUSTER_ADDRESS_SIZE];
    int r = cluster_address(options->address, CLUSTER_API_PORT, address, err);
    if (r < 0)
        return r;
    cluster_address_host(address, host);
    r = cluster_address(options->raft_address ? options->raft_address : host, CLUSTER_RAFT_PORT, raft_address, err);
    if (r < 0)
        return r;
    OBJECT_TEXT(join_request, request, token, options->token);
    OBJECT_SET(join_request, request, role, role_CONTROLLER);
    OBJECT_TEXT(join_request, request, name, options->name);
    OBJECT_TEXT(join_request, request, address, address);
    OBJECT_TEXT(join_request, request, raft_address, raft_address);
    OBJECT_TEXT(join_request, request, csr_pem, csr);
    return object_validate(&join_request_desc, request, OBJECT_CREATE, err);
}

/* Ask one controller. */
static int ask(const char *address, const char *peer_prefix, struct tls_context *tls, const struct bytes_writer *body,
               struct join_answer *answer, struct error *err)
{
    char url[CLUSTER_ADDRESS_SIZE + 32], *text CLEANUP_FREE = NULL;
    size_t size = 0;
    int status = 0;
    snprintf(url, sizeof url, "https://%s/v1/join", address);
    struct http_call_options call = {.method = "POST",
                                     .url = url,
                                     .body = body->data,
                                     .body_size = body->size,
                                     .deadline_ms = CLUSTER_JOIN_DEADLINE_MS,
                                     .body_bytes_max = 1024 * 1024,
                                     .tls = tls,
                                     .peer_prefix = peer_prefix};
    int r = http_client_perform(&call, &status, &text, &size, err);
    if (r < 0)
        return r;
    if (status / 100 != 2) {
        struct problem problem = {.head = {0}};
        if (text != NULL && OBJECT_DECODE(problem, text, size, OBJECT_LENIENT, &problem, NULL) == 0)
            r = error_set_field(err, -EREMOTEIO, problem.code ? error_kind_from_code(problem.code) : ERROR_INTERNAL,
                                "", "%s", problem.detail ? problem.detail : "refused");
        else
            r = error_set(err, -EREMOTEIO, ERROR_INTERNAL, "it answered with status %d", status);
        OBJECT_CLEAR(problem, &problem);
        return r;
    }
    return OBJECT_DECODE(join_answer, text, size, OBJECT_LENIENT, answer, err);
}

/* Ask one address after another; the first answer, good or bad, counts. */
static int ask_all(const struct join_token *token, const struct bytes_writer *body, struct join_answer *answer,
                   struct error *err)
{
    struct tls_identity identity = {.ca_sha256_hex = token->ca_sha256};
    struct tls_context *tls = NULL;
    char peer_prefix[JOIN_TOKEN_PREFIX_SIZE];
    join_token_peer_prefix(token, peer_prefix);
    int r = tls_context_create(&identity, &tls, err);
    for (size_t i = 0; tls != NULL && i < token->address_count; i++) {
        r = ask(token->addresses[i], peer_prefix, tls, body, answer, err);
        if (r == 0 || (r == -EREMOTEIO && err->kind != ERROR_NO_LEADER && err->kind != ERROR_UNREACHABLE))
            break;
        error_prefix(err, "%s: ", token->addresses[i]);
    }
    tls_context_unref(tls);
    return r;
}

static int check_answer(const struct join_answer *answer, const struct join_token *token, struct error *err)
{
    if (answer->cluster_id == NULL || answer->id == NULL || answer->raft_id == 0 || answer->cert_pem == NULL ||
        answer->ca_pem == NULL || answer->ca_key_pem == NULL)
        return error_set(err, -EBADMSG, ERROR_INTERNAL, "the cluster's answer lacks something");
    char number[24]; /* a controller is known by its Raft id */
    snprintf(number, sizeof number, "%llu", (unsigned long long)answer->raft_id);
    return join_token_check(token, answer->ca_pem, answer->cert_pem, answer->cluster_id,
                            role_desc.names[role_CONTROLLER], number, err);
}

static void fill_identity(struct data_dir *dir, const struct join_request *request, const struct join_answer *answer,
                          const char *key)
{
    struct node_identity *me = &dir->identity;
    OBJECT_SET(node_identity, me, format, 1);
    OBJECT_SET(node_identity, me, role, role_CONTROLLER);
    OBJECT_TEXT(node_identity, me, cluster_id, answer->cluster_id);
    OBJECT_TEXT(node_identity, me, id, answer->id);
    OBJECT_TEXT(node_identity, me, name, request->name);
    OBJECT_TEXT(node_identity, me, address, request->address);
    OBJECT_TEXT(node_identity, me, raft_address, request->raft_address);
    OBJECT_SET(node_identity, me, raft_id, answer->raft_id);
    OBJECT_SET(node_identity, me, epoch, answer->epoch);
    dir->ca_pem = xstrdup(answer->ca_pem);
    dir->ca_key_pem = xstrdup(answer->ca_key_pem);
    dir->certificate_pem = xstrdup(answer->cert_pem);
    dir->key_pem = xstrdup(key);
}

int cluster_join(struct data_dir *dir, const struct cluster_join_options *options, struct error *err)
{
    struct join_request request = {.head = {0}};
    struct join_answer answer = {.head = {0}};
    struct bytes_writer body = {0};
    struct join_token token;
    char *key = NULL, *csr CLEANUP_FREE = NULL;
    if (data_dir_has_identity(dir))
        return error_set(err, -EEXIST, ERROR_EXISTS, "%s belongs to a cluster already", dir->path);
    int r = join_token_parse(options->token, &token, err);
    if (r == 0)
        r = pki_create_request(&key, &csr, err);
    if (r == 0)
        r = fill_request(&request, options, csr, err);
    if (r == 0) {
        OBJECT_ENCODE(join_request, &request, &body);
        r = ask_all(&token, &body, &answer, err);
    }
    if (r == 0)
        r = check_answer(&answer, &token, err);
    if (r == 0)
        r = file_remove_tree(dir->path, "raft", err);
    if (r == 0) {
        fill_identity(dir, &request, &answer, key);
        r = data_dir_save(dir, err);
    }
    OBJECT_CLEAR(join_request, &request);
    OBJECT_CLEAR(join_answer, &answer);
    bytes_writer_finish(&body);
    pki_free_secret(key);
    return r;
}
