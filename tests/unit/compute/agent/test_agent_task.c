/* Orders for tasks against what is under way, with a kind of the test's own; and the child process of a task, for which
 * this very program is run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "compute/agent/agent.h"
#include "compute/agent/task_child.h"

#define ID_1 "11111111-0000-4000-8000-000000000001"
#define ID_2 "22222222-0000-4000-8000-000000000002"

static struct {
    unsigned started, cancelled, changed, stopped;
    bool end_at_start, hang_at_stop;
    struct agent_task *last;
} kind;

static void kind_start(struct agent_task *task)
{
    kind.started++;
    kind.last = task;
    if (kind.end_at_start)
        agent_task_end(task, operation_state_SUCCEEDED, NULL);
}

static void kind_cancel(struct agent_task *task)
{
    struct error err;
    kind.cancelled++;
    error_set(&err, -ECANCELED, ERROR_CANCELLED, "as asked");
    agent_task_end(task, operation_state_CANCELLED, &err);
}

static void kind_changed(struct agent_task *task UNUSED)
{
    kind.changed++;
}

static void kind_stop(struct agent_task *task)
{
    kind.stopped++;
    if (!kind.hang_at_stop)
        agent_task_stopped(task);
}

static const struct agent_task_ops ops = {
    .start = kind_start, .cancel = kind_cancel, .changed = kind_changed, .stop = kind_stop};
static const struct agent_task_ops *const kinds[task_kind_COUNT] = {[task_kind_SNAPSHOT_CREATE] = &ops};

static int setup(void **test)
{
    struct agent *a = NEW(struct agent);
    a->tasks.kinds = kinds;
    memset(&kind, 0, sizeof kind);
    *test = a;
    return 0;
}

static int teardown(void **test)
{
    struct agent *a = *test;
    struct node_orders none = {.index = UINT64_MAX};
    kind.hang_at_stop = false;
    agent_tasks_obey(a, &none);
    assert_int_equal(a->tasks.all.count, 0);
    map_finish(&a->tasks.all);
    free(a);
    return 0;
}

static struct task_order *order_in(struct node_orders *orders, const char *id, enum task_kind which)
{
    struct task_order *order = OBJECT_ADD(node_orders, orders, tasks);
    OBJECT_TEXT(task_order, order, id, id);
    OBJECT_SET(task_order, order, role, task_role_MAIN);
    OBJECT_SET(task, &order->task, kind, which);
    object_mark(&task_order_desc, order, "task");
    return order;
}

/* One order in an answer of that index. */
static void obey(struct agent *a, uint64_t index, const char *id, bool cancel, const char *endpoint)
{
    struct node_orders orders = {.index = index};
    if (id != NULL) {
        struct task_order *order = order_in(&orders, id, task_kind_SNAPSHOT_CREATE);
        OBJECT_SET(task_order, order, cancel, cancel);
        if (endpoint != NULL)
            OBJECT_TEXT(task, &order->task, peer_endpoint, endpoint);
    }
    agent_tasks_obey(a, &orders);
    OBJECT_CLEAR(node_orders, &orders);
}

static enum operation_state told(struct agent *a, size_t count)
{
    struct node_report report = {0};
    agent_tasks_put(a, &report);
    assert_int_equal(report.tasks.count, count);
    enum operation_state state = count > 0 ? ((struct task_seen *)report.tasks.items)->state : operation_state_COUNT;
    for (size_t i = 0; i < count; i++) /* as the controller will */
        assert_int_equal(object_validate(&task_seen_desc, (struct task_seen *)report.tasks.items + i, OBJECT_CREATE, NULL), 0);
    struct bytes_writer text = {.data = NULL};
    struct node_report read = {0};
    OBJECT_ENCODE(node_report, &report, &text);
    assert_int_equal(OBJECT_DECODE(node_report, (const char *)text.data, text.size, OBJECT_LENIENT, &read, NULL), 0);
    bytes_writer_finish(&text);
    OBJECT_CLEAR(node_report, &read);
    OBJECT_CLEAR(node_report, &report);
    return state;
}

