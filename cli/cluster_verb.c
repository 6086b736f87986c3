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

static int section(struct client *client, const struct invocation *call, const char *title, const char *path, const char *columns,
                   struct error *err)
{
    struct reply reply;
    int rc = client_request(client, "GET", path, NULL, &reply, err);
    if (rc == 0) {
        printf("%s (%zu)\n", title, json_array_size(reply.json));
        if (json_array_size(reply.json) > 0)
            output_list(call, reply.json, columns);
        putchar('\n');
    }
    reply_finish(&reply);
    return rc;
}

int cluster_status(const struct invocation *call, struct error *err)
{
    struct client client;
    struct invocation as_table = *call;
    as_table.output = OUTPUT_TABLE;
    int rc = client_init(&client, call, err);
    if (rc == 0)
        rc = section(&client, &as_table, "Controllers", "/v1/controllers", "name,role,leader,address", err);
    if (rc == 0)
        rc = section(&client, &as_table, "Hosts", "/v1/hosts",
                     "name,state,schedulable,vms,committed_vcpus,committed_memory_bytes,memory_bytes,kvm", err);
    if (rc == 0)
        rc = section(&client, &as_table, "VMs not as wanted", "/v1/vms?filter=state%21%3Drunning&limit=50",
                     "name,state,wanted,host_name,state_reason,placement", err);
    client_finish(&client);
    return rc;
}
