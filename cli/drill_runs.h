/* What was seen to execute where during a drill, and whether any VM executed on two hosts at once. Pure.
 *
 * A host's agent is asked again and again what its kernel says of its VMMs (vm_observation). Each answer is true for some
 * moment between the question and its arrival, on the clock of whoever asks: what time it is on a host is not believed, but how
 * much older a VMM has become between two answers, to DRILL_DRIFT_PER_CENT, the bound that the leases rest on. So where one answer
 * was quick, it is known for those before and after it as well when they were true, however late they came. So of each run,
 * a VMM of a VM on a host, is known
 *
 *     begun          its process was not there before             (lower bound of all that it executed)
 *     first_until    it has executed by then
 *     last_from      it has executed since then, at least a bit   (its last execution was not before)
 *     last_until     it has executed nothing since then, as far as was asked
 *
 *     run A  |begun----first_until=======last_from--last_until|
 *     run B                                                      |begun---first_until=====...
 *
 * ONCE: each pair of runs of a VM on two hosts is apart for sure: the one's last_until is before the other's begun. TWICE: both have
 * executed for sure while the other did: A's first before B's last and B's first before A's last. UNSURE: neither can be told, because
 * answers took too long or came too seldom. All times are microseconds of one steady clock. */
#ifndef CLI_DRILL_RUNS_H
#define CLI_DRILL_RUNS_H

#include "common/base.h"
#include "schema/objects.h"

#define DRILL_RUNS_MAX 4096u
#define DRILL_TICK_US 20000 /* how exact the age of a process is: two of the kernel's ticks */
#define DRILL_AGE_US 2000   /* how exact the difference of two ages is */
#define DRILL_DRIFT_PER_CENT 2
#define DRILL_SIGHTS 16u    /* answers that are kept of a run */

struct drill_run {
    char host[64], vm[40];
    uint64_t epoch, vcpu_ns;
    int64_t begun_us, first_until_us, last_from_us, last_until_us;
    int64_t asked_us;      /* the last question that it was in the answer of */
    int64_t came_us;       /* and when that came */
    int64_t quiet_from_us; /* when an answer came that had it executing */
    struct drill_sight {
        int64_t age_us, came_us; /* it was so old, at some time before that */
    } sights[DRILL_SIGHTS];
    unsigned sight_count; /* ever; the last DRILL_SIGHTS are kept */
    int64_t last_age_us;  /* of the answer that last_until_us is about */
    int64_t stall_us;      /* the longest time that it executed nothing between two times that it did */
    bool restarted;        /* by its agent, on the same host: ages are of more than one process */
    bool executed;         /* first_until and the rest are set */
};

struct drill_runs {
    struct drill_run *items; /* owned */
    size_t count;
    bool full; /* DRILL_RUNS_MAX: something is missing */
};

enum drill_verdict { DRILL_ONCE, DRILL_UNSURE, DRILL_TWICE };

/* @seen of host @host, in the answer to a question of @asked_us that came at @came_us. */
void drill_runs_add(struct drill_runs *runs, const char *host, const struct vm_observation *seen, int64_t asked_us, int64_t came_us);
/* @why: in words, for all but DRILL_ONCE. */
enum drill_verdict drill_runs_judge(const struct drill_runs *runs, const char *vm, char *why, size_t why_size);
/* The run of @vm on @host under the highest epoch; NULL: none. */
const struct drill_run *drill_runs_find(const struct drill_runs *runs, const char *vm, const char *host);
/* The first run of @vm on another host than @host under a higher epoch than @epoch that has executed; NULL: none. */
const struct drill_run *drill_runs_elsewhere(const struct drill_runs *runs, const char *vm, const char *host, uint64_t epoch);
const char *drill_verdict_name(enum drill_verdict verdict);
void drill_runs_finish(struct drill_runs *runs);

#endif
