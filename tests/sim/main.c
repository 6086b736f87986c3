/* sim - the controllers in a world of our making: simulated disks, network, clocks and crashes; real Raft, real
 * guards. usage_text below has the options, --list the scenarios and mutations.
 *
 * Each of many seeds is a history of its own, in a forked child. Prints a line for each failing seed (with the command that
 * shows it again) and, at the end, "N passed, N failed, N skipped". Exit status 0 where nothing failed, 2 for wrong words. */
#include "tests/sim/sim_faults.h"
#include "tests/sim/sim_node.h"
#include "tests/sim/sim_world.h"

#include <errno.h>
#include <getopt.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

enum { JOBS_MAX = 64, SEED_SECONDS_MAX = 120, SECONDS_MIN = 30, CONTROL_SEEDS = 100 };
enum { HEAP_KEPT_BYTES = 512 << 20, HEAP_STEP_BYTES = 4 << 20 };
enum { KEPT_LINE_BYTES = 300 };

static const char usage_text[] =
    "usage: sim [--seeds N] [--first S] [--jobs N] [--seconds T] [--class CLASS] [--scenario NAME] [--mutate NAME]\n"
    "       sim --seed S [--verbose | --trace] [--seconds T] [--class CLASS] [--scenario NAME] [--mutate NAME]\n"
    "       sim --script DIR [--write]\n"
    "       sim --mutations | --list | --help\n"
    "\n"
    "Many seeds of simulated clusters, one of them, one story, or everything that is broken on purpose.\n"
    "\n"
    "  --seeds N       so many histories (100); without --class, --scenario and --mutate: the stories, N seeds of the\n"
    "                  registers, and their shares of the other scenarios\n"
    "  --first S       the first of the seeds (1)\n"
    "  --jobs N        processes side by side, 1 to 64 (one for each processor)\n"
    "  --seconds T     virtual time of each history, 30 or more (60); the last 20 s are without faults\n"
    "  --class CLASS   history: the simulator's own registers; cluster: the real state machine, agents and clients\n"
    "  --scenario NAME what goes wrong (faults); --list names them\n"
    "  --seed S        one history, in this process\n"
    "  --verbose       tell what happens, with the virtual time\n"
    "  --trace         and what libraft says\n"
    "  --script DIR    the story in DIR (cmdlist) must be as in its expect.log; --write makes that file\n"
    "  --mutate NAME   break something on purpose\n"
    "  --mutations     break each thing in turn; it fails where one is not found\n"
    "\n"
    "Exit status: 0 nothing failed, 1 something did, 2 the command line is wrong.\n";

struct mutation {
    const char *name;
    size_t offset;           /* of the flag in struct sim_mutations */
    const char *scenario;    /* where it shows soonest */
    unsigned seeds;          /* in which it must be found; 0: it breaks no promise, all must pass */
    uint64_t hint;           /* a seed that showed it last, tried first to save time; 0: none */
    const char *text;
};
#define FLAG(member) offsetof(struct sim_mutations, member)