static void an_order_is_begun_once(void **test)
{
    struct agent *a = *test;
    obey(a, 5, ID_1, false, NULL);
    obey(a, 5, ID_1, false, NULL);
    obey(a, 6, ID_1, false, NULL);
    assert_int_equal(kind.started, 1);
    assert_int_equal(kind.changed, 0);
    assert_true(agent_tasks_running(a));
    assert_int_equal(told(a, 1), operation_state_RUNNING);
    agent_task_progress(kind.last, "half way", 5, 10);
    agent_task_end(kind.last, operation_state_SUCCEEDED, NULL);
    assert_false(agent_tasks_running(a));
    assert_int_equal(told(a, 1), operation_state_SUCCEEDED);
    obey(a, 7, ID_1, false, NULL); /* the word has not arrived yet */
    assert_int_equal(kind.started, 1);
    obey(a, 8, NULL, false, NULL);
    assert_int_equal(kind.stopped, 0);
    told(a, 0);
    kind.end_at_start = true;
    obey(a, 9, ID_2, false, NULL);
    assert_int_equal(told(a, 1), operation_state_SUCCEEDED);
}

static void an_older_answer_ends_nothing(void **test)
{
    struct agent *a = *test;
    obey(a, 5, ID_1, false, NULL);
    obey(a, 4, NULL, false, NULL);
    told(a, 1);
    agent_tasks_new_cluster_epoch(a);
    obey(a, 4, NULL, false, NULL);
    assert_int_equal(kind.stopped, 1);
    told(a, 0);
}

static void news_reach_the_kind(void **test)
{
    struct agent *a = *test;
    obey(a, 5, ID_1, false, NULL);
    obey(a, 6, ID_1, false, "192.0.2.2:1");
    assert_int_equal(kind.changed, 1);
    assert_string_equal(kind.last->order.task.peer_endpoint, "192.0.2.2:1");
    obey(a, 7, ID_1, true, "192.0.2.2:1");
    obey(a, 8, ID_1, true, "192.0.2.2:1");
    assert_int_equal(kind.cancelled, 1);
    assert_int_equal(told(a, 1), operation_state_CANCELLED);
}

/* Restarted, the agent gets the order with the wish for its end. */
static void cancelled_before_it_began(void **test)
{
    struct agent *a = *test;
    obey(a, 5, ID_1, true, NULL);
    assert_int_equal(kind.started, 1);
    assert_int_equal(kind.cancelled, 1);
}

static void a_kind_takes_its_time_to_stop(void **test)
{
    struct agent *a = *test;
    kind.hang_at_stop = true;
    obey(a, 5, ID_1, false, NULL);
    obey(a, 6, NULL, false, NULL);
    obey(a, 7, NULL, false, NULL);
    assert_int_equal(kind.stopped, 1);
    obey(a, 8, ID_1, false, NULL); /* not begun under the one that stops */
    assert_int_equal(kind.started, 1);
    agent_task_stopped(kind.last);
    obey(a, 8, ID_1, false, NULL);
    assert_int_equal(kind.started, 2);
}

static void an_unknown_kind_fails_in_words(void **test)
{
    struct agent *a = *test;
    struct node_orders orders = {.index = 5};
    order_in(&orders, ID_1, task_kind_SNAPSHOT_DELETE);
    agent_tasks_obey(a, &orders);
    OBJECT_CLEAR(node_orders, &orders);
    assert_int_equal(told(a, 1), operation_state_FAILED);
}

