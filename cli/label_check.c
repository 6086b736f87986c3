/* A backup policy that was typed wrong would make no backups, and nobody would hear of it. */
#include "cli/label_check.h"

#include <stdio.h>
#include <string.h>

#include "cli/output.h"

static const struct {
    const char *label;
    enum route_id show;
    const char *noun, *until; /* what does not happen */
} named[] = {
    {"backup-policy", ROUTE_ID_backup_policy_show, "backup-policy", "is not backed up by it"},
    {"ha-after", ROUTE_ID_vm_show, "vm", "waits for none"},
};

/* The value that @call gives the label, or NULL; the last one counts. */
static const char *label_given(const struct invocation *call, const char *label)
{
    size_t length = strlen(label);
    for (size_t i = call->n_options; i-- > 0;) {
        const struct option_given *o = &call->options[i];
        if (strcmp(o->name, "label") == 0 && o->value != NULL && strncmp(o->value, label, length) == 0 && o->value[length] == '=')
            return o->value + length + 1;
    }
    return NULL;
}

void labels_check(const struct invocation *call, struct client *client)
{
    char clean[300];
    if (strcmp(call->verb->noun, "vm") != 0)
        return;
    for (size_t i = 0; i < ARRAY_SIZE(named); i++) {
        const char *name = label_given(call, named[i].label);
        struct reply reply = {0};
        struct error err = {.code = 0};
        if (name == NULL || *name == '\0')
            continue;
        CLEANUP_FREE char *path = client_path(named[i].show, name, "");
        if (client_request(client, "GET", path, NULL, &reply, &err) < 0 && err.kind == ERROR_NOT_FOUND)
            fprintf(stderr, "drover: there is no %s '%s': as long as there is none, VM %s %s\n", named[i].noun,
                    output_clean(name, clean, sizeof clean), call->new_name ? call->new_name : call->name, named[i].until);
        reply_finish(&reply);
    }
}
