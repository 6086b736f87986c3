/* cluster init and status. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "cli/client.h"
#include "cli/verb_functions.h"
#include "cli/context.h"
#include "cli/output.h"

#define AMISS_SHOWN_MAX 50 /* of the VMs that are not as wanted, in the table: the rest is the same trouble */

/* drover-controller beside this program, or found by PATH. */
static void run_controller_init(char *const argv[])
{
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 32);
    if (n > 0) {
        self[n] = '\0';
        char *slash = strrchr(self, '/');
        snprintf(slash + 1, 32, "drover-controller");
        execv(self, argv);
    }
    execvp("drover-controller", argv);
    fprintf(stderr, "drover: cannot run drover-controller: %s; is it installed?\n", strerror(errno));
    _exit(127);
}

static int spawn_and_wait(char *const argv[], struct error *err)
{
    int status = 0;
    pid_t pid = fork();
    if (pid < 0)
        return error_errno(err, -errno, "cannot start drover-controller");
    if (pid == 0)
        run_controller_init(argv);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return error_set(err, -EPROTO, ERROR_INTERNAL, "drover-controller init did not succeed; its message is above");
    return 0;
}

int cluster_init(const struct invocation *call, struct error *err)
{
    const char *name = invocation_option(call, "name"), *address = invocation_option(call, "address");
    const char *data = invocation_option(call, "data"), *cluster = invocation_option(call, "cluster-name");
    struct cli_context context = {0};
    char resolved[PATH_MAX], path[PATH_MAX + 32];
    static const char *const files[] = {"ca", "cert", "key"};
    if (name == NULL || address == NULL || data == NULL)
        return error_set(err, -EINVAL, ERROR_INVALID, "--name, --address and --data are needed; an example: %s", call->verb->example);
    const char *argv[] = {"drover-controller", "init", "--name", name, "--address", address, "--data", data,
                          cluster ? "--cluster-name" : NULL, cluster, NULL};
    CLEANUP_FREE char *endpoint = client_endpoint_parse(address, err);
    if (endpoint == NULL)
        return -EINVAL;
    int rc = spawn_and_wait((char *const *)(uintptr_t)argv, err);
    if (rc < 0)
        return rc;
    if (realpath(data, resolved) == NULL)
        return error_errno(err, -errno, "cannot find %s", data);
    OBJECT_TEXT(cli_context, &context, name, cluster ? cluster : "drover");
    context.endpoints.items = xcalloc(1, sizeof(char *));
    context.endpoints.items[context.endpoints.count++] = TAKE_PTR(endpoint);
    object_mark(&cli_context_desc, &context, "endpoints");
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        snprintf(path, sizeof path, "%s/admin/%s.pem", resolved, files[i]);
        object_set_text(&cli_context_desc, &context, files[i], path);
    }
    rc = context_store(&context, err);
    if (rc == 0 && !call->quiet)
        printf("Context %s is known and current. Next: drover-controller run --data %s\n", context.name, resolved);
    OBJECT_CLEAR(cli_context, &context);
    return rc;
}

static void put_section(const struct invocation *call, const char *title, const json_t *list, const char *columns, size_t most)
{
    size_t count = json_array_size(list), shown = MIN(count, most);
    json_t *rows = json_array();
    for (size_t i = 0; i < shown; i++)
        json_array_append(rows, json_array_get(list, i));
    printf("%s (%zu%s)\n", title, count, shown < count ? "; the first of them" : "");
    if (shown > 0)
        output_list(call, rows, columns);
    putchar('\n');
    json_decref(rows);
}

int cluster_status(const struct invocation *call, struct error *err)
{
    /* A filter compares a field with a word, not with another field: one question for each thing that can be wanted. */
    static const struct {
        const char *part;
        enum route_id route;
        const char *filter;
    } lists[] = {
        {"controllers", ROUTE_ID_controller_list, NULL},
        {"hosts", ROUTE_ID_host_list, NULL},
        {"vms_not_as_wanted", ROUTE_ID_vm_list, "wanted=running and state!=running"},
        {"vms_not_as_wanted", ROUTE_ID_vm_list, "wanted=stopped and state!=stopped"},
        {"vms_not_as_wanted", ROUTE_ID_vm_list, "wanted=paused and state!=paused"},
        {"vms_not_as_wanted", ROUTE_ID_vm_list, "wanted=deleted"},
    };
    struct client client;
    json_t *status = json_pack("{s:[], s:[], s:[]}", "controllers", "hosts", "vms_not_as_wanted");
    int rc = client_init(&client, call, err);
    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(lists); i++) {
        json_t *rows = NULL;
        rc = client_list(&client, lists[i].route, lists[i].filter, &rows, err);
        if (rc == 0)
            json_array_extend(json_object_get(status, lists[i].part), rows);
        json_decref(rows);
    }
    client_finish(&client);
    if (rc == 0 && call->output == OUTPUT_TABLE) {
        put_section(call, "Controllers", json_object_get(status, "controllers"), "name,role,leader,address", SIZE_MAX);
        put_section(call, "Hosts", json_object_get(status, "hosts"),
                    "name,state,schedulable,vms,committed_vcpus,committed_memory_bytes,memory_bytes,kvm", SIZE_MAX);
        put_section(call, "VMs not as wanted", json_object_get(status, "vms_not_as_wanted"),
                    "name,state,wanted,host_name,state_reason,placement", AMISS_SHOWN_MAX);
    } else if (rc == 0) {
        output_object(call, status);
    }
    json_decref(status);
    return rc;
}
