/* The drill of quorum loss: all controllers but the leader crash, and stay away; the one that is left is recovered; they
 * come back, are refused, and join anew.
 *
 *   crash of all others (each comes back by itself after --seconds, where nothing more is done)
 *     -> no majority -> PROGRAM stop OTHERS: from here on it is for good -> PROGRAM recover SURVIVOR -> writes, epoch + 1, one controller
 *     -> PROGRAM start OTHERS -> PROGRAM ended: exit status 5 -> PROGRAM rejoin -> as many votes as before
 *
 * They are stopped before the recovery: a majority of the old ones that is back before the survivor would answer writes, which would
 * be lost. Where the recovery fails they stay so, and whoever makes the drill has to look at the survivor first.
 *
 * A controller is recovered and wiped on its machine, not by the API: PROGRAM (--machines) is the operator's way to the machines,
 * the same as on the day that matters. It is started as PROGRAM WHAT NAME ADDRESS, and exits with 0 where that is done:
 *
 *   check    can it be reached, and is drover-controller there?
 *   stop, start  the controller; it may not run as it is stopped
 *   recover  stop the controller, drover-controller recover --yes, start it
 *   ended    print the exit status of the controller's last run; fail while it runs
 *   rejoin   wipe its data but admin/, drover-controller join with the token in DROVER_TOKEN, start it */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/drill_steps.h"
#include "cli/drill_text.h"

#define REFUSED_STATUS 5 /* of a controller that its cluster was recovered without */
#define REFUSED_S 120
#define LOOK_US 500000
#define WORD_BYTES 200

extern char **environ;

/* ---- the machines ---- */

