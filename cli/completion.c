/* Shell completion: each shell's script asks `drover __complete WORDS...`, which answers from the verb table and,
 * for names, from the cluster within a moment. */
#include <stdio.h>
#include <string.h>

#include "cli/body.h"
#include "cli/client.h"
#include "cli/drill.h"
#include "cli/verb_functions.h"

int completion_bash(const struct invocation *call, struct error *err)
{
    (void)call;
    (void)err;
    puts("_drover() {\n"
         "    local IFS=$'\\n'\n"
         "    COMPREPLY=($(compgen -W \"$(drover __complete \"${COMP_WORDS[@]:1:COMP_CWORD}\" 2>/dev/null)\" -- \"${COMP_WORDS[COMP_CWORD]}\"))\n"
         "}\n"
         "complete -o default -F _drover drover");
    return 0;
}

int completion_zsh(const struct invocation *call, struct error *err)
{
    (void)call;
    (void)err;
    puts("#compdef drover\n"
         "_drover() {\n"
         "    local -a found\n"
         "    found=(${(f)\"$(drover __complete ${words[2,CURRENT]} 2>/dev/null)\"})\n"
         "    compadd -a found\n"
         "}\n"
         "compdef _drover drover");
    return 0;
}

int completion_fish(const struct invocation *call, struct error *err)
{
    (void)call;
    (void)err;
    puts("complete -c drover -f -a '(drover __complete (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'");
    return 0;
}

static void complete_options(const struct verb *v)
{
    static const char *const always[] = {"--output", "--yes", "--quiet", "--timeout", "--context", "--help"};
    char name[64];
    for (size_t i = 0; i < ARRAY_SIZE(always); i++)
        puts(always[i]);
    if (v->route == ROUTE_COUNT)
        return;
    const struct route_desc *r = &schema_routes[v->route];
    for (unsigned i = 0; r->body->name != NULL && i < r->body->n_fields; i++)
        if (!(r->body->fields[i].flags & READ_ONLY))
            printf("--%s\n", body_option_name(&r->body->fields[i], name, sizeof name));
    if (r->flags & ROUTE_LIST)
        puts("--filter\n--fields");
    if (r->flags & ROUTE_WAIT)
        puts("--wait");
    if (r->flags & ROUTE_DRY)
        puts("--dry-run");
    if (r->flags & ROUTE_FORCE)
        puts("--force");
}

static void complete_drills(void)
{
    const struct drill_kind *kind;
    for (size_t i = 0; (kind = drill_kind_at(i)) != NULL; i++)
        puts(kind->name);
}

static void complete_names(const struct verb *v, const char *noun)
{
    struct invocation call = {.verb = v, .timeout_s = 1};
    struct client client;
    struct reply reply = {0};
    const json_t *row;
    size_t i;
    CLEANUP_FREE char *path = xasprintf("/v1/%ss?limit=200&consistency=stale", noun);
    if (client_init(&client, &call, NULL) == 0 && client_request(&client, "GET", path, NULL, &reply, NULL) == 0) {
        json_array_foreach(reply.json, i, row)
        {
            const char *name = json_string_value(json_object_get(row, strcmp(noun, "operation") == 0 ? "id" : "name"));
            if (name != NULL)
                puts(name);
        }
    }
    reply_finish(&reply);
    client_finish(&client);
}

void complete_words(int argc, char **argv)
{
    const char *current = argc > 0 ? argv[argc - 1] : "";
    if (argc <= 1) {
        for (size_t i = 0; i < verbs_count; i++)
            if (i == 0 || strcmp(verbs[i].noun, verbs[i - 1].noun) != 0)
                puts(verbs[i].noun);
        return;
    }
    if (argc == 2) {
        for (size_t i = 0; i < verbs_count; i++)
            if (strcmp(verbs[i].noun, argv[0]) == 0)
                puts(verbs[i].verb);
        return;
    }
    const struct verb *v = verb_find(argv[0], argv[1]);
    if (v == NULL)
        return;
    if (current[0] == '-')
        complete_options(v);
    else if (argc == 3 && v->argument == ARGUMENT_NAME && strcmp(v->noun, "drill") == 0)
        complete_drills();
    else if (argc == 3 && v->argument == ARGUMENT_NAME && strcmp(v->noun, "context") != 0)
        complete_names(v, v->noun);
    else if (argc == 3 && v->argument == ARGUMENT_VM_AND_NEW_NAME)
        complete_names(v, strcmp(v->noun, "volume") == 0 || strcmp(v->verb, "clone") == 0 ? v->noun : "vm");
}
