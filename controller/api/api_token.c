/* Join tokens and POST /v1/join.
 *
 *   1. the token's text is taken apart, its record sought, hash and expiry and role compared
 *   2. decide_join gives an identity; the command is agreed on
 *   3. the certificate is signed from the request's key and the identity; nothing of the request but the key is used
 * A newcomer whose answer was lost asks again and gets the same identity (decide_join). */
#include "controller/api/api_token.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "controller/api/api_write.h"
#include "controller/cluster_init.h"
#include "schema/join_token.h"

static void put_hex(const unsigned char *bytes, char hex[65])
{
    for (size_t i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", bytes[i]);
}

static void hash_secret(const char *secret, char hex[65])
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    ASSERT(EVP_Digest(secret, strlen(secret), digest, NULL, EVP_sha256(), NULL) == 1);
    put_hex(digest, hex);
}

void api_token_make_secret(struct api_call *call)
{
    struct token *token = call->body;
    const char *ca_key = call->service->dir.ca_key_pem;
    char secret[65], hash[65], text[API_KEY_BYTES_MAX + 80];
    if (call->key[0] != '\0') {
        unsigned char mac[EVP_MAX_MD_SIZE];
        int n = snprintf(text, sizeof text, "join-token %s %s", call->fingerprint, call->key);
        ASSERT(HMAC(EVP_sha256(), ca_key, (int)strlen(ca_key), (const unsigned char *)text, (size_t)n, mac, NULL) !=
               NULL);
        put_hex(mac, secret);
    } else {
        environment_secret(secret);
    }
    hash_secret(secret, hash);
    OBJECT_TEXT(token, token, secret_sha256, hash);
    snprintf(call->token_text, sizeof call->token_text, "%s", secret); /* made whole by api_token_make_text */
}

void api_token_make_text(struct api_call *call, const char *token_id)
{
    struct service *service = call->service;
    struct join_token token = {.address_count = 0};
    snprintf(token.id, sizeof token.id, "%s", token_id);
    memcpy(token.secret, call->token_text, 64);
    snprintf(token.ca_sha256, sizeof token.ca_sha256, "%s", service->ca_sha256);
    snprintf(token.cluster_id, sizeof token.cluster_id, "%s", service->dir.identity.cluster_id);
    for (size_t i = 0; i < state_count(service->state, object_kind_CONTROLLER); i++) {
        const struct controller *controller = state_at(service->state, object_kind_CONTROLLER, i)->controller;
        if (token.address_count < JOIN_TOKEN_ADDRESSES_MAX && controller->role != controller_role_SPARE)
            snprintf(token.addresses[token.address_count++], JOIN_TOKEN_ADDRESS_SIZE, "%s", controller->address);
    }
    join_token_format(&token, call->token_text);
}

void api_token_put_with_secret(const struct record *record, const char *text, struct bytes_writer *out)
{
    struct token token = {.head = {0}};
    OBJECT_COPY(token, &token, record->token);
    OBJECT_TEXT(token, &token, secret, text);
    object_encode_public(&token_desc, &token, out);
    OBJECT_CLEAR(token, &token);
}

/* --- join --- */

/* Is the token good for this at this time? Read lock held. */
static int check_token(const struct state *state, const struct join_token *token, enum role role, const char *now,
                       struct error *err)
{
    char hash[65];
    const struct record *record = state_find(state, object_kind_TOKEN, token->id, strlen(token->id));
    hash_secret(token->secret, hash);
    if (record == NULL || record->token->secret_sha256 == NULL ||
        CRYPTO_memcmp(record->token->secret_sha256, hash, 64) != 0)
        return error_set_field(err, -EACCES, ERROR_UNAUTHENTICATED, "/token",
                               "this token is not known here (any more); make one with `drover token create`");
    if (record->token->expires_at != NULL && strcmp(record->token->expires_at, now) <= 0)
        return error_set_field(err, -EACCES, ERROR_UNAUTHENTICATED, "/token",
                               "this token ended at %s; make another one with `drover token create`",
                               record->token->expires_at);
    if (record->token->role != role)
        return error_set_field(err, -EACCES, ERROR_FORBIDDEN, "/role", "this token is for a %s",
                               role_desc.names[record->token->role]);
    return 0;
}

