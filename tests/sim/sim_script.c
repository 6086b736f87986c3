/* Stories: a folder with README, cmdlist and expect.log. The cmdlist is carried out in virtual time on three controllers
 * without chance faults; what happens is told line by line and must be what expect.log says, to the byte.
 *
 * Lines of a cmdlist (# begins a comment):
 *   set hosts N | memory MIB | doubled PER_THOUSAND | slow TICKS | seconds N | leases 1     before all else
 *   SECONDS client N VERB WHAT [KEY] [FIELD=VALUE ...]
 *        of VMs: create, create-ha, start, stop, reboot, pause, resume, delete, update, migrate [to=HOST], cancel,
 *        snapshot name=NAME; of hosts: drain, undrain, disarm, arm; disarm-all, arm-all;
 *        of the cluster: shutdown-policy restart|stay
 *   SECONDS crash N|leader|all           SECONDS restart
 *   SECONDS agent-crash HOST             SECONDS agent-start HOST      also: of a host that is off, its power switch
 *   SECONDS host-down HOST               SECONDS host-reboot HOST      SECONDS leave HOST (shut down in order)
 *   SECONDS burn HOST                    SECONDS freeze HOST FOR
 *   SECONDS cut|cut-out|cut-in HOST      SECONDS cut-all               SECONDS mend (all of it)
 *   SECONDS controller-cut N|leader|all [out|in]                       SECONDS pause N|leader|all FOR
 *   SECONDS disk-full|disk-slow N|leader|all FOR                       SECONDS clock N|leader|all MINUTES (wall clock)
 *   SECONDS fail-starts HOST COUNT       SECONDS fail-migrations HOST COUNT
 *   SECONDS crash-after COMMAND          the leader dies when it has applied the next such command (vm_create, ...)
 *   SECONDS show                         what the leader holds of every VM */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/sim/sim_faults.h"
#include "tests/sim/sim_world.h"

#define SCRIPT_LINES_MAX 200u
#define SCRIPT_LINE_BYTES 200u
#define SCRIPT_WORDS_MAX 10u
#define SCRIPT_SECONDS 45u
#define SCRIPT_SEED 1u

struct script_line {
    struct sim_cluster *cluster;
    char text[SCRIPT_LINE_BYTES];
    char *words[SCRIPT_WORDS_MAX];
    unsigned count;
};

struct sim_script {
    struct script_line lines[SCRIPT_LINES_MAX];
    unsigned count, seconds;
};

static const struct sim_scenario script_scenario = {.name = "script", .snapshot_threshold = 24, .snapshot_trailing = 8,
                                                    .snapshot_extra_ms = 5, .text = "a story"};

static void split(struct script_line *line)
{
    char *rest = line->text, *word;
    line->text[strcspn(line->text, "#\n")] = '\0';
    while ((word = strsep(&rest, " \t")) != NULL)
        if (*word != '\0' && line->count < SCRIPT_WORDS_MAX)
            line->words[line->count++] = word;
}

/* ---- verbs ---- */

static const char *word(const struct script_line *line, unsigned i)
{
    return i < line->count ? line->words[i] : "";
}

static struct sim_agent *agent_named(struct sim_cluster *cluster, const char *name)
{
    struct sim_world *world = cluster->world;
    for (unsigned i = 0; i < world->agent_count; i++)
        if (strcmp(world->agents[i].name, name) == 0)
            return &world->agents[i];
    return NULL;
}

static const struct {
    const char *verb;
    enum route_id route;
} client_verbs[] = {
    {"create", ROUTE_ID_vm_create},       {"create-ha", ROUTE_ID_vm_create},    {"start", ROUTE_ID_vm_start},
    {"stop", ROUTE_ID_vm_stop},           {"reboot", ROUTE_ID_vm_reboot},       {"pause", ROUTE_ID_vm_pause},
    {"resume", ROUTE_ID_vm_resume},       {"delete", ROUTE_ID_vm_delete},       {"update", ROUTE_ID_vm_update},
    {"migrate", ROUTE_ID_vm_migrate},     {"snapshot", ROUTE_ID_snapshot_create}, {"cancel", ROUTE_ID_operation_cancel},
    {"drain", ROUTE_ID_host_drain},       {"undrain", ROUTE_ID_host_undrain},   {"disarm", ROUTE_ID_host_disarm},
    {"arm", ROUTE_ID_host_arm},           {"disarm-all", ROUTE_ID_ha_disarm},   {"arm-all", ROUTE_ID_ha_arm},
    {"shutdown-policy", ROUTE_ID_cluster_update},
};

