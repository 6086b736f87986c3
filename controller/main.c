/* drover-controller: makes or joins a cluster, and runs a controller of it. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "controller/cluster_init.h"
#include "controller/cluster_join.h"
#include "controller/cluster_recover.h"
#include "controller/drill_restart.h"
#include "controller/service.h"

#define VERSION "0.1.0"

static const char help[] =
    "drover-controller: a controller of a Drover cluster (Raft member, REST API, scheduler)\n"
    "\n"
    "  drover-controller init --data DIR --address IP[:PORT] --name NAME [--raft-address IP[:PORT]] [--cluster-name "
    "NAME]\n"
    "      Make a new cluster with this machine as its first controller.\n"
    "      drover-controller init --data /var/lib/drover/controller --address 192.0.2.1 --name c1\n"
    "\n"
    "  drover-controller join --data DIR --address IP[:PORT] --name NAME --token TOKEN [--raft-address IP[:PORT]]\n"
    "      Become a further controller of a cluster; `drover token create --role controller` makes the token.\n"
    "      drover-controller join --data /var/lib/drover/controller --address 192.0.2.2 --name c2 --token "
    "drover2/...\n"
    "\n"
    "  drover-controller recover --data DIR [--dry-run] [--superseded] [--yes]\n"
    "      Quorum lost for good: rebuild the cluster from this controller alone, under a new epoch in which the lost ones\n"
    "      have no part. Says what it will do and asks; run it once, on the survivor with the newest log.\n"
    "      --superseded: also from one that was told of a later epoch of its cluster, where nobody has recovered that (a host\n"
    "      said so that it should not have; its name is in the log of that time: superseded-by-host).\n"
    "      drover-controller recover --data /var/lib/drover/controller --dry-run\n"
    "\n"
    "  drover-controller run --data DIR [--listen IP:PORT]\n"
    "      Run the controller that init or join made.\n"
    "      drover-controller run --data /var/lib/drover/controller\n"
    "\n"
    "Options: --log-level error|warning|info|debug, --help, --version\n"
    "Ports: 7443 (API, HTTPS), 7444 (Raft) unless given otherwise.\n"
    "Exit status: 0 done; 1 failure; 2 wrong usage or value; 3 refused by the cluster; 5 the directory belongs to a "
    "cluster\n"
    "already or is in use; 8, 9 the cluster cannot be reached or has no leader; 70 Raft gave up (start it again).\n";

struct options {
    const char *data, *address, *raft_address, *name, *cluster_name, *token, *listen;
    bool yes, dry_run, superseded;
};

static int fail(const struct error *err)
{
    char words[sizeof err->field + sizeof err->text + 4];
    fprintf(stderr, "drover-controller: %s\n", error_words(err, words, sizeof words));
    return error_kind_info(err->kind)->exit_status;
}

static int usage(const char *what)
{
    fprintf(stderr, "drover-controller: %s; see drover-controller --help\n", what);
    return 2;
}

/* init and join again with the same words: nothing to do, and that is fine. */
static bool is_repeat(struct data_dir *dir, const struct options *options)
{
    char address[CLUSTER_ADDRESS_SIZE];
    struct error err;
    return data_dir_has_identity(dir) && data_dir_load(dir, &err) == 0 &&
           strcmp(dir->identity.name, options->name) == 0 &&
           cluster_address(options->address, CLUSTER_API_PORT, address, &err) == 0 &&
           strcmp(dir->identity.address, address) == 0;
}

static int run_init(struct data_dir *dir, const struct options *options)
{
    struct error err = {.text = ""};
    struct cluster_init_options init = {.name = options->name,
                                        .address = options->address,
                                        .raft_address = options->raft_address,
                                        .cluster_name = options->cluster_name};
    if (is_repeat(dir, options)) {
        printf("%s is already controller %s of cluster %s; nothing was changed.\n", options->data, dir->identity.name,
               dir->identity.cluster_id);
        return 0;
    }
    if (cluster_init(dir, &init, &err) < 0)
        return fail(&err);
    printf("Made cluster %s with controller %s at %s.\n"
           "Start it:       drover-controller run --data %s\n"
           "Use it:         the certificate of its first user is in %s/admin (ca.pem, cert.pem, key.pem)\n",
           dir->identity.cluster_id, dir->identity.name, dir->identity.address, options->data, options->data);
    return 0;
}