static const struct mutation mutations[] = {
    {"no-install-guard", FLAG(raft.no_install_guard), "snapshots", 200, 0, "guard A of raft_guard.h is off"},
    {"no-snapshot-guard", FLAG(raft.no_snapshot_guard), "snapshots", 4000, 0, "guard B is off"},
    {"no-metadata-guard", FLAG(raft.no_metadata_guard), "metadata", 2000, 0, "guard C is off"},
    {"no-send-guard", FLAG(raft.no_send_guard), "sends", 1000, 0, "guard E is off"},
    {"no-term-guard", FLAG(raft.no_term_guard), "snapshots", 1000, 0, "guard F is off"},
    {"no-change-guard", FLAG(raft.no_change_guard), "alone", 2000, 0, "guard G is off"},
    {"no-configuration-guard", FLAG(raft.no_configuration_guard), "member-storm", 2000, 0, "guard H is off"},
    {"no-leftover-guard", FLAG(raft.no_leftover_guard), "member-storm", 3000, 0, "guard I is off"},
    {"no-cut-guard", FLAG(raft.no_cut_guard), "snapshots", 1000, 0, "guard J is off"},
    {"no-batch-guard", FLAG(raft.no_batch_guard), "member-storm", 2000, 0, "guard L is off"},
    {"no-alone-guard", FLAG(raft.no_alone_guard), "alone", 2000, 0, "guard O is off"},
    {"no-vote-guard", FLAG(raft.no_vote_guard), "alone", 2000, 0, "guard P is off"},
    {"no-last-vote-guard", FLAG(raft.no_last_vote_guard), "alone", 2000, 0, "guard R is off"},
    {"no-unwritten-guard", FLAG(raft.no_unwritten_guard), "alone", 4000, 0, "guard S is off"},
    {"no-result-guard", FLAG(no_result_guard), "full-disk", 1000, 0, "guard D is off"},
    {"disk-lies", FLAG(disk_acknowledges_early), "faults", 200, 0, "disks say written before it is true"},
    {"early-answer", FLAG(acknowledge_before_commit), "faults", 200, 0, "commands acknowledged before their commit"},
    {"no-barrier", FLAG(read_without_barrier), "faults", 200, 0, "reads from the state of whoever thinks it leads"},
    {"confirm-new-leader", FLAG(confirm_without_term), "faults", 200, 0, "new leaders read before an entry of their own is committed"},
    {"not-deterministic", FLAG(apply_depends_on_node), "faults", 20, 0, "a command has no effect on one controller"},
    {"snapshot-index", FLAG(snapshot_forgets), "faults", 100, 0, "snapshots sometimes count one command too few"},
    {"restore-apply", FLAG(restore_apply), "snapshots", 100, 0, "entries are applied while a snapshot is restored"},
    {"restore-answer", FLAG(restore_answer), "restores", 1000, 0, "reads and commands go on meanwhile"},
    {"restore-snapshot", FLAG(restore_snapshot), "restores", 1000, 0, "snapshots are taken meanwhile"},
    {"no-prevote", FLAG(no_prevote), "faults", 0, 0, "no pre-vote: slower, not wrong (the control)"},
    {"no-idempotency", FLAG(world.no_idempotency), "faults", 60, 0, "no answer is kept under its key"},
    {"new-key", FLAG(world.new_key_for_retry), "faults", 60, 0, "clients ask again under a new key"},
    {"believe-all", FLAG(world.believe_all_reports), "faults", 300, 0, "reports of any epoch and generation are believed"},
    {"no-reconcile", FLAG(world.no_reconcile), "faults", 60, 0, "nobody places what waits"},
    {"migrate-resumes", FLAG(world.resumes), "faults", 300, 0, "a source that has no answer goes on by itself"},
    {"migrate-runs-early", FLAG(world.runs_early), "faults", 100, 0, "a target runs before the VM is its own"},
    /* Two more are taken out by the model (tests/model) and held by unit tests, for chance finds them too seldom here: counting
     * from the answer, and supports before the catch-up. */
    {"lease-one-support", FLAG(world.holder.one_support), "staged", 100, 0, "rule 2: one controller is enough for a host"},
    {"lease-supports-on", FLAG(world.table.supports_suspects), "leases", 300, 0, "rule 4: suspected hosts are supported"},
    {"lease-confirms-at-once", FLAG(world.table.confirms_at_once), "leases", 300, 0, "rule 4: confirmed before it has run out"},
    {"lease-one-confirms", FLAG(world.judge.one_confirmation), "leases", 300, 0, "rule 4: one confirmation is enough"},
    {"lease-lost-at-once", FLAG(world.judge.loses_at_once), "leases", 100, 0, "rule 4: none is needed"},
    {"lease-no-patience", FLAG(world.table.no_patience), "staged", 100, 0, "rule 5: confirmed at once after a start"},
    {"lease-no-drift", FLAG(world.table.no_drift), "staged", 100, 0, "rule 1: controllers count no longer than hosts"},
    {"lease-refusal-revives", FLAG(world.holder.refusal_revives), "staged", 100, 0, "rule 3: refusals revive what has run out"},
    {"lease-refusal-as-asked", FLAG(world.holder.refusal_as_asked), "staged", 100, 0, "rule 3: judged by when it was asked"},
    {"lease-unconfirmed", FLAG(world.lease_unconfirmed), "leases", 300, 0, "rule 6: VMs go on that the orders do not name"},
};

