/* The task backup-boot: a VM is started over what a backup has, and thrown away as soon as it has come up, or has not.
 *
 *   start --> WAITING --no other is here--> PLACING --the disks can be read--> STARTING --its VMM answers--> BOOTING
 *                |                             |                                  |                             |
 *                '-----------------------------+----- cancel, error, time over ---+------ it has come up -------'
 *                                                              |
 *                                                              v
 *                             ENDING: the VM is forgotten, with all that it wrote; then the child; then the last word
 *
 * PLACING: the task's child makes the VM's disks as a live restore does (backup_live.h): each knows that all of it is missing, and
 * drover-backup serves that. The VMM reads there what its guest wants, each time, and fills nothing in (vmm_disk.on_demand): the
 * host's disk holds what the guest writes, and no more. When too little room is left for that the VM goes.
 * BOOTING: its console is read as it is written, and where nobody has said what to wait for, its guest's agent is asked.
 *
 * Failure modes: its VMM does not start, ends or is killed: failed, with the reason, for nobody restarts it. The store goes away: the
 * guest's reads wait, and so does this until the time is over; that, or a host without room, says nothing of the backup. The child ends: it is begun again. This agent ends in order: the VM goes
 * before. It is killed: the VM goes at the next start (clean), and the task is begun again after that. What cannot be removed becomes a
 * leftover, which is tried again and keeps the next boot waiting. */
#include "compute/agent/task_boot.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "common/file.h"
#include "common/log.h"
#include "compute/agent/agent.h"
#include "compute/agent/agent_task.h"
#include "compute/agent/boot_console.h"
#include "compute/agent/task_child.h"
#include "compute/agent/vmm_user.h"

enum {
    BOOT_LOOK_MS = 250,
    BOOT_AGAIN_MS = 1000,       /* the child, after its end */
    BOOT_PREPARE_MS = 900000,   /* until its VMM answers: lists of the store and images may have to come first */
    BOOT_PING_MS = 2000,        /* its guest's agent has to answer */
    BOOT_GO_MS = 60000,         /* after which a VM that does not go is nobody's concern here any more */
    BOOT_GO_STOPPING_MS = 5000, /* the same while the agent ends */
    CONSOLE_CHUNK_BYTES = 32 * 1024,
    CONSOLE_CHUNKS_MAX = 16, /* at one look */
    CONSOLE_SAID_MAX = 400,
    WHAT_MAX = 240,  /* of what failed, beside the console's words */
    SHOWN_MAX = 80,  /* of what was waited for, and of what the store says, in that */
};
#define BOOT_FREE_BYTES_MIN (UINT64_C(256) << 20) /* what its writes leave of the host's disk */
#define BOOT_NO_STORE "the backup store is not known any more"
#define BOOT_PROMPT " login:"                     /* where nobody has said what to wait for */

enum boot_step { BOOT_WAITING, BOOT_PLACING, BOOT_STARTING, BOOT_BOOTING, BOOT_ENDING };

struct boot_task {
    struct agent_task *task;
    struct agent *agent;
    struct vm_order order; /* of its VM, as it was when the task began: orders that come later may have none, for its image has gone */
    enum boot_step step;
    uv_timer_t timer;
    uint64_t deadline_ms, began_ms; /* BOOTING: since its VMM answers */
    struct local_vm *vm;
    bool held, stirred, vm_closing; /* stirred: it was on its way to run */
    uid_t user;
    struct task_child *child;
    uint64_t child_again_ms;
    bool placed, killed;
    char store_says[201]; /* why the guest's reads wait; "": they do not */
    struct http_call *call;
    bool answered; /* its guest's agent has */
    /* its console */
    struct boot_console console;
    uint64_t console_bytes; /* read */
    /* how it ended */
    enum operation_state state;
    struct error err;
    bool booted, over;
    char seen[201];
    uint64_t seen_ms;
};

static void look(struct boot_task *b);

static void on_timer(uv_timer_t *timer)
{
    look(timer->data);
}

static void look_in(struct boot_task *b, uint64_t ms)
{
    if (!b->over)
        uv_timer_start(&b->timer, on_timer, ms, 0);
}