static int run_join(struct data_dir *dir, const struct options *options)
{
    struct error err = {.text = ""};
    struct cluster_join_options join = {.name = options->name,
                                        .address = options->address,
                                        .raft_address = options->raft_address,
                                        .token = options->token};
    if (options->token == NULL)
        return usage("join needs --token");
    if (is_repeat(dir, options)) {
        printf("%s is already controller %s of cluster %s; nothing was changed.\n", options->data, dir->identity.name,
               dir->identity.cluster_id);
        return 0;
    }
    if (cluster_join(dir, &join, &err) < 0)
        return fail(&err);
    printf("Joined cluster %s as controller %s at %s.\n"
           "Start it:       drover-controller run --data %s\n",
           dir->identity.cluster_id, dir->identity.name, dir->identity.address, options->data);
    return 0;
}

static void print_plan(const struct data_dir *dir, const struct cluster_recover_plan *plan)
{
    printf("Cluster %s (%s), epoch %llu, as controller %s holds it in %s:\n"
           "  log up to term %llu, entry %llu; %zu hosts, %zu VMs\n",
           plan->cluster, dir->identity.cluster_id, (unsigned long long)plan->epoch, plan->survivor, dir->path,
           (unsigned long long)plan->term, (unsigned long long)plan->last_index, plan->hosts, plan->vms);
    if (dir->identity.superseded_by > data_dir_epoch(dir))
        printf("  It was told that the cluster is at epoch %llu. If there is such a cluster, stop here: wipe this controller and join it.\n",
               (unsigned long long)dir->identity.superseded_by);
    if (plan->unfinished)
        printf("  A recovery was begun here and not finished; this goes on with it.\n");
    printf("Recovery will:\n"
           "  - make %s the only controller, and raise the epoch of the cluster to %llu\n",
           plan->survivor, (unsigned long long)plan->new_epoch);
    for (unsigned i = 0; i < plan->lost_count; i++)
        printf("  - drop controller %s for good: it is refused from then on, and must be wiped before it joins again\n",
               plan->lost[i]);
    printf("What the lost controllers acknowledged and %s had not received is lost. Of several survivors use the one with "
           "the\nhighest term, then entry (--dry-run on each tells); wipe the others and join them again.\n",
           plan->survivor);
}

/* "yes" on a terminal, or --yes. */
static int confirm(const struct options *options, struct error *err)
{
    char answer[16] = "";
    if (options->yes)
        return 0;
    if (!isatty(STDIN_FILENO))
        return error_set(err, -EPERM, ERROR_INVALID,
                         "this asks before it acts, and there is no terminal to ask on: add --yes (or --dry-run)");
    printf("Are the other controllers lost for good? Go on? [yes/no] ");
    fflush(stdout);
    if (fgets(answer, sizeof answer, stdin) == NULL || strcmp(answer, "yes\n") != 0)
        return error_set(err, -ECANCELED, ERROR_CANCELLED, "nothing was changed");
    return 0;
}

static int run_recover(struct data_dir *dir, const struct options *options)
{
    struct cluster_recover_plan plan;
    struct error err = {.text = ""};
    if (data_dir_load_superseded(dir, &err) < 0)
        return fail(&err);
    if (!options->superseded && data_dir_check_superseded(dir, &err) < 0)
        return fail(&err);
    if (cluster_recover_look(dir, &plan, &err) < 0)
        return fail(&err);
    print_plan(dir, &plan);
    if (options->dry_run) {
        printf("Nothing was changed (--dry-run).\n");
        return 0;
    }
    if (confirm(options, &err) < 0 || cluster_recover(dir, &plan, &err) < 0)
        return fail(&err);
    printf("Recovered. Start it:  drover-controller run --data %s\n"
           "Then add controllers: drover token create --role controller, and drover-controller join on each\n",
           options->data);
    return 0;
}

