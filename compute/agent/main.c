/* drover-agent: keeps the VMs of a host as the cluster wants them. This file: options, signals, and the loop. */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/file.h"
#include "common/log.h"
#include "compute/agent/agent.h"
#include "compute/agent/agent_join.h"
#include "compute/agent/task_child.h"
#include "compute/agent/tunnel_program.h"
#include "compute/agent/web_get.h"
#include "compute/agent/vmm_user.h"

#define USER_BASE_MIN 1000u

static const char help[] =
    "drover-agent - keep the virtual machines of this host as its cluster wants them\n"
    "\n"
    "  drover-agent join --data DIR --address HOST[:7445] --name NAME --token TOKEN\n"
    "  drover-agent run --data DIR [--vmm PATH] [--vmm-uid-base N] [--listen ADDRESS] [--bridge-create]\n"
    "                   [--shared-memory MODE] [--log-level LEVEL]\n"
    "\n"
    "  --data DIR         everything of this host: identity, images, virtual machines\n"
    "  --address ADDRESS  where the controllers reach this host\n"
    "  --name NAME        name of this host in the cluster\n"
    "  --token TOKEN      from: drover token create NAME --role host\n"
    "  --vmm PATH         drover-vmm; where not given the one beside this program\n"
    "  --vmm-uid-base N   each virtual machine runs as a user of its own, of the 4096 from number N on, or of the 134217728\n"
    "                     from N + 8192 on where others reach its disks; nobody else on this host may have them, and all hosts\n"
    "                     have the same N (default 1900000000); 0: as the user of the agent\n"
    "  --listen ADDRESS   where to answer, if not at the address given to join\n"
    "  --bridge-create    make a bridge that a virtual machine names and this host has not\n"
    "  --shared-memory MODE  whether guests started from now on have memory that a new VMM process can be handed (drover vm\n"
    "                     upgrade): auto (default): where the kernel gives huge pages to such memory, for which\n"
    "                     /sys/kernel/mm/transparent_hugepage/shmem_enabled is to be \"advise\"; always; never\n"
    "  --log-level LEVEL  error, warning, info (default) or debug; the log goes to standard error\n"
    "\n"
    "Examples:\n"
    "  drover-agent join --data /var/lib/drover/agent --address 192.0.2.11 --name n1 --token \"$TOKEN\"\n"
    "  drover-agent run --data /var/lib/drover/agent\n"
    "\n"
    "Ending or restarting it touches no virtual machine: each has a process of its own, drover-vmm.\n"
    "SIGPWR says that the host goes down: all guests are shut down, and no virtual machine is started any more.\n"
    "Exit status: 0 ended by a signal, or joined; 1 it did not work; 2 wrong use.\n";

struct options {
    const char *data, *address, *name, *token, *vmm, *listen, *peer, *connect;
    bool make_bridges, is_source;
    enum agent_shared_memory shared_memory;
    uint32_t source_user;
    uint32_t vmm_user_base;
};

static int usage(const char *text)
{
    fprintf(stderr, "drover-agent: %s; see drover-agent --help\n", text);
    return 2;
}

/* ---- options ---- */

/* Each takes @value, NULL where the option has none. -EINVAL: it cannot be that; 1: all is said, and the program ends. */

/* Not below the numbers of people and services, not beyond what file systems and tools take. */
static int take_user_base(struct options *o, const char *value)
{
    char *end;
    unsigned long base = strtoul(value, &end, 10);
    if (value[0] < '0' || value[0] > '9' || *end != '\0' ||
        (base != 0 && (base < USER_BASE_MIN || base > INT32_MAX - VMM_USERS)))
        return -EINVAL;
    o->vmm_user_base = (uint32_t)base;
    return 0;
}