static uint64_t now_ms(const struct boot_task *b)
{
    return uv_now(b->agent->loop);
}

static const struct task_boot *arguments(const struct boot_task *b)
{
    return &b->task->order.task.backup.boot;
}

/* ---- its end ---- */

static void on_timer_closed(uv_handle_t *handle)
{
    struct boot_task *b = handle->data;
    struct agent_task *task = b->task;
    enum operation_state state = b->state;
    struct error err = b->err;
    if (b->agent->boots.at_work == task)
        b->agent->boots.at_work = NULL;
    if (b->booted) {
        struct backup_result *result = &task->seen.backup;
        OBJECT_SET(backup_result, result, booted, true);
        OBJECT_SET(backup_result, result, boot_ms, b->seen_ms);
        if (b->seen[0] != '\0')
            OBJECT_TEXT(backup_result, result, boot_seen, b->seen);
        object_mark(&task_seen_desc, &task->seen, "backup");
    }
    OBJECT_CLEAR(vm_order, &b->order);
    free(b);
    task->state = NULL;
    if (task->stopping)
        agent_task_stopped(task);
    else
        agent_task_end(task, state, &err);
}

static void on_vm_closed(void *arg)
{
    struct boot_task *b = arg;
    b->vm_closing = false;
    look_in(b, 0);
}

static void vm_go(struct boot_task *b)
{
    if (b->held)
        vm_hold(b->vm, false);
    b->held = false;
    vm_forget(b->vm, true);
    if (!vm_is_gone(b->vm) && now_ms(b) < b->deadline_ms) {
        look_in(b, BOOT_LOOK_MS);
        return;
    }
    struct local_vm *vm = TAKE_PTR(b->vm);
    if (vm_is_gone(vm) || b->agent->stopping) {
        b->vm_closing = true;
        vm_close(vm, on_vm_closed, b);
        return;
    }
    log_warning("boot-left", "operation=%s why=\"%s\"", b->task->order.id, "it cannot be removed yet");
    map_put(&b->agent->boots.leftovers, vm_id(vm), vm);
    look_in(b, 0);
}

static void child_end(struct boot_task *b)
{
    if (!b->killed)
        task_child_kill(b->child);
    b->killed = true;
}

/* One after the other, and each but once: whatever calls back comes here again. A VM that reads goes before what it reads from; files
 * that the child makes go after it. */
static void go_on_ending(struct boot_task *b)
{
    if (b->call != NULL || b->vm_closing)
        return;
    if (!b->placed && b->child != NULL) {
        child_end(b);
    } else if (b->vm != NULL) {
        vm_go(b);
    } else if (b->child != NULL) {
        child_end(b);
    } else if (!b->over) {
        b->over = true;
        uv_timer_stop(&b->timer);
        uv_close((uv_handle_t *)&b->timer, on_timer_closed);
    }
}

static void end(struct boot_task *b, enum operation_state state)
{
    if (b->step == BOOT_ENDING)
        return;
    b->step = BOOT_ENDING;
    b->state = state;
    b->deadline_ms = now_ms(b) + (b->agent->stopping ? BOOT_GO_STOPPING_MS : BOOT_GO_MS);
    if (b->call != NULL)
        http_call_cancel(b->call);
    look_in(b, 0);
}

/* It says something of the backup where the guest was let run. */
static void fail(struct boot_task *b, enum error_kind kind, const char *what)
{
    char said[CONSOLE_SAID_MAX], shown[WHAT_MAX + 1];
    if (b->step == BOOT_BOOTING) {
        boot_console_words(&b->console, said, sizeof said);
        text_copy(shown, sizeof shown, what);
        b->booted = true;
        b->seen_ms = now_ms(b) - b->began_ms;
        error_set(&b->err, -EIO, kind, "%s; its console's last words: %s", shown, said);
    } else {
        error_set(&b->err, -EIO, kind, "%s", what);
    }
    end(b, operation_state_FAILED);
}

/* It is its host that failed, or the store. */
static void fail_apart(struct boot_task *b, enum error_kind kind, const char *what)
{
    error_set(&b->err, -EIO, kind, "%s; nothing is said of the backup", what);
    end(b, operation_state_FAILED);
}

