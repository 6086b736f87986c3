/* The guest's agent, played by the test: synchronising, calls in turn, refusals, silence, rubbish, a freeze that is
 * forgotten. Time is virtual: timers are fired by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "compute/vmm/guest_agent.h"

struct bench {
    pthread_mutex_t lock;
    struct io_loop *loop;
    struct guest_agent agent;
    char heard[65536]; /* what the agent in the guest has read */
    size_t heard_size, room;
    unsigned ends;
    int code;
    char words[512], answer[512];
};

static size_t on_send(void *arg, const uint8_t *data, size_t size)
{
    struct bench *b = arg;
    size = MIN(size, b->room);
    memcpy(b->heard + b->heard_size, data, size);
    b->heard_size += size;
    b->heard[b->heard_size] = '\0';
    return size;
}
static void on_end(void *arg, const json_t *answer, const struct error *err)
{
    struct bench *b = arg;
    b->ends++;
    b->code = err->code;
    snprintf(b->words, sizeof b->words, "%s", err->text);
    char *text = answer ? json_dumps(answer, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    snprintf(b->answer, sizeof b->answer, "%s", text ? text : "");
    free(text);
}
static void say(struct bench *b, const char *text)
{
    guest_agent_input(&b->agent, (const uint8_t *)text, strlen(text));
}
/* Forget what was heard, after checking that it is (or begins with) @text. */
static void expect(struct bench *b, const char *text)
{
    assert_string_equal(b->heard, text);
    b->heard_size = 0;
    b->heard[0] = '\0';
}
static void fire(struct io_timer *timer)
{
    assert_false(list_empty(&timer->link)); /* armed */
    io_timer_cancel(timer);
    timer->callback(timer->arg);
}
static int call(struct bench *b, const char *command)
{
    struct error err = {0};
    int code = guest_agent_call(&b->agent, command, NULL, false, 1000, on_end, b, &err);
    assert_int_equal(code < 0, err.text[0] != '\0');
    return code;
}

static int setup(void **state)
{
    struct bench *b = NEW(struct bench);
    pthread_mutex_init(&b->lock, NULL);
    assert_int_equal(io_loop_create(&b->lock, &b->loop, NULL), 0);
    b->room = 60000;
    guest_agent_init(&b->agent, b->loop, on_send, b);
    *state = b;
    return 0;
}
static int teardown(void **state)
{
    struct bench *b = *state;
    guest_agent_finish(&b->agent);
    io_loop_destroy(b->loop);
    pthread_mutex_destroy(&b->lock);
    free(b);
    return 0;
}
#define SYNC(n) "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":" #n "}}\n"
static void open_and_sync(struct bench *b)
{
    guest_agent_opened(&b->agent, true);
    assert_int_equal(call(b, "guest-ping"), 0);
    expect(b, SYNC(1));
    say(b, "left over of another time\n\xff{\"return\": 1}\n");
    expect(b, "{\"execute\":\"guest-ping\"}\n");
    say(b, "{\"return\": {}}\n");
    assert_int_equal(b->ends, 1);
    assert_int_equal(b->code, 0);
    assert_string_equal(b->answer, "{}");
}

static void test_calls(void **state)
{
    struct bench *b = *state;
    assert_int_equal(call(b, "guest-ping"), -ENOTCONN);
    open_and_sync(b);
    /* In turn, without a sync between them; answers in pieces. */
    assert_int_equal(call(b, "guest-a"), 0);
    assert_int_equal(call(b, "guest-b"), 0);
    expect(b, "{\"execute\":\"guest-a\"}\n");
    say(b, "{\"ret");
    say(b, "urn\": 7}");
    assert_int_equal(b->ends, 1);
    say(b, "\n");
    assert_string_equal(b->answer, "7");
    expect(b, "{\"execute\":\"guest-b\"}\n");
    say(b, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\\u0007 such\\nthing\"}}\n");
    assert_int_equal(b->code, -EREMOTEIO);
    assert_string_equal(b->words, "the guest's agent refuses: no  such thing");
    assert_int_equal(b->ends, 3);
    /* Words that are cut within a letter would be no UTF-8, and the answer that carries them no JSON. */
    char text[700] = "{\"error\": {\"desc\": \"x";
    for (unsigned i = 0; i < 200; i++)
        strcat(text, "\xc3\xa9");
    strcat(text, "\"}}\n");
    assert_int_equal(call(b, "guest-c"), 0);
    say(b, text);
    assert_int_equal(b->code, -EREMOTEIO);
    for (const char *at = b->words; *at != '\0'; at++)
        assert_in_range(*at, ' ', '~');
}

static void test_arguments(void **state)
{
    struct bench *b = *state;
    open_and_sync(b);
    json_t *arguments = json_pack("{s:s}", "mode", "powerdown");
    assert_int_equal(guest_agent_call(&b->agent, "guest-shutdown", arguments, true, 1000, on_end, b, NULL), 0);
    json_decref(arguments);
    expect(b, "{\"execute\":\"guest-shutdown\",\"arguments\":{\"mode\":\"powerdown\"}}\n");
    guest_agent_opened(&b->agent, false); /* the guest goes down: that is the answer */
    assert_int_equal(b->ends, 2);
    assert_int_equal(b->code, 0);
    char *big = xcalloc(1, GUEST_AGENT_OUT_BYTES_MAX);
    memset(big, 'x', GUEST_AGENT_OUT_BYTES_MAX - 1);
    guest_agent_opened(&b->agent, true);
    assert_int_equal(call(b, big), -E2BIG);
    free(big);
    assert_int_equal(call(b, "\xc3("), -EINVAL);
}

static void test_silence(void **state)
{
    struct bench *b = *state;
    open_and_sync(b);
    assert_int_equal(call(b, "guest-slow"), 0);
    expect(b, "{\"execute\":\"guest-slow\"}\n");
    fire(&b->agent.timeout);
    assert_int_equal(b->code, -ETIMEDOUT);
    /* The late answer is not taken for that of the next call: a sync comes first. */
    assert_int_equal(call(b, "guest-next"), 0);
    expect(b, SYNC(2));
    say(b, "{\"return\": \"late\"}\n\xff{\"return\": 1}\n");
    assert_int_equal(b->ends, 2);
    say(b, "\xff{\"return\": 2}\n");
    expect(b, "{\"execute\":\"guest-next\"}\n");
    say(b, "{\"return\": \"own\"}\n");
    assert_string_equal(b->answer, "\"own\"");
    /* No answer to the sync either. */
    assert_int_equal(call(b, "guest-slow"), 0);
    fire(&b->agent.timeout);
    assert_int_equal(call(b, "guest-slow"), 0);
    fire(&b->agent.timeout);
    assert_int_equal(b->ends, 5);
    assert_int_equal(b->code, -ETIMEDOUT);
}

static void test_limits(void **state)
{
    struct bench *b = *state;
    open_and_sync(b);
    for (unsigned i = 0; i < GUEST_AGENT_CALLS_MAX; i++)
        assert_int_equal(call(b, "guest-a"), 0);
    assert_int_equal(call(b, "guest-a"), -EBUSY);
    /* An endless line is not kept, and fails the call. */
    char piece[4096];
    memset(piece, 'x', sizeof piece);
    for (unsigned i = 0; i < 2 * GUEST_AGENT_LINE_BYTES_MAX / sizeof piece; i++)
        guest_agent_input(&b->agent, (const uint8_t *)piece, sizeof piece);
    assert_int_equal(b->ends, 1);
    say(b, "\n");
    assert_int_equal(b->ends, 2);
    assert_int_equal(b->code, -EBADMSG);
    guest_agent_opened(&b->agent, false);
    assert_int_equal(b->ends, 1 + GUEST_AGENT_CALLS_MAX);
    assert_int_equal(b->code, -ENOTCONN);
}

/* A port that takes a byte at a time. */
static void test_slow_port(void **state)
{
    struct bench *b = *state;
    b->room = 1;
    guest_agent_opened(&b->agent, true);
    assert_int_equal(call(b, "guest-ping"), 0);
    for (unsigned i = 0; i < 200; i++)
        guest_agent_flush(&b->agent);
    expect(b, SYNC(1));
}

static void test_freeze(void **state)
{
    struct bench *b = *state;
    struct error err;
    open_and_sync(b);
    assert_int_equal(guest_agent_freeze(&b->agent, 0, on_end, b, &err), -EINVAL);
    assert_int_equal(guest_agent_freeze(&b->agent, GUEST_AGENT_FREEZE_MS_MAX + 1, on_end, b, &err), -EINVAL);
    assert_int_equal(guest_agent_freeze(&b->agent, 500, on_end, b, &err), 0);
    expect(b, "{\"execute\":\"guest-fsfreeze-freeze\"}\n");
    say(b, "{\"return\": 3}\n");
    assert_true(b->agent.frozen);
    /* Nobody thaws: it is done from here, until it is answered. */
    fire(&b->agent.thaw);
    expect(b, "{\"execute\":\"guest-fsfreeze-thaw\"}\n");
    fire(&b->agent.timeout);
    assert_true(b->agent.frozen);
    fire(&b->agent.thaw);
    expect(b, SYNC(2));
    say(b, "\xff{\"return\": 2}\n");
    expect(b, "{\"execute\":\"guest-fsfreeze-thaw\"}\n");
    say(b, "{\"return\": 3}\n");
    assert_false(b->agent.frozen);
    /* Thawed in time: nothing more happens. */
    assert_int_equal(guest_agent_freeze(&b->agent, 500, on_end, b, &err), 0);
    say(b, "{\"return\": 3}\n");
    assert_int_equal(guest_agent_thaw(&b->agent, on_end, b, &err), 0);
    say(b, "{\"return\": 3}\n");
    b->heard_size = 0;
    b->heard[0] = '\0';
    assert_true(list_empty(&b->agent.thaw.link));
    expect(b, "");
}

/* A freeze that waits longer for its turn than it may last, and one of a guest that is frozen already. */
static void test_freeze_late(void **state)
{
    struct bench *b = *state;
    struct error err;
    open_and_sync(b);
    assert_int_equal(call(b, "guest-slow"), 0);
    assert_int_equal(guest_agent_freeze(&b->agent, 500, on_end, b, &err), 0);
    assert_true(list_empty(&b->agent.thaw.link)); /* it is not sent yet */
    b->heard_size = 0;
    say(b, "{\"return\": {}}\n");
    expect(b, "{\"execute\":\"guest-fsfreeze-freeze\"}\n");
    assert_false(list_empty(&b->agent.thaw.link));
    say(b, "{\"return\": 3}\n");
    assert_true(b->agent.frozen);
    uint64_t due = b->agent.thaw.due_ns;
    assert_int_equal(guest_agent_freeze(&b->agent, 60000, on_end, b, &err), 0);
    expect(b, "{\"execute\":\"guest-fsfreeze-freeze\"}\n");
    say(b, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"not while frozen\"}}\n");
    assert_true(b->agent.frozen);
    assert_int_equal(b->agent.thaw.due_ns, due);
    fire(&b->agent.thaw);
    expect(b, "{\"execute\":\"guest-fsfreeze-thaw\"}\n");
    say(b, "{\"return\": 3}\n");
    assert_false(b->agent.frozen);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_calls), T(test_arguments), T(test_silence), T(test_limits), T(test_slow_port), T(test_freeze),
        T(test_freeze_late),
    };
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
