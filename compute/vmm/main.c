/* drover-vmm: one virtual machine.
 *
 * Reads the configuration, builds the machine, opens the control socket, runs the control loop until the machine has
 * come to an end, and leaves with a status that says how. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>

#include "common/file.h"
#include "common/log.h"
#include "compute/vmm/control.h"
#include "compute/vmm/cpu_model.h"
#include "compute/vmm/jail.h"
#include "compute/vmm/machine.h"
#include "compute/vmm/machine_incoming.h"
#include "compute/vmm/machine_migrate.h"
#include "compute/vmm/machine_points.h"
#include "compute/vmm/machine_snapshot.h"
#include "migration/page_faults.h"
#include "migration/snapshot_memory.h"

#define CONFIG_BYTES_MAX 1048576u
#define DISKS_MAX 16u /* of vmm_config */

enum exit_status {
    STATUS_OK = 0,           /* the guest powered off, or the VM was stopped by request */
    STATUS_ERROR = 1,        /* could not start */
    STATUS_USAGE = 2,        /* bad option or configuration */
    STATUS_RESET = 3,        /* with --no-restart: the guest reset */
    STATUS_TRIPLE_FAULT = 4, /* with --no-restart: the guest's processor gave up */
    STATUS_FAILURE = 5,      /* KVM or the VMM could not go on */
    STATUS_MIGRATED = 7,     /* it runs in another VMM */
    /* SANDBOX_STATUS = 6: a thread made a system call that it has no business with (sandbox.h) */
};

struct options {
    const char *config, *control, *restore, *incoming, *incoming_disks;
    bool console_stdio, verify, cpu_baseline;
    uid_t user; /* 0: no jail */
    enum sandbox_mode sandbox;
    struct machine_options machine;
};

static const char help[] =
    "drover-vmm - run one virtual machine\n"
    "\n"
    "  drover-vmm --config FILE [--control PATH] [--console stdio] [--no-restart] [--log-level LEVEL]\n"
    "  drover-vmm --config FILE --multiboot FILE [--debug-exit] [--hide-x2apic] ...\n"
    "  drover-vmm --restore FILE [--config FILE] [--verify] ...\n"
    "  drover-vmm --incoming unix:PATH --config FILE ...\n"
    "  drover-vmm --cpu-baseline\n"
    "\n"
    "  --config FILE      the VM as JSON (schema: vmm_config)\n"
    "  --restore FILE     go on from a snapshot; --config may be left out: then it is the one in the snapshot\n"
    "  --verify           compare the snapshot's memory with its checksums first\n"
    "  --incoming ADDRESS wait at unix:PATH for another VMM to migrate the VM to here (its control socket:\n"
    "                     POST /v1/vm/migration {\"to\": \"unix:PATH\"}); --config says what it is like on this host\n"
    "  --incoming-disks ADDRESS\n"
    "                     take the content of disks that are this host's own (\"copied\" in FILE) at unix:PATH\n"
    "  --handed-over      with --incoming: the other VMM is on this host and hands memory and taps over by descriptor\n"
    "                     (its order says \"hand_over\"); nothing is copied\n"
    "  --control PATH     Unix socket for control; instead of control_path in FILE\n"
    "  --console stdio    show the serial console here and send it what is typed\n"
    "  --no-restart       end when the guest resets, instead of booting it again\n"
    "  --log-level LEVEL  error, warning, info (default) or debug; the log goes to standard error\n"
    "\n"
    "  --sandbox MODE     on (default): a thread that makes a system call it has no business with ends the VMM; log:\n"
    "                     the kernel only logs it; off\n"
    "  --user UID         leave root for this user (a number), and have no files in view but the directory of the\n"
    "                     configuration and what the configuration names; snapshots, disks that are plugged in later\n"
    "                     and sockets of migrations belong into that directory. The log says what it runs without\n"
    "\n"
    "  --cpu-baseline     only print the highest named cpu_model that this host's processors can be (host: none)\n"
    "\n"
    "For developers, with freestanding test programs such as kvm-unit-tests (see docs/vmm-judges.md):\n"
    "  --multiboot FILE   boot this 32-bit multiboot ELF instead of the kernel; cmdline are its arguments, initrd is\n"
    "                     its environment, lines of NAME=VALUE\n"
    "  --accel none       without KVM: the same machine, but the guest is a program in C that ticks, echoes and drives\n"
    "                     disks; what is given to boot is loaded and not run. Tests alone want this; kvm: the default\n"
    "  --debug-exit       add the test device: a write of N to port 0xf4 ends with exit status N*2+1\n"
    "  --hide-x2apic      a processor without x2APIC: the guest finds its APIC in memory only\n"
    "\n"
    "Example:\n"
    "  cat > vm.json <<'END'\n"
    "  {\"name\": \"try\", \"vcpus\": 2, \"memory_bytes\": 536870912,\n"
    "   \"kernel\": \"/boot/vmlinuz\", \"initrd\": \"/boot/initrd.img\", \"cmdline\": \"console=ttyS0\",\n"
    "   \"disks\": [{\"path\": \"/var/lib/try.raw\"}]}\n"
    "  END\n"
    "  drover-vmm --config vm.json --control /run/try.sock --console stdio\n"
    "A disk with a boot loader of its own, such as a cloud image: instead of kernel, initrd and cmdline give\n"
    "  \"firmware\": \"bios\"   or   \"firmware\": \"uefi\", \"firmware_vars_path\": \"/var/lib/try.vars\"\n"
    "  curl --unix-socket /run/try.sock http://vm/v1/vm\n"
    "  curl --unix-socket /run/try.sock -X PUT -d '{\"state\": \"paused\"}' http://vm/v1/vm/state\n"
    "  curl --unix-socket /run/try.sock -X POST -d '{\"path\": \"/var/lib/try.snap\"}' http://vm/v1/vm/snapshot\n"
    "\n"
    "Exit status: 0 the guest powered off or the VM was stopped; 1 it could not be started; 2 bad option or\n"
    "configuration; 3 the guest reset (with --no-restart); 4 triple fault (with --no-restart); 5 the VM failed;\n"
    "6 the sandbox was violated; 7 the VM was migrated and runs elsewhere.\n";