/* FIELD=VALUE among the words; NULL: not given. */
static const char *option(const struct script_line *line, const char *field)
{
    size_t length = strlen(field);
    for (unsigned i = 5; i < line->count; i++)
        if (strncmp(line->words[i], field, length) == 0 && line->words[i][length] == '=')
            return line->words[i] + length + 1;
    return NULL;
}


/* Labels and fields that were given; numbers and true or false without quotes. */
static void put_options(const struct script_line *line, struct bytes_writer *body)
{
    static const char *const labels[] = {"anti-affinity", "ha-after", "ha-delay-s"};
    static const char *const fields[] = {"ha", "ha_priority", "ha_restarts_max", "ha_window_s", "relocates_max", "memory_bytes"};
    unsigned given = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(labels); i++)
        if (option(line, labels[i]) != NULL)
            bytes_put_format(body, "%s\"%s\":\"%s\"", given++ == 0 ? ",\"labels\":{" : ",", labels[i], option(line, labels[i]));
    if (given > 0)
        bytes_put_format(body, "}");
    for (unsigned i = 0; i < ARRAY_SIZE(fields); i++)
        if (option(line, fields[i]) != NULL)
            bytes_put_format(body, ",\"%s\":%s", fields[i], option(line, fields[i]));
    if (option(line, "pin") != NULL)
        bytes_put_format(body, ",\"pin\":\"%s\"", option(line, "pin"));
    if (option(line, "disk") != NULL)
        bytes_put_format(body, ",\"disks\":[{\"name\":\"%s\",\"size_bytes\":1048576}]", option(line, "disk"));
}

/* The request's body; NULL: it has none. */
static char *body_of(const struct script_line *line, enum route_id route)
{
    struct bytes_writer options = {0};
    const char *to = option(line, "to");
    char *body = NULL;
    put_options(line, &options);
    bytes_put_u8(&options, 0);
    const char *given = (const char *)options.data;
    if (route == ROUTE_ID_vm_create)
        body = xasprintf("{\"name\":\"%s\",\"image\":\"tiny\",\"vcpus\":1%s%s%s}", word(line, 4),
                         option(line, "memory_bytes") == NULL ? ",\"memory_bytes\":536870912" : "",
                         strcmp(word(line, 3), "create-ha") == 0 ? ",\"ha\":true" : "", given);
    else if (route == ROUTE_ID_vm_update)
        body = xasprintf("{%s}", given + (given[0] == ','));
    else if (route == ROUTE_ID_cluster_update)
        body = xasprintf("{\"shutdown_policy\":\"%s\"}", word(line, 4));
    else if (route == ROUTE_ID_vm_migrate)
        body = to != NULL ? xasprintf("{\"to\":\"%s\"}", to) : xstrdup("{}");
    else if (route == ROUTE_ID_snapshot_create)
        body = xasprintf("{\"name\":\"%s\"}", option(line, "name"));
    bytes_writer_finish(&options);
    return body;
}

static bool do_client(struct script_line *line)
{
    struct sim_world *world = line->cluster->world;
    unsigned client = (unsigned)atoi(word(line, 2)) - 1;
    const char *target = word(line, 4), *key = line->count > 5 && strchr(line->words[5], '=') == NULL ? line->words[5] : NULL;
    for (unsigned i = 0; i < ARRAY_SIZE(client_verbs) && client < WORLD_CLIENTS; i++) {
        if (strcmp(client_verbs[i].verb, word(line, 3)) != 0)
            continue;
        CLEANUP_FREE char *body = body_of(line, client_verbs[i].route);
        int rc = sim_client_ask(&world->clients[client], client_verbs[i].route, target, body, key);
        sim_world_tell(line->cluster, "client %u: %s %s%s%s%s", client + 1, word(line, 3), target, key ? ", key " : "",
                       key ? key : "", rc < 0 ? " -- is still busy" : "");
        return true;
    }
    return false;
}