static void came_up(struct boot_task *b, const char *how)
{
    char text[320];
    b->booted = true;
    b->seen_ms = now_ms(b) - b->began_ms;
    text_copy(b->seen, sizeof b->seen, how);
    snprintf(text, sizeof text, "it came up within %llu.%llu s: %s", (unsigned long long)b->seen_ms / 1000,
             (unsigned long long)b->seen_ms / 100 % 10, how);
    agent_task_progress(b->task, text, 0, 0);
    end(b, operation_state_SUCCEEDED);
}

/* ---- the child: its disks ---- */

static int fill_work(const struct boot_task *b, struct backup_work *work, struct error *err)
{
    const struct vm_places *places = &b->agent->boots.context.places;
    const struct task_order *order = &b->task->order;
    const struct vm_disk *disks = b->order.disks.items;
    char control[VM_FILES_CONTROL_PATH_SIZE];
    CLEANUP_FREE char *source_path = vm_files_source_path(places, order->id);
    int r = vm_files_control_path(places, order->id, control, err);
    if (r == 0 && strlen(source_path) > object_field(&backup_work_desc, "source_path")->max)
        r = error_set(err, -ENAMETOOLONG, ERROR_NOT_SUPPORTED,
                      "the path of the agent's directory is too long for a socket in it: %s; give a shorter --data", source_path);
    if (r == 0 && !OBJECT_HAS(task_order, order, store))
        r = error_set(err, -ENOENT, ERROR_NOT_FOUND, BOOT_NO_STORE);
    OBJECT_SET(backup_work, work, kind, order->task.kind);
    OBJECT_COPY(task_backup, &work->task, &order->task.backup);
    object_mark(&backup_work_desc, work, "task");
    OBJECT_COPY(backup_store, &work->store, &order->store);
    object_mark(&backup_work_desc, work, "store");
    OBJECT_TEXT(backup_work, work, vm, order->id);
    OBJECT_TEXT(backup_work, work, host, b->agent->identity.name);
    OBJECT_SET(backup_work, work, user, b->user);
    if (b->agent->vm_context.places.user_base != 0) /* as task_backup.c */
        OBJECT_SET(backup_work, work, program_user, b->agent->vm_context.places.user_base + VMM_USERS + 1);
    OBJECT_TEXT(backup_work, work, live, order->id);
    OBJECT_SET(backup_work, work, placed, b->placed);
    OBJECT_TEXT(backup_work, work, control_path, control);
    if (r == 0)
        OBJECT_TEXT(backup_work, work, source_path, source_path);
    for (size_t i = 0; i < b->order.disks.count; i++) {
        if (disks[i].read_only)
            continue; /* it is as its image has it */
        CLEANUP_FREE char *raw = xasprintf("%s/%s/disks/%s.raw", places->vms_dir, order->id, disks[i].name);
        CLEANUP_FREE char *layers = xasprintf("%s/%s/disks/%s.layers", places->vms_dir, order->id, disks[i].name);
        struct backup_work_disk *disk = OBJECT_ADD(backup_work, work, disks);
        OBJECT_TEXT(backup_work_disk, disk, name, disks[i].name);
        OBJECT_TEXT(backup_work_disk, disk, raw, raw);
        OBJECT_TEXT(backup_work_disk, disk, layers, layers);
    }
    if (r == 0 && work->disks.count == 0)
        r = error_set(err, -EINVAL, ERROR_INVALID, "the VM in the backup has no disk that it writes to: there is nothing in the backup to boot");
    return r;
}

static void placed(struct boot_task *b)
{
    struct agent_boots *boots = &b->agent->boots;
    struct vm_order order = {.id = NULL};
    struct error err = {.code = 0};
    if (vm_files_set_restored(&boots->context.places, b->task->order.id, b->task->order.id, &err) < 0) {
        fail(b, err.kind, err.text);
        return;
    }
    b->placed = true;
    b->step = BOOT_STARTING;
    OBJECT_COPY(vm_order, &order, &b->order);
    OBJECT_SET(vm_order, &order, generation, order.generation + 1);
    OBJECT_SET(vm_order, &order, wanted, vm_wanted_RUNNING);
    vm_give_order(b->vm, &order, 0);
    OBJECT_CLEAR(vm_order, &order);
    vm_hold(b->vm, false);
    b->held = false;
    look_in(b, 0);
}