static int take_shared_memory(struct options *o, const char *value)
{
    static const char *const names[] = {"auto", "always", "never"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (strcmp(value, names[i]) == 0) {
            o->shared_memory = (enum agent_shared_memory)i;
            return 0;
        }
    return -EINVAL;
}

static int take_log_level(struct options *o UNUSED, const char *value)
{
    enum log_level level;
    int code = log_parse_level(value, &level);
    if (code == 0)
        log_set_level(level);
    return code;
}

static int take_bridges(struct options *o, const char *value UNUSED)
{
    o->make_bridges = true;
    return 0;
}

static int take_source_user(struct options *o, const char *value)
{
    o->is_source = true;
    o->source_user = (uint32_t)strtoul(value, NULL, 10);
    return 0;
}

static int take_help(struct options *o UNUSED, const char *value UNUSED)
{
    fputs(help, stdout);
    return 1;
}

static int take_version(struct options *o UNUSED, const char *value UNUSED)
{
    puts("drover-agent " AGENT_VERSION);
    return 1;
}

static const struct agent_option {
    const char *name;
    int has_value;
    size_t text;                                        /* where in struct options the value goes as it is; or */
    int (*take)(struct options *o, const char *value); /* NULL: `text` */
    const char *rule;                                   /* what the value can be; NULL: anything */
} agent_options[] = {
    {"data", required_argument, offsetof(struct options, data), NULL, NULL},
    {"address", required_argument, offsetof(struct options, address), NULL, NULL},
    {"name", required_argument, offsetof(struct options, name), NULL, NULL},
    {"token", required_argument, offsetof(struct options, token), NULL, NULL},
    {"vmm", required_argument, offsetof(struct options, vmm), NULL, NULL},
    {"listen", required_argument, offsetof(struct options, listen), NULL, NULL},
    {"bridge-create", no_argument, 0, take_bridges, NULL},
    {"vmm-uid-base", required_argument, 0, take_user_base, "--vmm-uid-base is 0, or a number from 1000 to 2147479551"},
    {"shared-memory", required_argument, 0, take_shared_memory, "--shared-memory is auto, always or never"},
    {"log-level", required_argument, 0, take_log_level, "--log-level is error, warning, info or debug"},
    {"peer", required_argument, offsetof(struct options, peer), NULL, NULL}, /* these three: of tunnel, which the agent starts by itself */
    {"connect", required_argument, offsetof(struct options, connect), NULL, NULL},
    {"source-user", required_argument, 0, take_source_user, NULL},
    {"help", no_argument, 0, take_help, NULL},
    {"version", no_argument, 0, take_version, NULL},
};

/* 0; 1: all is said, end with *ret_status. */
static int parse_options(int argc, char **argv, struct options *o, int *ret_status)
{
    enum { OPTION_FIRST = 256 }; /* above '?' */
    struct option names[ARRAY_SIZE(agent_options) + 1] = {{0}};
    int option, code = 0;
    for (size_t i = 0; i < ARRAY_SIZE(agent_options); i++)
        names[i] = (struct option){agent_options[i].name, agent_options[i].has_value, NULL, OPTION_FIRST + (int)i};
    while (code == 0 && (option = getopt_long(argc, argv, "", names, NULL)) >= 0) {
        if (option < OPTION_FIRST) {
            *ret_status = usage("that option is not known, or lacks its value");
            return 1;
        }
        const struct agent_option *row = &agent_options[option - OPTION_FIRST];
        if (row->take != NULL)
            code = row->take(o, optarg);
        else
            *(const char **)((char *)o + row->text) = optarg;
        if (code != 0)
            *ret_status = code < 0 ? usage(row->rule) : 0;
    }
    return code == 0 ? 0 : 1;
}

/* Absolute path of @path; the caller frees. */
static char *absolute(const char *path)
{
    char cwd[PATH_MAX];
    if (path[0] == '/' || getcwd(cwd, sizeof(cwd)) == NULL)
        return xstrdup(path);
    return xasprintf("%s/%s", cwd, path);
}

static char *default_vmm(void)
{
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    char *slash;
    self[MAX(n, (ssize_t)0)] = '\0';
    slash = strrchr(self, '/');
    if (slash == NULL)
        return xstrdup("/usr/local/bin/drover-vmm");
    return xasprintf("%.*s/drover-vmm", (int)(slash - self), self);
}

static void print_error(const struct error *err)
{
    char words[sizeof(err->field) + sizeof(err->text) + 4];
    fprintf(stderr, "drover-agent: %s\n", error_words(err, words, sizeof(words)));
}

static int command_join(const struct options *o)
{
    struct error err = {.code = 0};
    if (o->data == NULL || o->address == NULL || o->name == NULL || o->token == NULL)
        return usage("join needs --data, --address, --name and --token");
    CLEANUP_FREE char *data = absolute(o->data);
    const struct agent_join_options options = {data, o->address, o->name, o->token};
    bool repeated;
    if (agent_join(&options, &repeated, &err) < 0) {
        print_error(&err);
        return 1;
    }
    if (repeated)
        printf("%s is host %s of that cluster already; nothing was changed (if it was removed there, give another --data)\n", o->data,
               o->name);
    else
        printf("%s is a host of the cluster now; start it with: drover-agent run --data %s\n", o->name, o->data);
    return 0;
}

/* ---- run ---- */

#define END_MS 10000 /* from being asked to end to ending whatever hangs */

struct program {
    struct agent *agent;
    uv_signal_t signals[3];
    uv_timer_t end_timer;
    bool leaving; /* the host goes down */
};

static void on_stopped(void *arg)
{
    struct program *p = arg;
    p->agent = NULL;
    uv_close((uv_handle_t *)&p->end_timer, NULL);
}

/* A call into a pool whose server is gone does not come back, and nothing of the host is looked after while it is waited for. It is as if the
 * agent had been killed, which it may be at any moment: whatever was under way is begun again by the next one. */
static void on_end_overdue(uv_timer_t *timer UNUSED)
{
    log_warning("agent-ended", "why=\"work of it hangs, most likely in a pool that is away, and is left behind\" after_ms=%d", END_MS);
    _exit(0);
}

static void end(struct program *p)
{
    for (size_t i = 0; i < ARRAY_SIZE(p->signals); i++)
        uv_close((uv_handle_t *)&p->signals[i], NULL);
    uv_timer_start(&p->end_timer, on_end_overdue, END_MS, 0);
    agent_stop(p->agent, on_stopped, p);
}

static void on_left(void *arg)
{
    struct program *p = arg;
    log_info("agent-ending", "why=\"the host goes down\"");
    end(p);
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct program *p = handle->data;
    if (number == SIGPWR) {
        if (!p->leaving)
            agent_leave(p->agent, on_left, p);
        p->leaving = true;
        return;
    }
    log_info("agent-ending", "signal=%d", number);
    end(p);
}

static int command_run(const struct options *o)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGPWR};
    struct program p = {.agent = NULL};
    struct error err = {.code = 0};
    uv_loop_t loop;
    if (o->data == NULL || o->address != NULL || o->name != NULL || o->token != NULL)
        return usage("run needs --data, and takes no options of join");
    CLEANUP_FREE char *data = absolute(o->data);
    CLEANUP_FREE char *vmm = o->vmm != NULL ? absolute(o->vmm) : default_vmm();
    const struct agent_options options = {data, vmm, o->listen, o->make_bridges, o->vmm_user_base, o->shared_memory};
    int r = uv_loop_init(&loop);
    if (r < 0 || (r = agent_start(&loop, &options, &p.agent, &err)) < 0) {
        if (err.text[0] == '\0')
            error_errno(&err, r, "cannot start");
        print_error(&err);
        return 1;
    }
    uv_timer_init(&loop, &p.end_timer);
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
        uv_signal_init(&loop, &p.signals[i]);
        p.signals[i].data = &p;
        uv_signal_start(&p.signals[i], on_signal, numbers[i]);
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    r = uv_loop_close(&loop);
    ASSERT(r == 0 && p.agent == NULL);
    return 0;
}