/* The machine that a mutation is about. */
static const struct sim_machine_class *mutation_class(const struct mutation *mutation)
{
    return mutation->offset >= offsetof(struct sim_mutations, world) ? &sim_cluster_class : &sim_history_class;
}

struct options {
    uint64_t first, seeds, seed;
    unsigned jobs, seconds;
    bool verbose, trace, one, all_mutations;
    const struct sim_scenario *scenario;
    const struct mutation *mutation;
    const struct sim_machine_class *class;
    const char *script;
    bool write_script;
};

struct report { /* from a child */
    bool failed;
    char text[400];
    struct sim_stats stats;
    uint64_t events;
};

struct job {
    pid_t pid; /* 0: free */
    int fd;
    uint64_t seed;
};

struct totals {
    uint64_t passed, failed;
    uint64_t first_failed_seed;
    struct sim_stats stats;
    uint64_t events;
};

static void report_fill(struct report *report, const struct sim_cluster *cluster)
{
    report->failed = cluster->sim.violation[0] != '\0';
    snprintf(report->text, sizeof(report->text), "%s", cluster->sim.violation);
    report->stats = cluster->stats;
    report->events = cluster->sim.events;
}

static void run_seed(const struct options *options, uint64_t seed, struct report *ret_report)
{
    struct sim_cluster *cluster = NEW(struct sim_cluster);
    struct sim_mutations broken = {0};

    if (options->mutation != NULL)
        *((bool *)&broken + options->mutation->offset) = true;
    sim_cluster_init(cluster, seed, options->verbose, options->class, options->scenario, &broken,
                     options->seconds);
    cluster->sim.trace = options->trace;
    sim_cluster_run(cluster);
    report_fill(ret_report, cluster);
    sim_cluster_finish(cluster);
    free(cluster);
}

/* --- Many seeds ------------------------------------------------------------------------------------------------- */

static _Noreturn void child_run(const struct options *options, uint64_t seed, int fd)
{
    struct report report = {0};

    alarm(SEED_SECONDS_MAX);
    run_seed(options, seed, &report);
    _exit(write(fd, &report, sizeof(report)) == (ssize_t)sizeof(report) ? 0 : 3);
}

static void job_start(struct job *job, const struct options *options, uint64_t seed)
{
    int fds[2];

    ASSERT(pipe(fds) == 0);
    fflush(stdout);
    job->pid = fork();
    ASSERT(job->pid >= 0);
    if (job->pid == 0) {
        close(fds[0]);
        child_run(options, seed, fds[1]);
    }
    close(fds[1]);
    job->fd = fds[0];
    job->seed = seed;
}

static void stats_add(struct sim_stats *to, const struct sim_stats *from)
{
    uint64_t *sums = (uint64_t *)to;
    const uint64_t *values = (const uint64_t *)from;

    for (size_t i = 0; i < sizeof(*to) / sizeof(*sums); i++)
        sums[i] += values[i];
}

static void job_end(struct job *job, const struct options *options, struct totals *totals)
{
    struct report report = {0};
    ssize_t n = read(job->fd, &report, sizeof(report));
    int status = 0;

    close(job->fd);
    ASSERT(waitpid(job->pid, &status, 0) == job->pid);
    job->pid = 0;
    if (n != (ssize_t)sizeof(report)) {
        report.failed = true;
        if (WIFSIGNALED(status))
            snprintf(report.text, sizeof(report.text), "the process was killed by signal %d (%s)", WTERMSIG(status),
                     strsignal(WTERMSIG(status)));
        else
            snprintf(report.text, sizeof(report.text), "the process ended with status %d", WEXITSTATUS(status));
    }
    stats_add(&totals->stats, &report.stats);
    totals->events += report.events;
    if (!report.failed) {
        totals->passed++;
        return;
    }
    if (totals->failed++ == 0)
        totals->first_failed_seed = job->seed;
    if (!options->all_mutations)
        printf("FAIL seed %llu: %s\n     sim --class %s --scenario %s --seconds %u --seed %llu --verbose%s%s\n",
               (unsigned long long)job->seed, report.text, options->class->name, options->scenario->name, options->seconds,
               (unsigned long long)job->seed, options->mutation != NULL ? " --mutate " : "",
               options->mutation != NULL ? options->mutation->name : "");
}