static int user_parse(const char *word, uid_t *ret_user)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(word, &end, 10);
    if (word[0] < '0' || word[0] > '9' || *end != '\0' || errno != 0 || value == 0 || value >= UINT32_MAX)
        return -EINVAL;
    *ret_user = (uid_t)value;
    return 0;
}

static int options_parse(int argc, char **argv, struct options *o)
{
    static const struct option names[] = {
        {"config", required_argument, NULL, 'c'},
        {"control", required_argument, NULL, 's'},
        {"restore", required_argument, NULL, 'r'},
        {"incoming", required_argument, NULL, 'i'},
        {"incoming-disks", required_argument, NULL, 'k'},
        {"handed-over", no_argument, NULL, 'w'},
        {"verify", no_argument, NULL, 'v'},
        {"console", required_argument, NULL, 'o'},
        {"no-restart", no_argument, NULL, 'n'},
        {"multiboot", required_argument, NULL, 'm'},
        {"sandbox", required_argument, NULL, 'x'},
        {"user", required_argument, NULL, 'u'},
        {"debug-exit", no_argument, NULL, 'd'},
        {"hide-x2apic", no_argument, NULL, 'p'},
        {"accel", required_argument, NULL, 'a'},
        {"cpu-baseline", no_argument, NULL, 'b'},
        {"log-level", required_argument, NULL, 'l'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    enum log_level level;
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) >= 0) {
        if (option == 'c') {
            o->config = optarg;
        } else if (option == 's') {
            o->control = optarg;
        } else if (option == 'o' && strcmp(optarg, "stdio") == 0) {
            o->console_stdio = true;
        } else if (option == 'r') {
            o->restore = optarg;
        } else if (option == 'i') {
            o->incoming = optarg;
            o->machine.incoming = true;
        } else if (option == 'k') {
            o->incoming_disks = optarg;
        } else if (option == 'w') {
            o->machine.handed_over = true;
        } else if (option == 'v') {
            o->verify = true;
        } else if (option == 'n') {
            o->machine.exit_on_reset = true;
        } else if (option == 'm') {
            o->machine.multiboot = optarg;
        } else if (option == 'x' && sandbox_parse_mode(optarg, &o->sandbox) == 0) {
            continue;
        } else if (option == 'u' && user_parse(optarg, &o->user) == 0) {
            continue;
        } else if (option == 'a' && (strcmp(optarg, "none") == 0 || strcmp(optarg, "kvm") == 0)) {
            o->machine.without_kvm = strcmp(optarg, "none") == 0;
        } else if (option == 'b') {
            o->cpu_baseline = true;
        } else if (option == 'd') {
            o->machine.debug_exit = true;
        } else if (option == 'p') {
            o->machine.hide_x2apic = true;
        } else if (option == 'l' && log_parse_level(optarg, &level) == 0) {
            log_set_level(level);
        } else if (option == 'h') {
            fputs(help, stdout);
            exit(STATUS_OK);
        } else {
            if (option != '?')
                fprintf(stderr, "drover-vmm: \"%s\" is not possible there\n", optarg);
            return -EINVAL;
        }
    }
    if (o->cpu_baseline && optind == argc)
        return 0;
    if (optind != argc || (!o->config && !o->restore) || (o->verify && !o->restore) ||
        (o->incoming && (!o->config || o->restore)) || (o->machine.handed_over && (!o->incoming || o->incoming_disks))) {
        fputs("drover-vmm: give --config FILE, --restore FILE or both (--incoming: only --config), and nothing else; see --help\n", stderr);
        return -EINVAL;
    }
    if (o->user != 0 && !o->config) {
        fputs("drover-vmm: --user needs --config FILE: its directory is what the user sees\n", stderr);
        return -EINVAL;
    }
    return 0;
}

