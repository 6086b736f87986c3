/* vm console: the terminal of a VM's serial port over a WebSocket.
 *
 * 1. POST the console route: a one-time ticket and the path to use.
 * 2. WebSocket to a controller, which passes it on to the VM's host.
 * 3. Bytes go both ways until Ctrl-] is typed, the VM's console ends, or --seconds or --until say so.
 * The terminal is put back whatever ends it: at exit and on SIGTERM and SIGHUP. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>

#include "cli/client.h"
#include "cli/verb_functions.h"
#include "common/websocket.h"

#define ESCAPE_BYTE 0x1d /* Ctrl-] */
#define UNTIL_BYTES_MAX 256

struct attachment {
    uv_loop_t loop;
    uv_poll_t input;
    uv_timer_t deadline;
    uv_signal_t terminate;
    struct websocket *websocket;
    bool raw, input_open;
    struct termios saved;
    const char *until;
    char tail[2 * UNTIL_BYTES_MAX]; /* end of what was shown, for --until */
    size_t tail_size;
    bool found, escaped, timed_out, opened;
    char reason[300];
};

static void terminal_raw(struct attachment *a)
{
    struct termios t;
    if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &a->saved) < 0)
        return;
    t = a->saved;
    cfmakeraw(&t);
    a->raw = tcsetattr(STDIN_FILENO, TCSANOW, &t) == 0;
}

static void terminal_restore(struct attachment *a)
{
    if (a->raw)
        tcsetattr(STDIN_FILENO, TCSANOW, &a->saved);
    a->raw = false;
}

static void end(struct attachment *a)
{
    if (a->websocket != NULL)
        websocket_close(a->websocket, 1000, "");
    if (a->input_open)
        uv_poll_stop(&a->input);
}

static void on_input(uv_poll_t *poll, int status, int events)
{
    struct attachment *a = poll->data;
    char bytes[1024];
    (void)events;
    ssize_t n = status < 0 ? 0 : read(STDIN_FILENO, bytes, sizeof bytes);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) { /* end of input: go on showing; only a terminal's user can end it by hand */
        uv_poll_stop(&a->input);
        return;
    }
    const char *escape = a->raw ? memchr(bytes, ESCAPE_BYTE, (size_t)n) : NULL;
    size_t send = escape ? (size_t)(escape - bytes) : (size_t)n;
    if (a->websocket != NULL && send > 0 && websocket_send(a->websocket, false, bytes, send) == -ENOBUFS)
        fputc('\a', stderr); /* the VM does not read: say so rather than lose it silently */
    if (escape != NULL) {
        a->escaped = true;
        end(a);
    }
}

static void look_for_until(struct attachment *a, const uint8_t *data, size_t size)
{
    if (a->until == NULL)
        return;
    for (size_t i = 0; i < size && !a->found; i++) {
        if (a->tail_size == sizeof a->tail - 1) {
            memmove(a->tail, a->tail + UNTIL_BYTES_MAX, a->tail_size - UNTIL_BYTES_MAX);
            a->tail_size -= UNTIL_BYTES_MAX;
        }
        a->tail[a->tail_size++] = data[i] ? (char)data[i] : ' ';
        a->tail[a->tail_size] = '\0';
        size_t n = strlen(a->until);
        a->found = a->tail_size >= n && memcmp(a->tail + a->tail_size - n, a->until, n) == 0;
    }
    if (a->found)
        end(a);
}

static void on_message(struct websocket *websocket, bool text, const uint8_t *data, size_t size, void *arg)
{
    (void)websocket;
    (void)text;
    fwrite(data, 1, size, stdout);
    fflush(stdout);
    look_for_until(arg, data, size);
}

static void on_open(struct websocket *websocket, void *arg)
{
    struct attachment *a = arg;
    (void)websocket;
    a->opened = true;
    if (isatty(STDIN_FILENO))
        fprintf(stderr, "Attached; Ctrl-] ends it.\r\n");
    terminal_raw(a);
    if (a->input_open)
        uv_poll_start(&a->input, UV_READABLE, on_input);
}

