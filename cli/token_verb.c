/* token create: shows the token once, alone on standard output, so that a script can take it. */
#include <errno.h>
#include <stdio.h>

#include "cli/body.h"
#include "cli/client.h"
#include "cli/verb_functions.h"
#include "cli/output.h"

int token_create(const struct invocation *call, struct error *err)
{
    struct client client;
    struct reply reply = {0};
    json_t *body = NULL;
    int rc = client_init(&client, call, err);
    if (rc == 0)
        rc = body_build(call, &token_desc, &body, err);
    if (rc == 0)
        rc = client_request(&client, "POST", "/v1/tokens", body, &reply, err);
    if (rc == 0 && call->output != OUTPUT_TABLE) {
        output_object(call, reply.json);
    } else if (rc == 0) {
        const char *secret = json_string_value(json_object_get(reply.json, "secret"));
        const char *role = json_string_value(json_object_get(reply.json, "role"));
        const char *until = json_string_value(json_object_get(reply.json, "expires_at"));
        if (secret == NULL)
            rc = error_set(err, -EPROTO, ERROR_EXISTS,
                           "this token was made before and its secret is shown only once; remove it and make another");
        else
            puts(secret);
        if (rc == 0 && !call->quiet)
            fprintf(stderr, "Good until %s. On the new machine: drover-%s join --name NAME --address IP --data DIR --token TOKEN\n",
                    until ? until : "?", role && role[0] == 'h' ? "agent" : "controller");
    }
    json_decref(body);
    reply_finish(&reply);
    client_finish(&client);
    return rc;
}