static void crash(struct sim_node *node)
{
    if (!node->actor.up)
        return;
    sim_world_tell(node->cluster, "controller %u is killed", node->actor.id);
    sim_node_crash(node, "killed by the script");
}

static bool do_crash(struct script_line *line)
{
    struct sim_cluster *cluster = line->cluster;
    struct sim_node *leader = sim_cluster_leader(cluster);
    unsigned id = (unsigned)atoi(word(line, 2));
    if (strcmp(word(line, 2), "leader") == 0 && leader != NULL)
        crash(leader);
    for (unsigned i = 1; i <= cluster->node_count; i++)
        if (strcmp(word(line, 2), "all") == 0 || i == id)
            crash(&cluster->nodes[i]);
    return true;
}

static bool do_restart(struct script_line *line)
{
    for (unsigned i = 1; i <= line->cluster->node_count; i++) {
        struct sim_node *node = &line->cluster->nodes[i];
        if (node->actor.up)
            continue;
        sim_node_start(node);
        sim_world_tell(line->cluster, "controller %u starts%s", i, node->disk.snapshot.index > 0 ? ", with a snapshot" : "");
    }
    return true;
}

/* ---- hosts ---- */

static void host_cut(struct sim_agent *agent, struct script_line *line UNUSED)
{
    sim_network_isolate(&agent->cluster->network, agent->actor.id, true, true);
}
static void host_cut_out(struct sim_agent *agent, struct script_line *line UNUSED)
{
    sim_network_isolate(&agent->cluster->network, agent->actor.id, true, false);
}
static void host_cut_in(struct sim_agent *agent, struct script_line *line UNUSED)
{
    sim_network_isolate(&agent->cluster->network, agent->actor.id, false, true);
}
static void host_crash_agent(struct sim_agent *agent, struct script_line *line UNUSED)
{
    sim_agent_crash(agent);
}
static void host_start_agent(struct sim_agent *agent, struct script_line *line UNUSED)
{
    sim_agent_start(agent);
}
static void host_down(struct sim_agent *agent, struct script_line *line UNUSED)
{
    sim_agent_host_reboot(agent);
}
static void host_reboot(struct sim_agent *agent, struct script_line *line UNUSED)
{
    sim_agent_host_reboot(agent);
    sim_agent_start(agent);
}
static void host_burn(struct sim_agent *agent, struct script_line *line UNUSED)
{
    sim_agent_host_reboot(agent);
    agent->burnt = true;
}
static void host_leave(struct sim_agent *agent, struct script_line *line UNUSED)
{
    sim_agent_host_leave(agent);
}
static void host_freeze(struct sim_agent *agent, struct script_line *line)
{
    sim_agent_freeze(agent, agent->cluster->sim.now_us + (uint64_t)atoi(word(line, 3)) * SIM_SECOND);
}
static void host_fail_starts(struct sim_agent *agent, struct script_line *line)
{
    agent->failing_starts = (unsigned)atoi(word(line, 3));
}
static void host_fail_migrations(struct sim_agent *agent, struct script_line *line)
{
    agent->failing_migrations = (unsigned)atoi(word(line, 3));
}

static const struct {
    const char *verb, *told;
    void (*run)(struct sim_agent *agent, struct script_line *line);
} host_verbs[] = {
    {"agent-crash", "the agent is killed", host_crash_agent},
    {"agent-start", "the agent starts", host_start_agent},
    {"host-down", "the power is gone", host_down},
    {"host-reboot", "the host goes down and boots", host_reboot},
    {"leave", "the host is shut down in order", host_leave},
    {"burn", "the host burns", host_burn},
    {"freeze", "the host stands still", host_freeze},
    {"cut", "the network cable is pulled", host_cut},
    {"cut-out", "nothing that it sends arrives", host_cut_out},
    {"cut-in", "nothing that it is sent arrives", host_cut_in},
    {"fail-starts", "VMs fail to start", host_fail_starts},
    {"fail-migrations", "VMs fail to leave", host_fail_migrations},
};