static void child_told(const struct task_seen *seen, void *arg)
{
    struct boot_task *b = arg;
    const char *step = seen->step != NULL ? seen->step : "";
    if (b->step == BOOT_PLACING && seen->ready)
        placed(b);
    else if (b->step == BOOT_PLACING)
        agent_task_progress(b->task, step, 0, 0);
    else if (strstr(step, "waits for the store") != NULL)
        text_copy(b->store_says, sizeof b->store_says, step);
    else
        b->store_says[0] = '\0';
}

static void child_done(const struct task_seen *seen, void *arg)
{
    struct boot_task *b = arg;
    b->child = NULL;
    if (b->step == BOOT_PLACING) {
        fail(b, error_kind_from_code(seen->error_code != NULL ? seen->error_code : "internal"),
             seen->error_text != NULL ? seen->error_text : "it does not say why");
        return;
    }
    b->child_again_ms = now_ms(b) + BOOT_AGAIN_MS;
    look_in(b, b->step == BOOT_ENDING ? 0 : BOOT_LOOK_MS);
}

static int child_start(struct boot_task *b, struct error *err)
{
    struct backup_work work = {0};
    int r = fill_work(b, &work, err);
    const struct task_child_options options = {.loop = b->agent->loop,
                                               .work = "backup",
                                               .desc = &backup_work_desc,
                                               .arguments = &work,
                                               .told = child_told,
                                               .done = child_done,
                                               .arg = b};
    if (r == 0)
        r = task_child_start(&options, &b->child, err);
    OBJECT_CLEAR(backup_work, &work);
    return r;
}

/* ---- its beginning ---- */

/* The directory of the VM, which says by its group whose it is (vmm_user.h): it is no number of a VM's that stays. */
static int directory_make(struct boot_task *b, struct error *err)
{
    const struct vm_places *places = &b->agent->boots.context.places;
    CLEANUP_FREE char *path = vm_files_path(places, b->task->order.id, "");
    CLEANUP_FREE char *disks = vm_files_path(places, b->task->order.id, "disks");
    int r = file_make_directories(path, 0700, err);
    if (r == 0 && places->user_base != 0 && (chown(path, 0, places->user_base) < 0 || chmod(path, 01770) < 0))
        r = error_errno(err, -errno, "cannot give %s to user %u", path, places->user_base);
    b->user = places->user_base;
    return r == 0 ? file_make_directories(disks, 0700, err) : r;
}

/* Who cannot tell does not judge. */
static bool room_is_left(struct boot_task *b, char *ret_words, size_t size)
{
    const struct agent_boots *boots = &b->agent->boots;
    struct statvfs fs;
    if (statvfs(boots->directory, &fs) < 0 || (uint64_t)fs.f_bavail * fs.f_frsize >= boots->free_bytes_min)
        return true;
    snprintf(ret_words, size, "what it writes would leave less than %llu MiB of its host's disk: make room there, or have it booted on another host",
             (unsigned long long)(boots->free_bytes_min >> 20));
    return false;
}

static void begin(struct boot_task *b)
{
    struct agent_boots *boots = &b->agent->boots;
    struct vm_order order = {.id = NULL};
    struct error err = {.code = 0};
    char words[200];
    boots->at_work = b->task;
    b->step = BOOT_PLACING;
    b->deadline_ms = now_ms(b) + BOOT_PREPARE_MS;
    if (!room_is_left(b, words, sizeof words)) {
        fail(b, ERROR_NO_SPACE, words);
        return;
    }
    int r = directory_make(b, &err);
    if (r == 0) {
        OBJECT_COPY(vm_order, &order, &b->order);
        OBJECT_SET(vm_order, &order, wanted, vm_wanted_STOPPED); /* until it has its disks */
        b->vm = vm_create(&boots->context, &order, 0);
        OBJECT_CLEAR(vm_order, &order);
        vm_hold(b->vm, true);
        b->held = true;
        r = child_start(b, &err);
    }
    if (r < 0)
        fail(b, err.kind, err.text);
    look_in(b, BOOT_LOOK_MS);
}