/* Its exit status; @said: the first line that it printed. */
static int run(struct drill *d, const char *what, const json_t *controller, char said[WORD_BYTES])
{
    const char *program = invocation_option(d->call, "machines");
    char *argv[] = {(char *)(uintptr_t)program, (char *)(uintptr_t)what, (char *)(uintptr_t)json_text(controller, "name"),
                    (char *)(uintptr_t)json_text(controller, "address"), NULL};
    posix_spawn_file_actions_t actions;
    int pipes[2], status = 0;
    pid_t pid;
    said[0] = '\0';
    if (pipe2(pipes, O_CLOEXEC) < 0)
        return -1;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, pipes[1], STDOUT_FILENO);
    int r = posix_spawnp(&pid, program, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(pipes[1]);
    FILE *words = fdopen(pipes[0], "r");
    char line[1024];
    while (r == 0 && words != NULL && fgets(line, sizeof line, words) != NULL)
        if (said[0] == '\0')
            snprintf(said, WORD_BYTES, "%.*s", (int)MIN(strcspn(line, "\n"), (size_t)WORD_BYTES - 1), line);
    if (words != NULL)
        fclose(words);
    else
        close(pipes[0]);
    if (r != 0) {
        snprintf(said, WORD_BYTES, "%s: %s", program, strerror(r));
        return -1;
    }
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int must(struct drill *d, const char *what, const json_t *controller, struct error *err)
{
    char said[WORD_BYTES];
    int status = run(d, what, controller, said);
    if (status == 0)
        return 0;
    return error_set(err, -EPROTO, ERROR_CONFLICT, "%s %s %s has failed (%d)%s%s", invocation_option(d->call, "machines"), what,
                     json_text(controller, "name"), status, said[0] != '\0' ? ": " : "", said);
}

bool drill_check_quorum_loss(struct drill *d)
{
    struct error err = {.text = ""};
    const json_t *c;
    size_t i;
    bool named = invocation_option(d->call, "machines") != NULL;
    int rc = 0;
    json_array_foreach(d->controllers, i, c)
        if (named && rc == 0)
            rc = must(d, "check", c, &err);
    json_array_append_new(d->checks, json_pack("{s:s, s:b, s:s}", "check", "machines", "ok", named && rc == 0, "detail",
                                               !named ? "--machines PROGRAM is needed: the way to the controllers' machines"
                                               : rc < 0 ? err.text : "reached"));
    return named && rc == 0;
}

/* ---- steps ---- */

static bool survives(const struct drill *d, const json_t *controller)
{
    return strcmp(json_text(controller, "name"), d->leader) == 0;
}

static int lose_others(struct drill *d, struct error *err)
{
    const json_t *c;
    size_t i;
    int rc = 0;
    json_array_foreach(d->controllers, i, c)
        if (rc == 0 && !survives(d, c) && strcmp(json_text(c, "role"), "voter") == 0) {
            rc = drill_order_controller(d, json_text(c, "name"), "crash", d->crash_s, NULL, err);
            if (rc == 0)
                drill_tell(d, "controller %s is lost", json_text(c, "name"));
        }
    d->fault_us = drill_now_us();
    return rc;
}

static bool has_no_quorum(struct drill *d, const void *arg)
{
    return !drill_controller_ready(d, arg);
}

/* What the survivor says of the cluster by itself. */
static json_t *ask_survivor(struct drill *d, const char *path)
{
    struct reply reply = {0};
    json_t *json = NULL;
    if (drill_turn_to(d, d->leader) && client_attempt(&d->client, "GET", path, NULL, 2000, &reply, NULL) == 0)
        json = json_incref(reply.json);
    reply_finish(&reply);
    return json;
}

static int for_lost(struct drill *d, const char *what, struct error *err)
{
    const json_t *c;
    size_t i;
    int rc = 0;
    json_array_foreach(d->controllers, i, c)
        if (rc == 0 && !survives(d, c) && strcmp(json_text(c, "role"), "voter") == 0)
            rc = must(d, what, c, err);
    return rc;
}

static int recover(struct drill *d, struct error *err)
{
    const json_t *c;
    size_t i;
    int64_t begin_us = drill_now_us();
    int rc = 0;
    if (!drill_wait(d, has_no_quorum, d->leader, DRILL_WAIT_MORE_S))
        return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT, "controller %s still has a majority", d->leader);
    drill_step(d, "no majority any more", begin_us);
    drill_tell(d, "no majority is left");
    begin_us = drill_now_us();
    if ((rc = for_lost(d, "stop", err)) < 0)
        return rc;
    drill_step(d, "the others stopped", begin_us);
    begin_us = drill_now_us();
    json_array_foreach(d->controllers, i, c)
        if (rc == 0 && survives(d, c))
            rc = must(d, "recover", c, err);
    if (rc < 0)
        return rc; /* not to be repaired by starting the others: they may be a rival majority by now */
    drill_step(d, "recover", begin_us);
    begin_us = drill_now_us();
    drill_await_controller(d, d->leader);
    drill_await_writes(d, "the recovery");
    drill_step(d, "writes again", begin_us);
    return 0;
}

static void check_recovered(struct drill *d)
{
    json_t *cluster = ask_survivor(d, "/v1/cluster?consistency=stale"), *controllers = ask_survivor(d, "/v1/controllers?consistency=stale");
    int64_t before = json_number(d->cluster, "epoch"), now = json_number(cluster, "epoch");
    if (now != before + 1)
        drill_fail(d, "the cluster has epoch %lld, and had %lld before", (long long)now, (long long)before);
    if (json_array_size(controllers) != 1)
        drill_fail(d, "controller %s knows of %zu controllers, and not of itself alone", d->leader, json_array_size(controllers));
    else
        drill_tell(d, "controller %s is the only one, at epoch %lld", d->leader, (long long)now);
    json_decref(cluster);
    json_decref(controllers);
}