static int run_run(struct data_dir *dir, const struct options *options)
{
    struct error err = {.text = ""};
    struct service_options run = {.listen = options->listen};
    uv_loop_t loop;
    if (data_dir_load(dir, &err) < 0)
        return fail(&err);
    struct service *service = NEW(struct service);
    signal(SIGPIPE, SIG_IGN);
    ASSERT(uv_loop_init(&loop) == 0);
    if (service_start(service, &loop, dir, &run, &err) < 0)
        return fail(&err);
    uv_run(&loop, UV_RUN_DEFAULT);
    int r = uv_loop_close(&loop);
    bool restart = service->restart;
    service_finish(service);
    free(service);
    if (r < 0)
        log_warning("loop-not-empty", "%s", uv_strerror(r));
    log_info("stopped", "%s", "clean");
    if (restart)
        drill_restart_now(0);
    return 0;
}

static int parse(int argc, char **argv, struct options *options)
{
    static const struct option longs[] = {{"data", required_argument, NULL, 'd'},
                                          {"address", required_argument, NULL, 'a'},
                                          {"raft-address", required_argument, NULL, 'r'},
                                          {"name", required_argument, NULL, 'n'},
                                          {"cluster-name", required_argument, NULL, 'c'},
                                          {"token", required_argument, NULL, 't'},
                                          {"listen", required_argument, NULL, 'l'},
                                          {"yes", no_argument, NULL, 'y'},
                                          {"dry-run", no_argument, NULL, 'u'},
                                          {"superseded", no_argument, NULL, 's'},
                                          {"log-level", required_argument, NULL, 'g'},
                                          {NULL, 0, NULL, 0}};
    enum log_level level;
    int c;
    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        switch (c) {
        case 'd':
            options->data = optarg;
            break;
        case 'a':
            options->address = optarg;
            break;
        case 'r':
            options->raft_address = optarg;
            break;
        case 'n':
            options->name = optarg;
            break;
        case 'c':
            options->cluster_name = optarg;
            break;
        case 't':
            options->token = optarg;
            break;
        case 'l':
            options->listen = optarg;
            break;
        case 'y':
            options->yes = true;
            break;
        case 'u':
            options->dry_run = true;
            break;
        case 's':
            options->superseded = true;
            break;
        case 'g':
            if (log_parse_level(optarg, &level) < 0)
                return -EINVAL;
            log_set_level(level);
            break;
        default:
            return -EINVAL;
        }
    }
    return optind == argc ? 0 : -EINVAL;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *verb;
        int (*run)(struct data_dir *dir, const struct options *options);
        bool needs_name;
        bool makes; /* the directory, where there is none */
    } verbs[] = {{"init", run_init, true, true},
                 {"join", run_join, true, true},
                 {"recover", run_recover, false, false},
                 {"run", run_run, false, true}};
    struct options options = {.data = NULL};
    struct data_dir dir = {.lock_fd = -1};
    struct error err = {.text = ""};
    drill_restart_pause();
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(help, stdout);
            return 0;
        }
        if (strcmp(argv[i], "--version") == 0) {
            puts("drover-controller " VERSION);
            return 0;
        }
    }
    for (size_t i = 0; argc > 1 && i < ARRAY_SIZE(verbs); i++) {
        if (strcmp(argv[1], verbs[i].verb) != 0)
            continue;
        if (parse(argc - 1, argv + 1, &options) < 0)
            return usage("an option is not known or its value is missing");
        if (options.data == NULL)
            return usage("--data is missing");
        if (verbs[i].needs_name && (options.name == NULL || options.address == NULL))
            return usage("--name and --address are needed");
        if (!verbs[i].makes && access(options.data, F_OK) < 0)
            return fail((error_errno(&err, -errno, "there is nothing to recover in %s", options.data), &err));
        if (data_dir_open(options.data, &dir, &err) < 0)
            return fail(&err);
        int status = verbs[i].run(&dir, &options);
        data_dir_close(&dir);
        return status;
    }
    return usage(argc > 1 ? "there is no such command" : "a command is missing");
}