/* ---- it boots ---- */

/* What its VMM may have put there instead of a file is none of ours. */
static bool console_look(struct boot_task *b)
{
    CLEANUP_FREE char *path = vm_files_path(&b->agent->boots.context.places, b->task->order.id, "console.log");
    CLEANUP_FREE char *chunk = xcalloc(1, CONSOLE_CHUNK_BYTES);
    const char *pattern = arguments(b)->wait_for != NULL ? arguments(b)->wait_for : BOOT_PROMPT;
    CLEANUP_FD int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat st;
    bool has = false;
    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return false;
    if ((uint64_t)st.st_size < b->console_bytes)
        b->console_bytes = 0; /* it is bounded, and was begun anew */
    for (unsigned i = 0; !has && i < CONSOLE_CHUNKS_MAX; i++) {
        ssize_t n = pread(fd, chunk, CONSOLE_CHUNK_BYTES, (off_t)b->console_bytes);
        if (n <= 0)
            break;
        b->console_bytes += (uint64_t)n;
        has = boot_console_take(&b->console, chunk, (size_t)n, pattern);
    }
    return has;
}

static void on_pinged(const struct http_answer *answer, void *arg)
{
    struct boot_task *b = arg;
    b->call = NULL;
    b->answered = b->answered || (answer->error == 0 && answer->status / 100 == 2);
    if (b->step == BOOT_ENDING)
        look_in(b, 0);
}

static void ping(struct boot_task *b)
{
    struct vmm_agent_order order = {.command = vmm_agent_command_PING};
    struct bytes_writer body = {.data = NULL};
    OBJECT_SET(vmm_agent_order, &order, command, vmm_agent_command_PING);
    OBJECT_SET(vmm_agent_order, &order, timeout_ms, BOOT_PING_MS);
    OBJECT_ENCODE(vmm_agent_order, &order, &body);
    const struct http_call_options options = {
        .method = "POST",
        .url = "http://vmm/v1/vm/agent",
        .unix_socket = vm_control_path(b->vm),
        .body = body.data,
        .body_size = body.size,
        .deadline_ms = BOOT_PING_MS + VM_CONTROL_MS,
        .done = on_pinged,
        .arg = b,
    };
    (void)http_client_start(b->agent->http, &options, &b->call, NULL); /* it is asked again */
    bytes_writer_finish(&body);
    OBJECT_CLEAR(vmm_agent_order, &order);
}

static void state_words(const struct boot_task *b, char *words, size_t size)
{
    struct vm_seen seen = {.id = NULL};
    vm_put_seen(b->vm, &seen);
    bool says = seen.reason != NULL && seen.reason[0] != '\0';
    snprintf(words, size, "its VM is %s%s%.180s", vm_state_desc.names[vm_state_of(b->vm)], says ? ": " : "", says ? seen.reason : "");
    OBJECT_CLEAR(vm_seen, &seen);
}

/* Nobody starts it again. */
static bool has_ended(struct boot_task *b)
{
    enum vm_state state = vm_state_of(b->vm);
    bool ended = state == vm_state_FAILED || state == vm_state_STOPPED || state == vm_state_STOPPING;
    b->stirred = b->stirred || state == vm_state_FAILED || !ended;
    return b->stirred && ended;
}

static void timed_out(struct boot_task *b)
{
    const struct task_boot *given = arguments(b);
    char text[400], state[240], awaited[SHOWN_MAX + 1], says[SHOWN_MAX + 1];
    const char *waits = b->store_says[0] != '\0' ? "; " : "";
    if (b->step == BOOT_BOOTING && waits[0] == '\0' && vm_state_of(b->vm) == vm_state_PAUSED) { /* for its disk */
        state_words(b, state, sizeof state);
        text_copy(b->store_says, sizeof b->store_says, state);
        waits = "; ";
    }
    text_copy(says, sizeof says, b->store_says);
    text_copy(awaited, sizeof awaited, given->wait_for != NULL ? given->wait_for : "");
    if (b->step != BOOT_BOOTING)
        snprintf(text, sizeof text, "it could not be started within %d s%s%s", BOOT_PREPARE_MS / 1000, waits, b->store_says);
    else if (given->wait_for != NULL)
        snprintf(text, sizeof text, "within %u s (boot_timeout_s) no line of its console had '%s'%s%s", given->timeout_s,
                 awaited, waits, says);
    else
        snprintf(text, sizeof text, "within %u s (boot_timeout_s) neither its guest's agent answered nor its console had '" BOOT_PROMPT "'%s%s",
                 given->timeout_s, waits, says);
    if (b->step == BOOT_BOOTING && waits[0] != '\0')
        fail_apart(b, ERROR_TIMEOUT, text);
    else
        fail(b, ERROR_TIMEOUT, text);
}