/* Both the words for a person and the log line. */
static void report(const char *event, const struct error *err)
{
    char quoted[640];
    log_error(event, "error=%s field=%s", log_quote(err->text, quoted, sizeof(quoted)),
              err->field[0] ? err->field : "-");
}

static int config_read(const char *path, struct vmm_config *ret_config, struct error *err)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open %s", path);
    CLEANUP_FREE char *text = malloc(CONFIG_BYTES_MAX);
    if (!text)
        return error_errno(err, -ENOMEM, "cannot read %s", path);
    size_t size = 0;
    ssize_t n;
    while ((n = read(fd, text + size, CONFIG_BYTES_MAX - size)) > 0)
        size += (size_t)n;
    if (n < 0)
        return error_errno(err, -errno, "cannot read %s", path);
    if (size == CONFIG_BYTES_MAX)
        return error_set(err, -EFBIG, ERROR_TOO_LARGE, "%s is larger than %u bytes", path, CONFIG_BYTES_MAX);
    int code = OBJECT_DECODE(vmm_config, text, size, OBJECT_CREATE, ret_config, err);
    if (code < 0)
        error_prefix(err, "%s: ", path);
    return code;
}

/* ---- running ---- */

struct program {
    struct options options;
    struct vmm_config config;
    pthread_mutex_t lock; /* of the control loop; nobody else takes it */
    struct io_loop *loop;
    struct console console;
    struct machine machine;
    int control_fd; /* until `control` has it */
    struct control *control;
    struct sandbox *sandbox;
    struct machine_restore restore; /* file NULL: it boots */
    char *points, *resume;          /* directory of the memory of points; the one to go on from. NULL: none */
    int signal_fd;
    struct io_handler *signal_handler;
    char failure[401]; /* why the machine failed; as long as vmm_exit.reason may be */
    struct migrate_progress left; /* STATUS_MIGRATED: how that went */
};