/* Run the seeds; with @stop_at_failure no new ones are begun after the first that fails. */
static void run_seeds(const struct options *options, bool stop_at_failure, struct totals *totals)
{
    struct job jobs[JOBS_MAX] = {0};
    uint64_t next = options->first, end = options->first + options->seeds;
    unsigned running = 0;

    while (running > 0 || next < end) {
        struct pollfd fds[JOBS_MAX];
        unsigned count = 0;

        for (unsigned i = 0; i < options->jobs && next < end; i++) {
            if (jobs[i].pid == 0) {
                job_start(&jobs[i], options, next++);
                running++;
            }
        }
        for (unsigned i = 0; i < options->jobs; i++)
            fds[count++] = (struct pollfd){.fd = jobs[i].pid != 0 ? jobs[i].fd : -1, .events = POLLIN};
        if (poll(fds, count, -1) < 0) {
            ASSERT(errno == EINTR);
            continue;
        }
        for (unsigned i = 0; i < count; i++) {
            if (fds[i].revents != 0) {
                job_end(&jobs[i], options, totals);
                running--;
            }
        }
        if (stop_at_failure && totals->failed > 0)
            next = end;
    }
}

static void totals_print(const struct options *options, const struct totals *totals)
{
    const struct sim_stats *s = &totals->stats;

    printf("class %s, scenario %s, %llu seeds of %u s: %llu events, %llu commands acknowledged, %llu unknown, %llu refused, "
           "%llu reads, %llu rounds of questions\n",
           options->class->name, options->scenario->name, (unsigned long long)options->seeds, options->seconds,
           (unsigned long long)totals->events, (unsigned long long)s->acknowledged, (unsigned long long)s->unknown,
           (unsigned long long)s->refused, (unsigned long long)s->reads, (unsigned long long)s->asked);
    printf("%llu elections, %llu crashes, %llu snapshots, %llu installed, %llu ended by guard C, %llu members changed, "
           "%llu entries deferred\n",
           (unsigned long long)s->elections, (unsigned long long)s->crashes, (unsigned long long)s->snapshots,
           (unsigned long long)s->installs, (unsigned long long)s->broken, (unsigned long long)s->changes, (unsigned long long)s->deferred);
    printf("%llu passed, %llu failed, 0 skipped\n", (unsigned long long)totals->passed,
           (unsigned long long)totals->failed);
}

/* --- Mutations -------------------------------------------------------------------------------------------------- */