static void fill_answer(struct api_call *call, const char *id, struct join_answer *answer)
{
    struct service *service = call->service;
    const struct join_request *request = call->body;
    OBJECT_TEXT(join_answer, answer, cluster_id, service->dir.identity.cluster_id);
    OBJECT_TEXT(join_answer, answer, id, id);
    OBJECT_TEXT(join_answer, answer, ca_pem, service->dir.ca_pem);
    if (request->role == role_CONTROLLER)
        OBJECT_TEXT(join_answer, answer, ca_key_pem, service->dir.ca_key_pem);
    service_lock_state(service);
    OBJECT_SET(join_answer, answer, epoch, state_cluster(service->state)->epoch);
    size_t count = state_count(service->state, object_kind_CONTROLLER);
    answer->controllers.items = xcalloc(count, sizeof(char *));
    for (size_t i = 0; i < count && i < 16; i++) {
        const struct controller *controller = state_at(service->state, object_kind_CONTROLLER, i)->controller;
        if (strcmp(controller->id, id) == 0)
            OBJECT_SET(join_answer, answer, raft_id, controller->raft_id);
        answer->controllers.items[answer->controllers.count++] = xstrdup(controller->address);
    }
    object_mark(&join_answer_desc, answer, "controllers");
    service_unlock_state(service);
}

static int sign(struct api_call *call, const char *id, uint64_t raft_id, char **ret_certificate, struct error *err)
{
    const struct join_request *request = call->body;
    const char *const addresses[] = {request->address, request->raft_address};
    char number[24];
    snprintf(number, sizeof number, "%llu", (unsigned long long)raft_id);
    int r = cluster_sign(&call->service->dir, call->service->dir.identity.cluster_id, role_desc.names[request->role],
                         request->role == role_CONTROLLER ? number : id, request->name, addresses,
                         request->raft_address != NULL ? 2 : 1, request->csr_pem, ret_certificate, err);
    if (r < 0 && err->field[0] == '\0')
        snprintf(err->field, sizeof err->field, "/csr_pem");
    return r;
}

static void on_joined(struct api_call *call, const struct apply_result *result)
{
    const struct join_request *request = call->body;
    struct join_answer answer = {.head = {0}};
    struct bytes_writer body = {0};
    struct error err;
    char *certificate = NULL;
    const char *id = result->object_id[0] != '\0' ? result->object_id : call->joined_id;
    fill_answer(call, id, &answer);
    int r = sign(call, id, answer.raft_id, &certificate, &err);
    if (r < 0) {
        api_call_error(call, &err);
    } else {
        OBJECT_TEXT(join_answer, &answer, cert_pem, certificate);
        OBJECT_ENCODE(join_answer, &answer, &body);
        log_info("joined", "role=%s name=%s id=%s address=%s", role_desc.names[request->role], request->name, id,
                 request->address);
        api_call_answer_json(call, 201, "Cache-Control: no-store\r\n", &body);
    }
    OBJECT_CLEAR(join_answer, &answer);
    free(certificate);
}

void api_join(struct api_call *call)
{
    struct service *service = call->service;
    const struct join_request *request = call->body;
    struct decision decision CLEANUP(decision_finish) = {.status = 0};
    struct join_token token;
    char now[ENVIRONMENT_TIME_SIZE], *trial CLEANUP_FREE = NULL;
    struct error err;
    if (api_write_wait_for_key(call))
        return;
    environment_time_text(environment_unix_ms(), now);
    struct decision_context context = api_write_context(call, now);
    int r = join_token_parse(request->token, &token, &err);
    if (r == 0) {
        service_lock_state(service);
        r = check_token(service->state, &token, request->role, now, &err);
        service_unlock_state(service);
    }
    /* A request that could not be signed must not use up a Raft id: try it with an identity that is nobody's. */
    if (r == 0)
        r = sign(call, "none", 0, &trial, &err);
    if (r == 0) {
        service_lock_state(service);
        r = decide_join(service->state, &context, token.id, request, &decision, &call->raft_id, &err);
        service_unlock_state(service);
    }
    if (r < 0) {
        api_write_refuse(call, &err);
        return;
    }
    snprintf(call->joined_id, sizeof call->joined_id, "%s", decision.object_id);
    if (decision.command.size == 0) {
        struct apply_result again = {.code = 0};
        on_joined(call, &again);
        return;
    }
    api_write_propose(call, &decision, on_joined);
}