static void on_signal(void *arg, uint32_t events)
{
    struct program *p = arg;
    struct signalfd_siginfo info;
    (void)events;
    if (read(p->signal_fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
        return;
    log_info("signal", "number=%u", info.ssi_signo);
    machine_stop(&p->machine, NULL);
}

/* TERM and INT stop the VM. Blocked in every thread, so before the first is started. */
static int signals_open(struct program *p, struct error *err)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    p->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (p->signal_fd < 0)
        return error_errno(err, -errno, "cannot watch for signals");
    return io_loop_add(p->loop, p->signal_fd, EPOLLIN, on_signal, p, &p->signal_handler, err);
}

static int console_open(struct program *p, struct error *err)
{
    const char *path = p->config.console_log_path;
    int code = path ? console_log_file(&p->console, path, err) : 0;
    if (code < 0)
        return code;
    return p->options.console_stdio ? console_log_to(&p->console, STDOUT_FILENO, STDIN_FILENO, err) : 0;
}

static const char *control_path(const struct program *p)
{
    return p->options.control ? p->options.control : p->config.control_path;
}

/* Every file that the configuration and the options name and that may lie outside the directory of the configuration.
 * @layers: directories of disks with layers, which come and go; the caller frees them. */
static size_t files_named(const struct program *p, struct jail_file files[JAIL_FILES_MAX], char *layers[DISKS_MAX])
{
    const struct vmm_config *c = &p->config;
    const struct vmm_disk *disks = c->disks.items;
    const char *firmware[FIRMWARE_FILES_MAX];
    const char *const single[] = {c->kernel, c->initrd, c->lease_path, p->options.machine.multiboot};
    size_t n = 0, firmware_count = machine_firmware_files(c, firmware);
    STATIC_ASSERT(ARRAY_SIZE(single) + FIRMWARE_FILES_MAX + DISKS_MAX <= JAIL_FILES_MAX, "disks as in the schema");
    for (size_t i = 0; i < ARRAY_SIZE(single); i++)
        if (single[i] != NULL)
            files[n++] = (struct jail_file){single[i], false, false};
    for (size_t i = 0; i < firmware_count; i++)
        files[n++] = (struct jail_file){firmware[i], false, false};
    for (size_t i = 0; i < c->disks.count && i < DISKS_MAX; i++)
        if (disks[i].path != NULL && disks[i].format == disk_format_LAYERS) {
            layers[i] = xstrdup(disks[i].path);
            char *slash = strrchr(layers[i], '/');
            *(slash != NULL ? slash : layers[i]) = '\0';
            files[n++] = (struct jail_file){layers[i], true, true};
        } else if (disks[i].path != NULL) {
            files[n++] = (struct jail_file){disks[i].path, !disks[i].read_only, false};
        }
    return n;
}

static int program_jail(struct program *p, struct error *err)
{
    struct jail_file files[JAIL_FILES_MAX];
    char *layers[DISKS_MAX] = {NULL};
    if (p->options.user == 0) {
        log_info("no-jail", "vm=%s user=%u without=\"own user, own view of files\"", p->config.name, geteuid());
        return 0;
    }
    CLEANUP_FREE char *config = realpath(p->options.config, NULL);
    char *slash = config != NULL ? strrchr(config, '/') : NULL;
    if (slash == NULL || slash == config)
        return error_set(err, -EINVAL, ERROR_INVALID, "--user: put %s into a directory of its own", p->options.config);
    *slash = '\0';
    const struct jail_options jail = {
        .user = p->options.user, .home = config, .files = files, .file_count = files_named(p, files, layers)};
    int code = jail_enter(&jail, err);
    for (size_t i = 0; i < ARRAY_SIZE(layers); i++)
        free(layers[i]);
    if (code == 0)
        log_info("jail", "vm=%s user=%u home=%s", p->config.name, jail.user, jail.home);
    return code;
}

/* Before the jail, for KVM's faults need the privilege. Without it a migration to here can only be pre-copy. */
static void faults_open(struct program *p)
{
    struct error err;
    char quoted[640];
    if (!p->options.incoming || p->options.machine.handed_over)
        return;
    p->options.machine.fault_fd = page_faults_open(false, &err);
    if (p->options.machine.fault_fd < 0)
        log_info("no-post-copy", "vm=%s why=%s", p->config.name, log_quote(err.text, quoted, sizeof(quoted)));
}

static bool same(const char *a, const char *b)
{
    return a != NULL && b != NULL && strcmp(a, b) == 0;
}

/* Every device of the configuration in the slot that it was in: the guest knows it by that, however it came there. */
static void slots_recall(struct vmm_config *config, const struct vmm_config *saved)
{
    struct vmm_disk *disks = config->disks.items;
    struct vmm_nic *nics = config->nics.items;
    const struct vmm_disk *saved_disks = saved->disks.items;
    const struct vmm_nic *saved_nics = saved->nics.items;
    for (size_t i = 0; i < config->disks.count; i++)
        for (size_t k = 0; k < saved->disks.count; k++)
            if (same(disks[i].id, saved_disks[k].id) || (disks[i].id == NULL && same(disks[i].serial, saved_disks[k].serial)))
                OBJECT_SET(vmm_disk, &disks[i], slot, saved_disks[k].slot);
    for (size_t i = 0; i < config->nics.count; i++)
        for (size_t k = 0; k < saved->nics.count; k++)
            if (same(nics[i].id, saved_nics[k].id))
                OBJECT_SET(vmm_nic, &nics[i], slot, saved_nics[k].slot);
}

/* In words that are short enough to be a VM's reason, with the cure. */
static int resume_failed(const struct program *p, int code, struct error *err)
{
    size_t length = strlen(p->points);
    if (strncmp(err->text, p->points, length) == 0 && err->text[length] == '/')
        memmove(err->text, err->text + length + 1, strlen(err->text + length + 1) + 1);
    error_prefix(err, "cannot go on from the snapshot's memory (to boot instead: drover snapshot revert NAME --disks-only): ");
    return code;
}

/* Its disks may have been put back to a point with memory, and a file beside them say that it goes on from there, once (snapshot_memory.h).
 * Opened behind the walls, for a VMM has written it. Whoever starts in another way has that word taken back. */
static int resume_look(struct program *p, struct error *err)
{
    p->points = machine_points_directory(&p->config);
    if (p->points == NULL || p->options.incoming != NULL)
        return 0;
    if (p->options.restore != NULL)
        return snapshot_resume_clear(p->points, err);
    int code = snapshot_resume_read(p->points, &p->resume, err);
    if (code < 0 || p->resume == NULL)
        return code;
    CLEANUP_FREE char *path = snapshot_memory_path(p->points, p->resume);
    code = snapshot_open(path, &p->restore.file, err);
    if (code < 0)
        return resume_failed(p, code, err);
    p->restore.how = SNAPSHOT_VERIFY | SNAPSHOT_COPY; /* the snapshot may be deleted, and the VM be handed to another VMM */
    p->restore.resume = p->resume;
    p->restore.directory = p->points;
    slots_recall(&p->config, &snapshot_description(p->restore.file)->config);
    return 0;
}

/* With the disks open: were they written to since, that memory is worth nothing, and it boots. */
static int resume_check(struct program *p, struct error *err)
{
    char quoted[640];
    if (p->restore.resume == NULL || machine_points_are_at(&p->machine, p->restore.resume, err) == 0)
        return 0;
    log_warning("resume-stale", "vm=%s point=%s why=%s", p->config.name, p->restore.resume, log_quote(err->text, quoted, sizeof(quoted)));
    snapshot_close(TAKE_PTR(p->restore.file));
    p->restore.resume = NULL;
    return snapshot_resume_clear(p->points, err);
}

static int machine_begin(struct program *p, struct error *err)
{
    int code = resume_check(p, err);
    if (code < 0)
        return code;
    if (p->restore.file)
        code = machine_start_restored(&p->machine, machine_restore_load, &p->restore, p->config.paused, err);
    else if (p->options.incoming)
        code = machine_incoming_start(&p->machine, p->options.incoming, p->options.incoming_disks, err);
    else
        code = machine_start(&p->machine, p->config.paused, err);
    if (code == 0 && p->restore.file)
        machine_restore_announce(&p->machine);
    return code < 0 && p->restore.resume != NULL ? resume_failed(p, code, err) : code;
}

static int program_start(struct program *p, struct error *err)
{
    const char *path = control_path(p);
    faults_open(p);
    int code = path != NULL ? control_bind(path, &p->control_fd, err) : 0;
    /* Before the first thread is started, so that none is without; and before anything is opened that is the guest's. */
    if (code < 0 || (code = program_jail(p, err)) < 0 || 
        (code = sandbox_create(p->options.sandbox, p->options.machine.fault_fd > 0, &p->sandbox, err)) < 0 ||
        (code = sandbox_enter(p->sandbox, SANDBOX_BASE, err)) < 0 || (code = signals_open(p, err)) < 0 ||
        (code = console_open(p, err)) < 0 || (code = resume_look(p, err)) < 0)
        return code;
    p->options.machine.sandbox = p->sandbox;
    code = machine_init(&p->machine, &p->config, &p->options.machine, p->loop, &p->console, err);
    if (code < 0)
        return p->restore.resume != NULL ? resume_failed(p, code, err) : code;
    if (path != NULL) {
        code = control_create(&p->machine, path, p->control_fd, &p->control, err);
        p->control_fd = -1;
    }
    if (code == 0)
        code = machine_begin(p, err);
    if (code < 0) {
        control_destroy(p->control);
        machine_finish(&p->machine);
    }
    return code;
}

/* The configuration: the file's, or else the snapshot's own. */
static int program_config(struct program *p, struct error *err)
{
    int code = 0;
    p->restore.how = p->options.verify ? SNAPSHOT_VERIFY : 0;
    if (p->options.restore)
        code = snapshot_open(p->options.restore, &p->restore.file, err);
    if (code == 0 && p->options.config)
        return config_read(p->options.config, &p->config, err);
    if (code < 0)
        return code;
    const struct machine_description *saved = snapshot_description(p->restore.file);
    if (!OBJECT_HAS(machine_description, saved, config))
        return error_set(err, -EINVAL, ERROR_INVALID, "%s holds no configuration; give --config", p->options.restore);
    OBJECT_COPY(vmm_config, &p->config, &saved->config);
    return 0;
}

/* For an agent that is not our parent any more and so cannot wait for us (vmm_exit of schema/objects.def). */
static void exit_write(const struct program *p, int status)
{
    struct vmm_exit word = {0};
    struct bytes_writer text = {0};
    struct error err = {0};
    if (p->config.exit_path == NULL)
        return;
    OBJECT_SET(vmm_exit, &word, status, (uint32_t)status);
    OBJECT_SET(vmm_exit, &word, pid, (uint64_t)getpid());
    if (p->failure[0] != '\0')
        OBJECT_TEXT(vmm_exit, &word, reason, p->failure);
    if (status == STATUS_MIGRATED) {
        OBJECT_SET(migration_result, &word.migration, downtime_us, p->left.downtime_us);
        OBJECT_SET(migration_result, &word.migration, total_us, p->left.total_us);
        OBJECT_SET(migration_result, &word.migration, sent_bytes, p->left.sent_bytes);
        OBJECT_SET(migration_result, &word.migration, rounds, p->left.rounds);
        object_mark(&vmm_exit_desc, &word, "migration");
    }
    OBJECT_ENCODE(vmm_exit, &word, &text);
    if (file_write_atomic(p->config.exit_path, text.data, text.size, 0600, &err) < 0)
        report("exit-not-written", &err);
    bytes_writer_finish(&text);
    OBJECT_CLEAR(vmm_exit, &word);
}

static int program_run(struct program *p)
{
    static const int statuses[] = {
        [MACHINE_END_NONE] = STATUS_FAILURE,
        [MACHINE_END_POWER_OFF] = STATUS_OK,
        [MACHINE_END_REQUEST] = STATUS_OK,
        [MACHINE_END_RESET] = STATUS_RESET,
        [MACHINE_END_TRIPLE_FAULT] = STATUS_TRIPLE_FAULT,
        [MACHINE_END_FAILURE] = STATUS_FAILURE,
        [MACHINE_END_MIGRATED] = STATUS_MIGRATED,
        [MACHINE_END_DEBUG_EXIT] = STATUS_FAILURE, /* replaced below */
    };
    while (!machine_has_ended(&p->machine))
        io_loop_run_once(p->loop, -1);
    int status = statuses[p->machine.end];
    if (p->machine.end == MACHINE_END_DEBUG_EXIT)
        status = (int)p->machine.debug_status;
    if (p->machine.end == MACHINE_END_FAILURE) {
        log_error("machine-failed", "vm=%s why=\"%s\"", p->config.name, p->machine.failure);
        snprintf(p->failure, sizeof(p->failure), "%.400s", p->machine.failure);
    }
    if (status == STATUS_MIGRATED)
        p->left = machine_migrate_progress(&p->machine);
    control_destroy(p->control);
    if (machine_incoming_lacks_memory(&p->machine)) {
        log_error("ended-as-it-was", "vm=%s why=\"part of its memory was still at the source\"", p->config.name);
        machine_incoming_unlink(&p->machine);
        exit_write(p, status);
        _exit(status);
    }
    machine_finish(&p->machine);
    return status;
}

/* For an agent that must know which VMs this host can run. */
static int cpu_baseline_print(void)
{
    struct kvm kvm;
    struct error err = {0};
    size_t bytes = sizeof(struct kvm_cpuid2) + KVM_CPUID_ENTRIES_MAX * sizeof(struct kvm_cpuid_entry2);
    CLEANUP_FREE struct kvm_cpuid2 *offered = xcalloc(1, bytes);
    int code = kvm_init(&kvm, NULL, &err);
    if (code == 0) {
        code = kvm_cpuid_supported(&kvm, offered, &err);
        kvm_finish(&kvm);
    }
    if (code < 0) {
        report("cpu-baseline", &err);
        return STATUS_ERROR;
    }
    printf("%s\n", cpu_model_highest(offered));
    return STATUS_OK;
}

int main(int argc, char **argv)
{
    struct error err = {0};
    CLEANUP_FREE struct program *p = NEW(struct program);
    p->signal_fd = p->control_fd = -1;
    if (options_parse(argc, argv, &p->options) < 0)
        return STATUS_USAGE;
    if (p->options.cpu_baseline)
        return cpu_baseline_print();
    if (program_config(p, &err) < 0) {
        report("config-refused", &err);
        snapshot_close(p->restore.file);
        OBJECT_CLEAR(vmm_config, &p->config);
        return STATUS_USAGE;
    }
    pthread_mutex_init(&p->lock, NULL);
    if (io_loop_create(&p->lock, &p->loop, &err) < 0) {
        report("start-failed", &err);
        return STATUS_ERROR;
    }
    console_init(&p->console, p->loop);
    int status = STATUS_ERROR;
    if (program_start(p, &err) < 0) {
        report("start-failed", &err);
        snprintf(p->failure, sizeof(p->failure), "%.400s", err.text);
    } else {
        snapshot_close(TAKE_PTR(p->restore.file));
        status = program_run(p);
    }
    snapshot_close(p->restore.file);
    free(p->points);
    free(p->resume);
    exit_write(p, status);
    console_finish(&p->console);
    io_loop_remove(p->loop, p->signal_handler);
    io_loop_destroy(p->loop);
    close_fd(&p->signal_fd);
    if (p->control_fd >= 0) /* it did not come to be used */
        unlink(control_path(p));
    close_fd(&p->control_fd);
    sandbox_destroy(p->sandbox);
    if (p->options.machine.fault_fd > 0)
        close(p->options.machine.fault_fd);
    OBJECT_CLEAR(vmm_config, &p->config);
    return status;
}
