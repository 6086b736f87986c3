/* vm placement: why a VM goes where it goes. */
#include <stdio.h>

#include "cli/client.h"
#include "cli/verb_functions.h"
#include "cli/output.h"

int vm_placement(const struct invocation *call, struct error *err)
{
    struct client client;
    struct reply reply = {0};
    char clean[800];
    int rc = client_init(&client, call, err);
    if (rc == 0) {
        CLEANUP_FREE char *path = client_path(ROUTE_ID_vm_placement, call->name, "");
        rc = client_request(&client, "GET", path, NULL, &reply, err);
    }
    if (rc == 0 && call->output != OUTPUT_TABLE) {
        output_object(call, reply.json);
    } else if (rc == 0) {
        const char *summary = json_string_value(json_object_get(reply.json, "summary"));
        printf("%s\n\n", output_clean(summary ? summary : "", clean, sizeof clean));
        output_list(call, json_object_get(reply.json, "hosts"), "host,chosen,score,rejected,reason");
    }
    reply_finish(&reply);
    client_finish(&client);
    return rc;
}