static void go_on_starting(struct boot_task *b)
{
    char why[300];
    if (b->step != BOOT_STARTING)
        return;
    bool ended = has_ended(b), has = ended && console_look(b);
    if (vm_control_path(b->vm) != NULL || has || (ended && b->console_bytes > 0)) { /* perhaps a guest that was quick */
        b->step = BOOT_BOOTING;
        b->began_ms = now_ms(b);
        b->deadline_ms = b->began_ms + arguments(b)->timeout_s * UINT64_C(1000);
        agent_task_progress(b->task, "it boots", 0, 0);
    } else if (ended) {
        state_words(b, why, sizeof why);
        fail(b, ERROR_INTERNAL, why);
    } else {
        agent_task_progress(b->task, "starting its VM", 0, 0);
    }
}

static void go_on_booting(struct boot_task *b)
{
    char text[300];
    bool ended = has_ended(b); /* asked before its last words are read */
    if (b->console.seen[0] != '\0' || console_look(b)) {
        char how[BOOT_CONSOLE_WORDS + 40];
        snprintf(how, sizeof how, "its console said '%s'", b->console.seen);
        came_up(b, how);
    } else if (b->answered) {
        came_up(b, "its guest's agent answered");
    } else if (ended) {
        state_words(b, text, sizeof text);
        fail(b, ERROR_CONFLICT, text);
    } else if (!room_is_left(b, text, sizeof text)) {
        fail_apart(b, ERROR_NO_SPACE, text);
    } else if (arguments(b)->wait_for == NULL && b->call == NULL && vm_control_path(b->vm) != NULL) {
        ping(b);
    }
}

/* Of those before: an agent that was killed, a task that was given up. */
static void go_on_waiting(struct boot_task *b)
{
    struct agent_boots *boots = &b->agent->boots;
    if (boots->at_work == NULL && boots->leftovers.count == 0) {
        begin(b);
        return;
    }
    agent_task_progress(b->task, "waiting for the end of another VM that a backup was booted in here", 0, 0);
    look_in(b, BOOT_LOOK_MS);
}

static void look(struct boot_task *b)
{
    struct error err = {.code = 0};
    if (b->step == BOOT_WAITING) {
        go_on_waiting(b);
        return;
    }
    go_on_starting(b);
    if (b->step == BOOT_BOOTING)
        go_on_booting(b);
    if (b->step != BOOT_ENDING && now_ms(b) >= b->deadline_ms)
        timed_out(b);
    if (b->step == BOOT_ENDING) {
        go_on_ending(b);
        return;
    }
    if (b->child == NULL && b->placed && now_ms(b) >= b->child_again_ms && child_start(b, &err) < 0) {
        log_warning("boot-source", "operation=%s error=\"%s\"", b->task->order.id, err.text);
        b->child_again_ms = now_ms(b) + BOOT_AGAIN_MS;
    }
    look_in(b, BOOT_LOOK_MS);
}

/* ---- the task ---- */

static void start(struct agent_task *task)
{
    struct boot_task *b = NEW(struct boot_task);
    b->task = task;
    b->agent = task->agent;
    task->state = b;
    uv_timer_init(b->agent->loop, &b->timer);
    b->timer.data = b;
    if (!OBJECT_HAS(task_order, &task->order, store))
        fail(b, ERROR_NOT_FOUND, BOOT_NO_STORE);
    else if (!OBJECT_HAS(task_order, &task->order, boot) || strcmp(task->order.boot.id, task->order.id) != 0)
        fail(b, ERROR_NOT_FOUND, "the VM in the backup cannot be made any more: the backup's record or the image that it boots has gone");
    else
        OBJECT_COPY(vm_order, &b->order, &task->order.boot);
    look_in(b, 0);
}

