/* Join tokens: making the secret, showing the whole token once, and POST /v1/join. */
#ifndef CONTROLLER_API_API_TOKEN_H
#define CONTROLLER_API_API_TOKEN_H

#include "controller/api/api_call.h"

/* token_create, before deciding: a secret, and its hash in the body. Under an Idempotency-Key the secret follows from
 * the CA's key and the request, so that a repeat shows the same token. */
void api_token_make_secret(struct api_call *call);
/* token_create, decided: the whole token in call->token_text. Read lock held. */
void api_token_make_text(struct api_call *call, const char *token_id);
void api_token_put_with_secret(const struct record *record, const char *text, struct bytes_writer *out);

void api_join(struct api_call *call);

#endif