/* Of controllers that are newer: one task that this agent has never heard of costs it nothing else of its orders. */
static void a_word_of_tomorrow_fails_alone(void **test)
{
    struct agent *a = *test;
    struct node_orders orders = {.index = 5}, read = {0};
    struct bytes_writer text = {.data = NULL};
    struct error err = {0};
    for (unsigned i = 0; i < 2; i++) {
        struct task_order *order = order_in(&orders, i == 0 ? ID_1 : ID_2, i == 0 ? task_kind_SNAPSHOT_DELETE : task_kind_SNAPSHOT_CREATE);
        OBJECT_TEXT(task, &order->task, host, ID_1);
    }
    object_mark(&node_orders_desc, &orders, "index");
    OBJECT_ENCODE(node_orders, &orders, &text);
    OBJECT_CLEAR(node_orders, &orders);
    CLEANUP_FREE char *words = xcalloc(1, text.size + 1);
    memcpy(words, text.data, text.size);
    bytes_writer_finish(&text);
    char *kind_word = strstr(words, "snapshot-delete");
    assert_non_null(kind_word);
    memcpy(kind_word, "snapshot-knight", strlen("snapshot-knight"));
    assert_true(OBJECT_DECODE(node_orders, words, strlen(words), OBJECT_STORED, &read, &err) < 0);
    assert_non_null(strstr(err.text, "must be one of"));
    if (OBJECT_DECODE(node_orders, words, strlen(words), OBJECT_LENIENT, &read, &err) < 0)
        fail_msg("%s: %s", err.field, err.text);
    agent_tasks_obey(a, &read);
    OBJECT_CLEAR(node_orders, &read);
    assert_int_equal(kind.started, 1);
    struct node_report report = {0};
    agent_tasks_put(a, &report);
    assert_int_equal(report.tasks.count, 2);
    for (size_t i = 0; i < 2; i++) {
        const struct task_seen *seen = (const struct task_seen *)report.tasks.items + i;
        bool is_known = strcmp(seen->id, ID_2) == 0;
        assert_int_equal(seen->state, is_known ? operation_state_RUNNING : operation_state_FAILED);
        if (!is_known)
            assert_non_null(strstr(seen->error_text, "upgrade it"));
    }
    OBJECT_CLEAR(node_report, &report);
}

/* A report with words that the controllers do not take says nothing at all. */
static void words_are_such_as_can_be_told(void **test)
{
    static const struct {
        const char *said, *told;
    } cases[] = {
        {"'r\xc3\xa9seau pr\xc3\xaat \xe2\x82\xac \xf0\x9f\x99\x82'", NULL},
        {"cut \xc3' short", "cut ?' short"},
        {"\xc3\xa9 and \xe2\x82", "\xc3\xa9 and ??"},
        {"\xff\xa9\xed\xa0\x80 two\nlines\x7f", "????? two?lines?"},
    };
    struct agent *a = *test;
    struct error err;
    char text[300] = "";
    obey(a, 5, ID_1, false, NULL);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        agent_task_progress(kind.last, cases[i].said, 0, 0);
        assert_string_equal(kind.last->seen.step, cases[i].told != NULL ? cases[i].told : cases[i].said);
        told(a, 1);
    }
    for (unsigned i = 0; i + 3 < sizeof text; i += 2) /* more than a step holds, and what it ends in is two bytes */
        memcpy(text + i, i == 0 ? "ab" : "\xc3\xa9", 3);
    agent_task_progress(kind.last, text + 1, 0, 0);
    assert_int_equal(strlen(kind.last->seen.step), 199);
    told(a, 1);
    error_set(&err, -EIO, ERROR_INTERNAL, "%s", cases[1].said);
    agent_task_end(kind.last, operation_state_FAILED, &err);
    assert_string_equal(kind.last->seen.error_text, cases[1].told);
    told(a, 1);
}

/* ---- children ---- */

/* What this program does as a child: by the words of its work. */
static int child_main(const char *work)
{
    if (strcmp(work, "well") == 0) {
        task_child_tell("half way", 1, 2);
        printf("{\"state\":\"succeeded\",\"step\":\"done\"}\n");
    } else if (strcmp(work, "silent") == 0) {
        return 3;
    } else if (strcmp(work, "nonsense") == 0) {
        printf("what?\n");
        fflush(stdout);
        pause();
    } else if (strcmp(work, "killed") == 0) {
        raise(SIGSEGV);
    } else {
        task_child_tell("for ever", 0, 0);
        pause();
    }
    return 0;
}

struct child_bed {
    uv_loop_t loop;
    struct task_child *child;
    unsigned told, done;
    bool kill;
    enum operation_state state;
    char text[200];
};

static void on_told(const struct task_seen *seen UNUSED, void *arg)
{
    struct child_bed *bed = arg;
    bed->told++;
    if (bed->kill)
        task_child_kill(bed->child);
}