static bool do_host(struct script_line *line)
{
    struct sim_agent *agent = agent_named(line->cluster, word(line, 2));
    for (unsigned i = 0; agent != NULL && i < ARRAY_SIZE(host_verbs); i++) {
        if (strcmp(host_verbs[i].verb, word(line, 1)) != 0)
            continue;
        sim_world_tell(line->cluster, "%s: %s", agent->name, host_verbs[i].told);
        host_verbs[i].run(agent, line);
        return true;
    }
    return false;
}

/* ---- controllers ---- */

/* The next one after @id of those that the line's third word means: a number, leader, all; 0: no more. */
static unsigned meant(const struct script_line *line, unsigned id, unsigned leader)
{
    const char *who = word(line, 2);
    for (id++; id <= line->cluster->node_count; id++)
        if (strcmp(who, "all") == 0 || (strcmp(who, "leader") == 0 && id == leader) || id == (unsigned)atoi(who))
            return id;
    return 0;
}

static unsigned leader_id(const struct script_line *line)
{
    struct sim_node *leader = sim_cluster_leader(line->cluster);
    return leader != NULL ? leader->actor.id : 0;
}

static bool do_controller_cut(struct script_line *line)
{
    bool out = strcmp(word(line, 3), "in") != 0, in = strcmp(word(line, 3), "out") != 0;
    for (unsigned id = 0, leader = leader_id(line); (id = meant(line, id, leader)) != 0;) {
        sim_network_isolate(&line->cluster->network, id, out, in);
        sim_world_tell(line->cluster, "controller %u: %s", id,
                       out && in ? "it is cut off"
                       : out     ? "nothing that it sends arrives"
                                 : "nothing that it is sent arrives");
    }
    return true;
}

static bool do_controller_pause(struct script_line *line)
{
    for (unsigned id = 0, leader = leader_id(line); (id = meant(line, id, leader)) != 0;) {
        line->cluster->nodes[id].actor.paused_until_us =
            line->cluster->sim.now_us + (uint64_t)atoi(word(line, 3)) * SIM_SECOND;
        sim_world_tell(line->cluster, "controller %u stands still", id);
    }
    return true;
}

static bool do_disk(struct script_line *line)
{
    bool full = strcmp(word(line, 1), "disk-full") == 0;
    uint64_t until_us = line->cluster->sim.now_us + (uint64_t)atoi(word(line, 3)) * SIM_SECOND;
    for (unsigned id = 0, leader = leader_id(line); (id = meant(line, id, leader)) != 0;) {
        struct sim_disk *disk = &line->cluster->nodes[id].disk;
        *(full ? &disk->full_until_us : &disk->slow_until_us) = until_us;
        sim_world_tell(line->cluster, "controller %u: its disk is %s", id, full ? "full" : "slow");
    }
    return true;
}

static bool do_clock(struct script_line *line)
{
    for (unsigned id = 0, leader = leader_id(line); (id = meant(line, id, leader)) != 0;) {
        line->cluster->nodes[id].wall_jump_ms = atoi(word(line, 3)) * INT64_C(60000);
        sim_world_tell(line->cluster, "controller %u: its clock is set wrong by %s minutes", id, word(line, 3));
    }
    return true;
}

static bool do_cut_all(struct script_line *line)
{
    for (unsigned id = 0; id < SIM_ACTORS_MAX; id++)
        if (id != WORLD_CLIENT_ID && id != WORLD_CLIENT_ID + 1)
            sim_network_isolate(&line->cluster->network, id, true, true);
    sim_world_tell(line->cluster, "every cable is pulled");
    return true;
}

static bool do_mend(struct script_line *line)
{
    sim_network_heal(&line->cluster->network);
    sim_world_tell(line->cluster, "the network is whole");
    return true;
}

static bool do_crash_after(struct script_line *line)
{
    struct sim_world *world = line->cluster->world;
    for (unsigned number = 1; number < 100; number++) {
        const struct command_desc *desc = command_find(number);
        if (desc != NULL && strcmp(desc->name, word(line, 2)) == 0)
            world->crash_after = desc->number;
    }
    return world->crash_after != 0;
}