/* An end of a migration's way; see tunnel_program.h. */
static int command_tunnel(const struct options *o)
{
    if (o->data == NULL || o->peer == NULL || o->listen == NULL || o->connect == NULL)
        return usage("tunnel is started by the agent itself: it needs --data, --peer, --listen and --connect");
    CLEANUP_FREE char *data = absolute(o->data);
    const struct tunnel_program_options options = {.data_dir = data,
                                                   .peer = o->peer,
                                                   .listen = o->listen,
                                                   .connect = o->connect,
                                                   .is_source = o->is_source,
                                                   .owner = o->source_user};
    return tunnel_program_run(&options);
}

int main(int argc, char **argv)
{
    struct options options = {.vmm_user_base = VMM_USER_BASE_DEFAULT};
    int status;
    signal(SIGPIPE, SIG_IGN);
    /* fetches and copies of disks wait on disks and networks, and each holds a thread; set before the first is used
     */
    setenv("UV_THREADPOOL_SIZE", "8", 0);
    if (parse_options(argc, argv, &options, &status) != 0)
        return status;
    if (argc - optind == 3 && strcmp(argv[optind], "task") == 0) /* of an agent that runs; not for people */
        return task_child_main(argv[optind + 1], (pid_t)strtol(argv[optind + 2], NULL, 10));
    if (argc - optind == 2 && strcmp(argv[optind], "web-get") == 0) /* the same */
        return web_get_main((pid_t)strtol(argv[optind + 1], NULL, 10));
    if (argc - optind != 1)
        return usage("give one command, join or run");
    if (strcmp(argv[optind], "join") == 0)
        return command_join(&options);
    if (strcmp(argv[optind], "run") == 0)
        return command_run(&options);
    if (strcmp(argv[optind], "tunnel") == 0)
        return command_tunnel(&options);
    return usage("give one command, join or run");
}