/* It comes back with what it had, is told that the cluster goes on without it, and ends. */
static void await_refused(struct drill *d, const json_t *controller)
{
    char said[WORD_BYTES];
    const char *name = json_text(controller, "name");
    int64_t begin_us = drill_now_us(), end_us = begin_us + REFUSED_S * INT64_C(1000000);
    while (run(d, "ended", controller, said) != 0)
        if (drill_now_us() > end_us) {
            drill_fail(d, "controller %s, which is lost for good, still runs", name);
            return;
        } else {
            drill_pause_us(LOOK_US);
        }
    if (strtol(said, NULL, 10) == REFUSED_STATUS)
        drill_tell(d, "controller %s is back, and refused", name);
    else
        drill_fail(d, "controller %s has ended with %s, and not because it was refused", name, said);
}

struct vote_wait {
    const char *name;
    size_t votes;
};

static bool has_votes(struct drill *d, const void *arg)
{
    const struct vote_wait *wait = arg;
    json_t *list = ask_survivor(d, "/v1/controllers?consistency=stale");
    const json_t *c;
    size_t i, votes = 0;
    json_array_foreach(list, i, c) votes += strcmp(json_text(c, "role"), "voter") == 0;
    json_decref(list);
    return votes >= wait->votes;
}

static int rejoin(struct drill *d, const json_t *controller, size_t votes, struct error *err)
{
    json_t *token = NULL, *body = json_pack("{s:o, s:s}", "name", json_sprintf("%s-%s", d->id, json_text(controller, "name")), "role", "controller");
    const struct vote_wait wait = {json_text(controller, "name"), votes};
    int rc = drill_do(d, "POST", "/v1/tokens", body, &token, err);
    json_decref(body);
    if (rc == 0)
        setenv("DROVER_TOKEN", json_text(token, "secret"), 1);
    json_decref(token);
    if (rc == 0)
        rc = must(d, "rejoin", controller, err);
    unsetenv("DROVER_TOKEN");
    if (rc == 0 && !drill_wait(d, has_votes, &wait, DRILL_WAIT_MORE_S))
        rc = error_set(err, -ETIMEDOUT, ERROR_TIMEOUT, "it has no vote %d s after it joined", DRILL_WAIT_MORE_S);
    return rc;
}

/* The ones that were lost, one after another. */
static void put_back(struct drill *d)
{
    const json_t *c;
    size_t i, votes = 1;
    int64_t begin_us = drill_now_us();
    json_array_foreach(d->controllers, i, c)
    {
        struct error err = {.code = 0};
        char what[200];
        if (survives(d, c) || strcmp(json_text(c, "role"), "voter") != 0)
            continue;
        int rc = rejoin(d, c, ++votes, &err);
        snprintf(what, sizeof what, "controller %s joined anew", json_text(c, "name"));
        drill_note_put_back(d, what, rc, &err);
        if (rc < 0)
            drill_fail(d, "controller %s did not join anew: %s", json_text(c, "name"), err.text);
    }
    drill_step(d, "as many controllers as before", begin_us);
}

int drill_run_quorum_loss(struct drill *d, struct error *err)
{
    const json_t *c;
    size_t i;
    /* Who asked has had time to think: what the others have and it has not would be lost for good. */
    if (!drill_leads(d, d->leader))
        return error_set(err, -EAGAIN, ERROR_CONFLICT, "controller %s does not lead any more; begin the drill anew", d->leader);
    int rc = lose_others(d, err);
    if (rc < 0)
        return rc;
    if ((rc = recover(d, err)) < 0) {
        drill_fail(d, "%s; look at controller %s, then start those that are stopped", err->text, d->leader);
        return 0;
    }
    check_recovered(d);
    if ((rc = for_lost(d, "start", err)) < 0)
        drill_fail(d, "%s", err->text);
    drill_tell(d, "the lost ones start again");
    json_array_foreach(d->controllers, i, c)
        if (!survives(d, c) && strcmp(json_text(c, "role"), "voter") == 0)
            await_refused(d, c);
    put_back(d);
    drill_await_writes(d, "all have joined anew");
    return 0;
}