static void on_close(struct websocket *websocket, int code, const char *reason, void *arg)
{
    struct attachment *a = arg;
    (void)websocket;
    a->websocket = NULL;
    snprintf(a->reason, sizeof a->reason, "%s%s", code == 1000 ? "" : reason && *reason ? reason : "the connection broke off", "");
    terminal_restore(a);
    if (a->input_open)
        uv_close((uv_handle_t *)&a->input, NULL);
    uv_close((uv_handle_t *)&a->deadline, NULL);
    uv_close((uv_handle_t *)&a->terminate, NULL);
}

static void on_deadline(uv_timer_t *timer)
{
    struct attachment *a = timer->data;
    a->timed_out = true;
    end(a);
}

static void on_terminate(uv_signal_t *signal, int number)
{
    struct attachment *a = signal->data;
    (void)number;
    a->escaped = true;
    terminal_restore(a);
    end(a);
}

static int attach(struct attachment *a, struct client *client, const char *path, unsigned seconds, struct error *err)
{
    static const struct websocket_callbacks callbacks = {.on_open = on_open, .on_message = on_message, .on_close = on_close};
    struct websocket_connect_options options = {
        .endpoint = client_endpoint(client), .target = path, .tls = client->tls, .peer_prefix = client->controllers};
    uv_loop_init(&a->loop);
    a->input_open = uv_poll_init(&a->loop, &a->input, STDIN_FILENO) == 0; /* fails for a plain file: no input then */
    uv_timer_init(&a->loop, &a->deadline);
    uv_signal_init(&a->loop, &a->terminate);
    a->input.data = a->deadline.data = a->terminate.data = a;
    uv_signal_start(&a->terminate, on_terminate, SIGTERM);
    if (seconds > 0)
        uv_timer_start(&a->deadline, on_deadline, (uint64_t)seconds * 1000, 0);
    int rc = websocket_connect(&a->loop, &options, &callbacks, a, &a->websocket, err);
    if (rc < 0)
        on_close(NULL, 1006, "", a);
    uv_run(&a->loop, UV_RUN_DEFAULT);
    uv_loop_close(&a->loop);
    if (rc < 0)
        return rc;
    if (a->until != NULL && !a->found && !a->escaped)
        return error_set(err, -ETIMEDOUT, ERROR_TIMEOUT, "'%s' was not shown%s%s", a->until, a->reason[0] ? ": " : "", a->reason);
    if (!a->escaped && !a->timed_out && a->reason[0] != '\0')
        return error_set(err, -EPROTO, ERROR_UNREACHABLE, "the console ended: %s", a->reason);
    return 0;
}

int vm_console(const struct invocation *call, struct error *err)
{
    struct client client;
    struct reply reply = {0};
    struct attachment attachment = {.until = invocation_option(call, "until")};
    const char *seconds = invocation_option(call, "seconds");
    if (attachment.until != NULL && strlen(attachment.until) > UNTIL_BYTES_MAX)
        return error_set(err, -EINVAL, ERROR_INVALID, "--until takes at most %d bytes", UNTIL_BYTES_MAX);
    unsigned limit = seconds ? (unsigned)strtoul(seconds, NULL, 10) : attachment.until ? call->timeout_s : 0;
    int rc = client_init(&client, call, err);
    CLEANUP_FREE char *path = client_path(ROUTE_ID_vm_console_ticket, call->name, "");
    if (rc == 0)
        rc = client_request(&client, "POST", path, NULL, &reply, err);
    const char *target = json_string_value(json_object_get(reply.json, "path"));
    if (rc == 0 && target == NULL)
        rc = error_set(err, -EPROTO, ERROR_INTERNAL, "the controller gave no path for the console");
    if (rc == 0)
        rc = attach(&attachment, &client, target, limit, err);
    reply_finish(&reply);
    client_finish(&client);
    return rc;
}