static void on_done(const struct task_seen *seen, void *arg)
{
    struct child_bed *bed = arg;
    bed->done++;
    bed->state = seen->state;
    snprintf(bed->text, sizeof bed->text, "%s", seen->error_text != NULL ? seen->error_text : "");
}

static struct child_bed run(const char *work, bool kill)
{
    struct child_bed bed = {.kill = kill};
    const struct snapshot_work arguments = {0};
    struct error err;
    uv_loop_init(&bed.loop);
    const struct task_child_options options = {.loop = &bed.loop,
                                               .work = work,
                                               .desc = &snapshot_work_desc,
                                               .arguments = &arguments,
                                               .told = on_told,
                                               .done = on_done,
                                               .arg = &bed};
    assert_int_equal(task_child_start(&options, &bed.child, &err), 0);
    uv_run(&bed.loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&bed.loop), 0);
    assert_int_equal(bed.done, 1);
    return bed;
}

static void a_child_tells_and_ends(void **test UNUSED)
{
    struct child_bed bed = run("well", false);
    assert_int_equal(bed.told, 1);
    assert_int_equal(bed.state, operation_state_SUCCEEDED);
    bed = run("silent", false);
    assert_int_equal(bed.state, operation_state_FAILED);
    assert_non_null(strstr(bed.text, "status 3"));
    bed = run("nonsense", false);
    assert_int_equal(bed.state, operation_state_FAILED);
    bed = run("killed", false);
    assert_int_equal(bed.state, operation_state_FAILED);
    bed = run("long", true);
    assert_int_equal(bed.state, operation_state_CANCELLED);
}

/* Answers of a controller that is behind do not take away what was begun since. */
static void replicas_go_by_the_newest_orders(void **test)
{
    struct agent *a = *test;
    uv_loop_t loop;
    char dir[] = "/tmp/agent_replicas.XXXXXX";
    struct node_orders orders = {.index = 10};
    assert_non_null(mkdtemp(dir));
    assert_int_equal(uv_loop_init(&loop), 0);
    CLEANUP_FREE char *replica = xasprintf("%s/" ID_1, dir);
    assert_int_equal(mkdir(replica, 0700), 0);
    a->loop = &loop;
    a->replicas_dir = dir;
    orders.replicas.items = xcalloc(1, sizeof(char *));
    orders.replicas.items[orders.replicas.count++] = xstrdup(ID_1);
    object_mark(&node_orders_desc, &orders, "replicas");
    for (unsigned i = 0; i < 3; i++) {
        agent_replicas_obey(a, &orders);
        uv_run(&loop, UV_RUN_DEFAULT);
        assert_int_equal(access(replica, F_OK), i < 2 ? 0 : -1);
        if (i == 0)
            free(orders.replicas.items[--orders.replicas.count]);
        orders.index = i == 0 ? 9 : 11;
    }
    OBJECT_CLEAR(node_orders, &orders);
    assert_int_equal(uv_loop_close(&loop), 0);
    assert_int_equal(rmdir(dir), 0);
    a->replicas_dir = NULL;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_order_is_begun_once, setup, teardown),
        cmocka_unit_test_setup_teardown(an_older_answer_ends_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(news_reach_the_kind, setup, teardown),
        cmocka_unit_test_setup_teardown(cancelled_before_it_began, setup, teardown),
        cmocka_unit_test_setup_teardown(a_kind_takes_its_time_to_stop, setup, teardown),
        cmocka_unit_test_setup_teardown(an_unknown_kind_fails_in_words, setup, teardown),
        cmocka_unit_test_setup_teardown(a_word_of_tomorrow_fails_alone, setup, teardown),
        cmocka_unit_test_setup_teardown(words_are_such_as_can_be_told, setup, teardown),
        cmocka_unit_test_setup_teardown(replicas_go_by_the_newest_orders, setup, teardown),
        cmocka_unit_test(a_child_tells_and_ends),
    };
    if (argc == 4 && strcmp(argv[1], "task") == 0)
        return child_main(argv[2]);
    signal(SIGPIPE, SIG_IGN); /* as the agent does: a child may end before it is told what to do */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
