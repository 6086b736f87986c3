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
    int rc = spawn_and_wait((char *const *)(uintptr_t)argv, err);
    if (rc < 0)
        return rc;
    if (realpath(data, resolved) == NULL)
        return error_errno(err, -errno, "cannot find %s", data);
    OBJECT_TEXT(cli_context, &context, name, cluster ? cluster : "drover");
    context.endpoints.items = xcalloc(1, sizeof(char *));
    context.endpoints.items[context.endpoints.count++] = strchr(address, ':') ? xstrdup(address) : xasprintf("%s:7443", address);
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

/* One part of the status: the list at @path, added to @list. */
static int add_list(struct client *client, const char *path, json_t *list, struct error *err)
{
    struct reply reply;
    int rc = client_request(client, "GET", path, NULL, &reply, err);
    if (rc == 0 && json_array_extend(list, reply.json) < 0)
        rc = error_set(err, -EPROTO, ERROR_INTERNAL, "the controller's list is not a list");
    reply_finish(&reply);
    return rc;
}

static void put_section(const struct invocation *call, const char *title, const json_t *list, const char *columns)
{
    printf("%s (%zu)\n", title, json_array_size(list));
    if (json_array_size(list) > 0)
        output_list(call, list, columns);
    putchar('\n');
}

int cluster_status(const struct invocation *call, struct error *err)
{
    /* A filter compares a field with a word, not with another field: one question for each thing that can be wanted. */
    static const char *const lists[][2] = {
        {"controllers", "/v1/controllers"},
        {"hosts", "/v1/hosts"},
        {"vms_not_as_wanted", "/v1/vms?limit=50&filter=wanted%3Drunning%20and%20state%21%3Drunning"},
        {"vms_not_as_wanted", "/v1/vms?limit=50&filter=wanted%3Dstopped%20and%20state%21%3Dstopped"},
        {"vms_not_as_wanted", "/v1/vms?limit=50&filter=wanted%3Dpaused%20and%20state%21%3Dpaused"},
        {"vms_not_as_wanted", "/v1/vms?limit=50&filter=wanted%3Ddeleted"},
    };
    struct client client;
    json_t *status = json_pack("{s:[], s:[], s:[]}", "controllers", "hosts", "vms_not_as_wanted");
    int rc = client_init(&client, call, err);
    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(lists); i++)
        rc = add_list(&client, lists[i][1], json_object_get(status, lists[i][0]), err);
    client_finish(&client);
    if (rc == 0 && call->output == OUTPUT_TABLE) {
        put_section(call, "Controllers", json_object_get(status, "controllers"), "name,role,leader,address");
        put_section(call, "Hosts", json_object_get(status, "hosts"),
                    "name,state,schedulable,vms,committed_vcpus,committed_memory_bytes,memory_bytes,kvm");
        put_section(call, "VMs not as wanted", json_object_get(status, "vms_not_as_wanted"),
                    "name,state,wanted,host_name,state_reason,placement");
    } else if (rc == 0) {
        output_object(call, status);
    }
    json_decref(status);
    return rc;
}