static void cancel(struct agent_task *task)
{
    struct boot_task *b = task->state;
    if (b->step == BOOT_ENDING)
        return;
    error_set(&b->err, -ECANCELED, ERROR_CANCELLED, "cancelled: nothing is said of the backup");
    end(b, operation_state_CANCELLED);
}

static void stop(struct agent_task *task)
{
    struct boot_task *b = task->state;
    error_set(&b->err, -ECANCELED, ERROR_CANCELLED, "given up");
    if (b->step == BOOT_ENDING && b->agent->stopping)
        b->deadline_ms = MIN(b->deadline_ms, now_ms(b) + BOOT_GO_STOPPING_MS);
    end(b, operation_state_CANCELLED);
}

/* ---- what is left of others ---- */

static void on_vm_changed(struct local_vm *vm, void *arg)
{
    struct agent *a = arg;
    struct boot_task *b = a->boots.at_work != NULL ? a->boots.at_work->state : NULL;
    if (map_get(&a->boots.leftovers, vm_id(vm)) == vm) {
        if (!vm_is_gone(vm) || a->stopping)
            return;
        log_info("boot-removed", "id=%s", vm_id(vm));
        map_remove(&a->boots.leftovers, vm_id(vm));
        a->closing++;
        vm_close(vm, agent_part_closed, a);
    } else if (b != NULL && b->vm == vm) {
        look_in(b, 0);
    }
}

static void leftovers_remove(struct agent *a)
{
    struct agent_boots *boots = &a->boots;
    struct dirent *entry;
    const char *rule;
    vm_files_remove_leftovers(&boots->context.places);
    DIR *d = opendir(boots->directory);
    while (d != NULL && (entry = readdir(d)) != NULL) {
        struct error err = {.code = 0};
        struct local_vm *vm;
        if (!text_format_ok(FORMAT_id, entry->d_name, &rule))
            continue;
        if (vm_load(&boots->context, entry->d_name, &vm, &err) == 0) {
            map_put(&boots->leftovers, vm_id(vm), vm);
            vm_forget(vm, true);
        } else if (vm_files_remove(&boots->context.places, entry->d_name, NULL, true, &err) < 0) { /* one that was never started */
            log_warning("boot-left", "id=%s error=\"%s, ignoring\"", entry->d_name, err.text);
        }
    }
    if (d != NULL)
        closedir(d);
}

static void clean(struct agent *a)
{
    struct agent_boots *boots = &a->boots;
    struct vm_places *places = &boots->context.places;
    struct error err = {.code = 0};
    boots->directory = xasprintf("%s/boot", a->data_dir);
    boots->cgroups = a->cgroups;
    boots->cgroups.last = true;
    boots->free_bytes_min = BOOT_FREE_BYTES_MIN;
    boots->context = a->vm_context;
    boots->context.lease = NULL;
    boots->context.pools = NULL;
    boots->context.changed = on_vm_changed;
    boots->context.arg = a;
    places->vms_dir = boots->directory;
    places->replicas_dir = NULL;
    places->cgroups = &boots->cgroups;
    places->network = NULL;
    places->make_bridges = places->shared_memory = false;
    places->throw_away = true;
    if (places->user_base != 0)
        places->user_base += VMM_USER_THROW_AWAY;
    if (file_make_directories(boots->directory, 0700, &err) < 0)
        log_warning("boot-directory", "error=\"%s, ignoring\"", err.text);
    leftovers_remove(a);
}

void agent_boots_stop(struct agent *a)
{
    struct local_vm *vm;
    for (size_t i = 0; (vm = map_next(&a->boots.leftovers, &i)) != NULL;) {
        a->closing++;
        vm_close(vm, agent_part_closed, a);
    }
}

void agent_boots_free(struct agent *a)
{
    map_finish(&a->boots.leftovers);
    free(TAKE_PTR(a->boots.directory));
}

const struct agent_task_ops task_boot_ops = {.start = start, .cancel = cancel, .stop = stop, .clean = clean};