static bool do_show(struct script_line *line)
{
    struct sim_node *leader = sim_cluster_leader(line->cluster);
    const struct state *state = leader != NULL ? sim_fsm_state(leader) : NULL;
    if (state == NULL)
        sim_world_tell(line->cluster, "nobody leads");
    for (size_t i = 0; state != NULL && i < state_count(state, object_kind_VM); i++) {
        const struct vm *vm = state_at(state, object_kind_VM, i)->vm;
        sim_world_tell(line->cluster, "held: %s is %s, wanted %s, on %s, epoch %llu, generation %llu", vm->name,
                       vm_state_desc.names[vm->state], vm_wanted_desc.names[vm->wanted], vm->host_name ? vm->host_name : "no host",
                       (unsigned long long)vm->epoch, (unsigned long long)vm->generation);
    }
    if (state != NULL && state_count(state, object_kind_VM) == 0)
        sim_world_tell(line->cluster, "held: no VMs");
    return true;
}

static const struct {
    const char *verb;
    bool (*run)(struct script_line *line);
} script_verbs[] = {
    {"client", do_client},           {"crash", do_crash}, {"restart", do_restart}, {"mend", do_mend},
    {"crash-after", do_crash_after}, {"show", do_show},   {"cut-all", do_cut_all}, {"controller-cut", do_controller_cut},
    {"pause", do_controller_pause},  {"disk-full", do_disk}, {"disk-slow", do_disk}, {"clock", do_clock},
};

static void run_line(struct sim *sim, struct sim_event *event)
{
    struct script_line *line = event->data;
    for (unsigned i = 0; i < ARRAY_SIZE(script_verbs); i++)
        if (strcmp(script_verbs[i].verb, word(line, 1)) == 0 && script_verbs[i].run(line))
            return;
    if (do_host(line))
        return;
    sim_violation(sim, "the cmdlist has a line that cannot be carried out: %s %s %s", word(line, 0), word(line, 1), word(line, 2));
}

/* ---- running ---- */

static void set(struct sim_world *world, struct sim_script *script, const struct script_line *line)
{
    unsigned value = (unsigned)atoi(word(line, 2));
    if (strcmp(word(line, 1), "hosts") == 0)
        world->agent_count = MIN(value, WORLD_AGENTS);
    else if (strcmp(word(line, 1), "memory") == 0)
        world->host_mib = value;
    else if (strcmp(word(line, 1), "leases") == 0)
        world->leases = value;
    else if (strcmp(word(line, 1), "doubled") == 0)
        world->doubled_per_thousand = value;
    else if (strcmp(word(line, 1), "seconds") == 0)
        script->seconds = value;
    for (unsigned i = 0; strcmp(word(line, 1), "slow") == 0 && i < WORLD_AGENTS; i++)
        world->agents[i].work_ticks = value;
}

void sim_script_begin(struct sim_cluster *cluster)
{
    struct sim_world *world = cluster->world;
    for (unsigned i = 0; i < world->script->count; i++) {
        struct script_line *line = &world->script->lines[i];
        line->cluster = cluster;
        if (strcmp(word(line, 0), "set") != 0)
            sim_after(&cluster->sim, (uint64_t)(atof(word(line, 0)) * 1000) * SIM_MS, run_line, NULL, line);
    }
}

static bool load(const char *dir, struct sim_script *script, struct sim_world *world)
{
    char path[300];
    snprintf(path, sizeof path, "%s/cmdlist", dir);
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return false;
    for (; script->count < SCRIPT_LINES_MAX; script->count++) {
        struct script_line *line = &script->lines[script->count];
        if (fgets(line->text, sizeof line->text, file) == NULL)
            break;
        split(line);
        if (line->count == 0)
            *line = (struct script_line){0}, script->count--;
        else if (strcmp(word(line, 0), "set") == 0)
            set(world, script, line);
    }
    fclose(file);
    return true;
}

static void play(struct sim_script *script, struct sim_world *world)
{
    static const struct sim_mutations none;
    struct sim_cluster *cluster = NEW(struct sim_cluster);
    sim_cluster_init(cluster, SCRIPT_SEED, false, &sim_cluster_class, &script_scenario, &none, script->seconds);
    cluster->node_count = 3;
    cluster->world = world;
    for (unsigned i = 0; i < WORLD_CLIENTS; i++)
        world->clients[i].quiet = true;
    sim_cluster_run(cluster); /* frees the world */
    sim_cluster_finish(cluster);
    free(cluster);
}