static int run_mutations(struct options options)
{
    unsigned passed = 0, failed = 0;
    uint64_t first = options.first;

    options.all_mutations = true;
    for (size_t i = 0; i < ARRAY_SIZE(mutations); i++) {
        const struct mutation *mutation = &mutations[i];
        struct totals totals = {0};
        bool well;

        options.mutation = mutation;
        options.class = mutation_class(mutation);
        options.scenario = sim_scenario_find(mutation->scenario);
        options.first = mutation->hint;
        options.seeds = 1;
        if (mutation->hint > 0)
            run_seeds(&options, true, &totals);
        options.first = first;
        options.seeds = mutation->seeds > 0 ? mutation->seeds : CONTROL_SEEDS;
        if (totals.failed == 0)
            run_seeds(&options, true, &totals);
        well = (totals.failed > 0) == (mutation->seeds > 0);
        if (mutation->seeds > 0 && well)
            printf("ok   %-22s found by seed %llu\n", mutation->name, (unsigned long long)totals.first_failed_seed);
        else if (mutation->seeds > 0)
            printf("FAIL %-22s not found in %u seeds: %s\n", mutation->name, mutation->seeds, mutation->text);
        else
            printf("%s %-22s %s\n", well ? "ok  " : "FAIL", mutation->name,
                   well ? "breaks no promise, as it should" : "breaks a promise");
        fflush(stdout);
        passed += well;
        failed += !well;
    }
    printf("%u passed, %u failed, 0 skipped\n", passed, failed);
    return failed > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* --- Options ---------------------------------------------------------------------------------------------------- */

static int list(void)
{
    const struct sim_scenario *scenario;

    printf("scenarios:\n");
    for (size_t i = 0; (scenario = sim_scenario_at(i)) != NULL; i++)
        printf("  %-22s %s\n", scenario->name, scenario->text);
    printf("mutations:\n");
    for (size_t i = 0; i < ARRAY_SIZE(mutations); i++)
        printf("  %-22s %s\n", mutations[i].name, mutations[i].text);
    return EXIT_SUCCESS;
}

/* What N seeds mean without --class, each with as many of them as is said here, in thousandths: those of the cluster cost
 * more. */
static const struct {
    const struct sim_machine_class *class;
    const char *scenario; /* NULL: the one of the command line */
    unsigned per_thousand;
} shares[] = {
    {&sim_history_class, NULL, 1000}, {&sim_history_class, "member-storm", 200}, {&sim_history_class, "restores", 200},
    {&sim_cluster_class, NULL, 25},   {&sim_cluster_class, "leases", 20},        {&sim_cluster_class, "staged", 10},
};

static const struct sim_machine_class *class_find(const char *name)
{
    return strcmp(name, "cluster") == 0   ? &sim_cluster_class
           : strcmp(name, "history") == 0 ? &sim_history_class
                                          : NULL;
}

/* Seeds that failed once: lines "CLASS SCENARIO SEED # what it was". */
static void run_kept(struct options options, const char *path, struct totals *totals)
{
    char line[KEPT_LINE_BYTES], class[16], scenario[32];
    unsigned long long seed;
    FILE *file = fopen(path, "r");

    options.seeds = 1;
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        line[strcspn(line, "#")] = '\0';
        if (sscanf(line, "%15s %31s %llu", class, scenario, &seed) != 3)
            continue;
        options.class = class_find(class);
        options.scenario = sim_scenario_find(scenario);
        options.first = seed;
        if (options.class != NULL && options.scenario != NULL) {
            run_seeds(&options, false, totals);
            continue;
        }
        printf("FAIL %s: there is no class %s or no scenario %s\n", path, class, scenario);
        totals->failed++;
    }
    if (file != NULL)
        fclose(file);
}

static int run_all(struct options options)
{
    const struct sim_scenario *scenario = options.scenario;
    uint64_t seeds = options.seeds, all_passed;
    unsigned passed = 0, failed = 0;

    sim_script_run_all("tests/sim", options.jobs, &passed, &failed);
    printf("stories: %u as expected, %u not\n", passed, failed);
    struct totals kept = {0};
    run_kept(options, "tests/sim/seeds", &kept);
    printf("seeds that failed once: %llu passed, %llu failed\n", (unsigned long long)kept.passed,
           (unsigned long long)kept.failed);
    all_passed = passed + kept.passed;
    failed += (unsigned)kept.failed;
    for (size_t i = 0; i < ARRAY_SIZE(shares); i++) {
        struct totals totals = {0};

        options.class = shares[i].class;
        options.scenario = shares[i].scenario != NULL ? sim_scenario_find(shares[i].scenario) : scenario;
        options.seeds = MAX(seeds * shares[i].per_thousand / 1000, 1);
        run_seeds(&options, false, &totals);
        totals_print(&options, &totals);
        all_passed += totals.passed;
        failed += (unsigned)totals.failed;
    }
    printf("%llu passed, %u failed, 0 skipped\n", (unsigned long long)all_passed, failed);
    return failed > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

static const struct mutation *mutation_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(mutations); i++)
        if (strcmp(mutations[i].name, name) == 0)
            return &mutations[i];
    return NULL;
}

static int usage(const char *what)
{
    fprintf(stderr, "sim: %s\n%s", what, usage_text);
    return 2;
}

static int run_one(const struct options *options)
{
    struct report report = {0};

    run_seed(options, options->seed, &report);
    printf("seed %llu: %s (%llu events, %llu acknowledged, %llu elections, %llu crashes, %llu installed)\n",
           (unsigned long long)options->seed, report.failed ? report.text : "well", (unsigned long long)report.events,
           (unsigned long long)report.stats.acknowledged, (unsigned long long)report.stats.elections,
           (unsigned long long)report.stats.crashes, (unsigned long long)report.stats.installs);
    printf("%d passed, %d failed, 0 skipped\n", !report.failed, report.failed);
    return report.failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"seeds", required_argument, NULL, 'n'},    {"first", required_argument, NULL, 'f'},
        {"seed", required_argument, NULL, 's'},     {"jobs", required_argument, NULL, 'j'},
        {"seconds", required_argument, NULL, 't'},  {"scenario", required_argument, NULL, 'c'},
        {"mutate", required_argument, NULL, 'm'},   {"mutations", no_argument, NULL, 'M'},
        {"class", required_argument, NULL, 'k'},    {"script", required_argument, NULL, 'p'},
        {"write", no_argument, NULL, 'w'},          {"verbose", no_argument, NULL, 'v'},
        {"trace", no_argument, NULL, 'r'},          {"list", no_argument, NULL, 'l'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct options options = {.first = 1, .seeds = 100, .jobs = 2, .seconds = 60};
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    struct totals totals = {0};
    int c;

    options.jobs = processors < 1 ? 1 : (unsigned)MIN(processors, (long)JOBS_MAX);
    options.scenario = sim_scenario_find("faults");
    /* Memory is not given back while a history lasts: libraft's and the disks' comes and goes all the time. */
    mallopt(M_MMAP_THRESHOLD, HEAP_KEPT_BYTES);
    mallopt(M_TRIM_THRESHOLD, HEAP_KEPT_BYTES);
    mallopt(M_TOP_PAD, HEAP_STEP_BYTES);
    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (c) {
        case 'n': options.seeds = strtoull(optarg, NULL, 10); break;
        case 'f': options.first = strtoull(optarg, NULL, 10); break;
        case 's': options.seed = strtoull(optarg, NULL, 10); options.one = true; break;
        case 'j': options.jobs = (unsigned)strtoul(optarg, NULL, 10); break;
        case 't': options.seconds = (unsigned)strtoul(optarg, NULL, 10); break;
        case 'c': options.scenario = sim_scenario_find(optarg); break;
        case 'm':
            options.mutation = mutation_find(optarg);
            if (options.mutation == NULL)
                return usage("no such mutation");
            break;
        case 'k':
            options.class = class_find(optarg);
            if (options.class == NULL)
                return usage("--class is history or cluster");
            break;
        case 'p': options.script = optarg; break;
        case 'w': options.write_script = true; break;
        case 'M': options.all_mutations = true; break;
        case 'v': options.verbose = true; break;
        case 'r': options.verbose = options.trace = true; break;
        case 'l': return list();
        case 'h':
            fputs(usage_text, stdout);
            return EXIT_SUCCESS;
        default: return usage("unknown option");
        }
    }
    if (options.scenario == NULL)
        return usage("no such scenario");
    if (options.seconds < SECONDS_MIN || options.jobs < 1 || options.jobs > JOBS_MAX)
        return usage("--seconds must be at least 30, --jobs 1 to 64");
    if (options.script != NULL)
        return sim_script_run(options.script, options.write_script);
    if (options.all_mutations)
        return run_mutations(options);
    if (options.class == NULL && options.mutation != NULL)
        options.class = mutation_class(options.mutation);
    if (options.class == NULL && !options.one && options.mutation == NULL)
        return run_all(options);
    if (options.class == NULL)
        options.class = &sim_history_class;
    if (options.one)
        return run_one(&options);
    run_seeds(&options, false, &totals);
    totals_print(&options, &totals);
    return totals.failed > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