static bool same_as(const char *path, const char *text, size_t size)
{
    FILE *file = fopen(path, "r");
    CLEANUP_FREE char *expected = xcalloc(1, size + 2);
    size_t length = file != NULL ? fread(expected, 1, size + 1, file) : 0;
    if (file != NULL)
        fclose(file);
    if (length == size && memcmp(expected, text, size) == 0)
        return true;
    size_t at = 0, line = 1;
    for (; at < MIN(length, size) && expected[at] == text[at]; at++)
        line += text[at] == '\n';
    while (at > 0 && text[at - 1] != '\n')
        at--;
    printf("%s: line %zu is now\n  %.*s\n", path, line, (int)strcspn(text + at, "\n"), text + at);
    return false;
}

int sim_script_run(const char *dir, bool write)
{
    struct sim_script *script = NEW(struct sim_script);
    struct sim_world *world = NEW(struct sim_world);
    char path[300], *text = NULL;
    size_t size = 0;
    world->agent_count = 2;
    world->host_mib = WORLD_HOST_MIB;
    world->scripted = true;
    world->script = script;
    script->seconds = SCRIPT_SECONDS;
    bool ok = load(dir, script, world);
    if (!ok) {
        printf("%s: there is no cmdlist\n", dir);
        free(world);
        free(script);
        return 1;
    }
    FILE *story = world->story = open_memstream(&text, &size);
    play(script, world);
    fclose(story);
    snprintf(path, sizeof path, "%s/expect.log", dir);
    FILE *file = write ? fopen(path, "w") : NULL;
    if (file != NULL) {
        fwrite(text, 1, size, file);
        fclose(file);
    } else {
        ok = same_as(path, text, size);
    }
    free(text);
    free(script);
    return !ok;
}

/* A story that is told in a process of its own: what it leaves in memory, or its end by an assertion, is its own affair.
 * What it prints is kept until it has ended. */
struct telling {
    char dir[600];
    FILE *output;
    pid_t pid;
};

static void telling_start(struct telling *telling, const char *parent, const char *name)
{
    snprintf(telling->dir, sizeof telling->dir, "%s/%s", parent, name);
    telling->output = tmpfile();
    ASSERT(telling->output != NULL);
    fflush(stdout);
    telling->pid = fork();
    ASSERT(telling->pid >= 0);
    if (telling->pid != 0)
        return;
    ASSERT(dup2(fileno(telling->output), STDOUT_FILENO) >= 0);
    int status = sim_script_run(telling->dir, false);
    fflush(stdout);
    _exit(status);
}

static bool telling_end(struct telling *telling)
{
    char bytes[4096];
    int status;
    ASSERT(waitpid(telling->pid, &status, 0) == telling->pid);
    rewind(telling->output);
    for (size_t n; (n = fread(bytes, 1, sizeof bytes, telling->output)) > 0;)
        fwrite(bytes, 1, n, stdout);
    fclose(telling->output);
    if (WIFSIGNALED(status))
        printf("%s: ended by signal %d (%s)\n", telling->dir, WTERMSIG(status), strsignal(WTERMSIG(status)));
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool is_story(const char *parent, const char *name)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s/cmdlist", parent, name);
    return access(path, R_OK) == 0;
}

void sim_script_run_all(const char *parent, unsigned jobs, unsigned *passed, unsigned *failed)
{
    struct dirent **entries;
    int count = scandir(parent, &entries, NULL, alphasort), stories = 0;
    if (count < 0) {
        printf("%s: %s\n", parent, strerror(errno));
        ++*failed;
        return;
    }
    for (int i = 0; i < count; i++) {
        if (is_story(parent, entries[i]->d_name))
            entries[stories++] = entries[i];
        else
            free(entries[i]);
    }
    struct telling *tellings = calloc((size_t)stories + 1, sizeof *tellings);
    ASSERT(tellings != NULL);
    for (int ended = 0, begun = 0; ended < stories; ended++) {
        while (begun < stories && begun - ended < (int)jobs) {
            telling_start(&tellings[begun], parent, entries[begun]->d_name);
            free(entries[begun++]);
        }
        bool well = telling_end(&tellings[ended]);
        *passed += well;
        *failed += !well;
    }
    free(tellings);
    free(entries);
}
