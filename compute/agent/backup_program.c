/* See backup_program.h. Failure modes: it is not installed, its walls cannot be built, it says why it failed, it ends without a
 * word; each is an error in words. */
#include "compute/agent/backup_program.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "common/file.h"
#include "compute/agent/backup_found.h"
#include "compute/agent/task_child.h"
#include "compute/agent/task_walls.h"

#define NOBODY 65534u
#define STORE_HEADER "drover-store" /* backup/repo.h: who owns it owns the store */
enum { NOT_INSTALLED = 127, WALLS_FAILED = 126 };

/* ---- arguments ---- */

static void argument_add(struct backup_program *p, char *text)
{
    ASSERT(p->count < BACKUP_PROGRAM_ARGUMENTS_MAX);
    p->arguments[p->count++] = text;
}

void backup_program_flag(struct backup_program *p, const char *name)
{
    argument_add(p, xasprintf("--%s", name));
}

void backup_program_option(struct backup_program *p, const char *name, const char *value)
{
    backup_program_flag(p, name);
    argument_add(p, xstrdup(value));
}

void backup_program_inherit(struct backup_program *p, int fd)
{
    ASSERT(p->file_count < BACKUP_PROGRAM_FILES_MAX);
    p->files[p->file_count++] = fd;
}

int backup_program_text(struct backup_program *p, const char *name, const char *text, struct error *err)
{
    char path[32];
    size_t size = strlen(text);
    int fd = memfd_create("backup", MFD_CLOEXEC);
    if (fd < 0 || write(fd, text, size) != (ssize_t)size) {
        int code = error_errno(err, -errno, "cannot hand on --%s", name);
        close_fd(&fd);
        return code;
    }
    snprintf(path, sizeof path, "/dev/fd/%d", fd);
    backup_program_option(p, name, path);
    backup_program_inherit(p, fd);
    return 0;
}

static int credentials_add(struct backup_program *p, const struct backup_store *store, struct error *err)
{
    if (store->access_key == NULL || store->secret_key == NULL)
        return 0;
    char *text = xasprintf("%s\n%s\n", store->access_key, store->secret_key);
    int code = backup_program_text(p, "credentials", text, err);
    explicit_bzero(text, strlen(text));
    free(text);
    return code;
}

int backup_program_begin(struct backup_program *p, const char *verb, const struct backup_work *work, struct error *err)
{
    const struct backup_store *store = &work->store;
    char text[32];
    *p = (struct backup_program){.work = work};
    argument_add(p, xstrdup("drover-backup"));
    argument_add(p, xstrdup(verb));
    backup_program_option(p, "store", store->location);
    if (store->repository != NULL && strcmp(verb, "init") != 0) {
        backup_program_option(p, "repository", store->repository);
        if (work->host != NULL)
            backup_program_option(p, "host", work->host);
    }
    int code = store->key != NULL ? backup_program_text(p, "key-file", store->key, err) : 0;
    if (code == 0)
        code = credentials_add(p, store, err);
    if (store->bytes_per_second > 0 && strcmp(verb, "init") != 0 && strcmp(verb, "list") != 0) {
        snprintf(text, sizeof text, "%llu", (unsigned long long)store->bytes_per_second);
        backup_program_option(p, "limit", text);
    }
    return code;
}

void backup_program_finish(struct backup_program *p)
{
    for (unsigned i = 0; i < p->count; i++)
        free(p->arguments[i]);
    for (unsigned i = 0; i < p->file_count; i++)
        close(p->files[i]);
    *p = (struct backup_program){.work = p->work};
}

/* ---- walls ---- */

/* What is there of @path, from the right: the directory itself, or the one that it would be made in. */
static void existing_directory(const char *path, char ret[PATH_MAX])
{
    struct stat st;
    snprintf(ret, PATH_MAX, "%s", path);
    while ((stat(ret, &st) < 0 || !S_ISDIR(st.st_mode)) && strlen(ret) > 1) {
        char *slash = strrchr(ret, '/');
        slash[slash == ret ? 1 : 0] = '\0';
    }
}

/* Can @user get to @directory, and write there? Asked by the only thread of the process. */
static bool user_may(uid_t user, gid_t group, const char *directory)
{
    (void)setfsgid(group);
    (void)setfsuid(user); /* and with it out of reach: the capabilities that would say yes to everything */
    bool may = faccessat(AT_FDCWD, directory, R_OK | W_OK | X_OK, AT_EACCESS) == 0;
    (void)setfsuid(geteuid());
    (void)setfsgid(getegid());
    return may;
}

/* @directory: memory for walls->writable. */
static void walls_choose(const struct backup_work *work, char directory[PATH_MAX], struct task_walls *walls)
{
    const char *location = work->store.location;
    struct stat of_directory, of_header;
    if (location[0] != '/') {
        uid_t user = OBJECT_HAS(backup_work, work, program_user) ? work->program_user : NOBODY;
        *walls = (struct task_walls){.user = user, .group = user};
        return;
    }
    existing_directory(location, directory);
    CLEANUP_FREE char *header = xasprintf("%s/" STORE_HEADER, location);
    *walls = (struct task_walls){.writable = directory};
    if (geteuid() != 0 || stat(directory, &of_directory) < 0 || of_directory.st_uid == 0)
        return;
    if (stat(header, &of_header) == 0 && of_header.st_uid != of_directory.st_uid)
        return; /* root wrote it in somebody's directory, and goes on to */
    if (!user_may(of_directory.st_uid, of_directory.st_gid, directory))
        return; /* its owner does not get there, by directories above it */
    *walls = (struct task_walls){.user = of_directory.st_uid, .group = of_directory.st_gid};
}

/* ---- running ---- */

/* Opened before the walls: the new user may not even get to where it lies. Inherited, for scripts in its place. */
static int program_open(void)
{
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 16);
    self[MAX(n, (ssize_t)0)] = '\0';
    char *slash = strrchr(self, '/');
    if (slash == NULL)
        return -1;
    strcpy(slash + 1, "drover-backup");
    return open(self, O_RDONLY);
}

/* In the child: its standard output is the only way to say anything. */
static _Noreturn void program_become(const struct backup_program *p, int output, pid_t parent)
{
    char directory[PATH_MAX];
    struct task_walls walls;
    struct error err = {.code = 0};
    int program = program_open(), null = open("/dev/null", O_RDWR | O_CLOEXEC);
    walls_choose(p->work, directory, &walls);
    if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(output, STDOUT_FILENO) < 0 || dup2(null, STDERR_FILENO) < 0 || chdir("/") < 0)
        _exit(WALLS_FAILED);
    for (unsigned i = 0; i < p->file_count; i++)
        if (fcntl(p->files[i], F_SETFD, 0) < 0)
            _exit(WALLS_FAILED);
    if (task_walls_raise(&walls, &err) < 0) {
        struct bytes_writer line = {0};
        bytes_put_text(&line, "{\"step\":\"failed\",\"code\":\"internal\",\"text\":");
        json_put_string(&line, err.text);
        bytes_put_text(&line, "}\n");
        (void)!write(STDOUT_FILENO, line.data, line.size);
        _exit(WALLS_FAILED);
    }
    if (getppid() != parent)
        _exit(WALLS_FAILED);
    if (program >= 0)
        fexecve(program, (char *const *)(uintptr_t)p->arguments, environ);
    execvp("drover-backup", (char *const *)(uintptr_t)p->arguments);
    _exit(NOT_INSTALLED);
}

/* "removed <id> ..." of drover-backup prune. */
static bool removed_add(const char *line, struct backup_result *result)
{
    static const char begins[] = "removed ";
    const size_t skip = sizeof begins - 1, length = 36;
    const char *rule;
    char id[37];
    if (strncmp(line, begins, skip) != 0)
        return false;
    snprintf(id, sizeof id, "%.*s", (int)length, line + skip);
    if (result == NULL || !text_format_ok(FORMAT_id, id, &rule) || result->removed.count >= 1000)
        return true;
    result->removed.items = xrealloc(result->removed.items, (result->removed.count + 1) * sizeof(char *));
    result->removed.items[result->removed.count++] = xstrdup(id);
    object_mark(&backup_result_desc, result, "removed");
    return true;
}

static uint64_t count_of(const json_t *said, const char *name)
{
    json_int_t value = json_integer_value(json_object_get(said, name));
    return value > 0 ? MIN((uint64_t)value, (uint64_t)OBJECT_INTEGER_MAX) : 0;
}

/* {"repository":ID}: it is open. */
static bool repository_take(struct backup_program *p, const json_t *said)
{
    const char *id = json_string_value(json_object_get(said, "repository"));
    if (id == NULL)
        return false;
    if (strlen(id) == sizeof p->repository - 1 && strspn(id, "0123456789abcdef") == strlen(id))
        memcpy(p->repository, id, sizeof p->repository);
    if (p->said == NULL)
        task_child_tell("reading the lists of the store", 0, 0); /* slow, where it is far away */
    return true;
}

/* A line of JSON; the last one that is a step is *last, which the caller frees. */
static void line_take(struct backup_program *p, const char *line, size_t size, json_t **last, struct backup_result *removed)
{
    json_t *said = removed_add(line, removed) ? NULL : json_loadb(line, size, 0, NULL);
    const char *step = json_string_value(json_object_get(said, "step"));
    if (p->said != NULL && json_is_object(said))
        p->said(p->said_arg, said);
    if (step == NULL) {
        if (!repository_take(p, said) && removed != NULL && json_is_object(said))
            backup_found_add(said, removed);
        json_decref(said);
        return;
    }
    if (p->said == NULL && strcmp(step, "done") != 0 && strcmp(step, "failed") != 0) {
        char words[64];
        snprintf(words, sizeof words, "%s", step);
        task_child_tell(words, count_of(said, "done_bytes"), count_of(said, "total_bytes"));
    }
    json_decref(*last);
    *last = said;
}

/* Until its output ends. Lines that are too long are nobody's. */
static void lines_follow(struct backup_program *p, int fd, json_t **last, struct backup_result *removed)
{
    CLEANUP_FREE char *line = xcalloc(1, BACKUP_PROGRAM_LINE_BYTES_MAX + 1);
    size_t size = 0;
    bool skipping = false;
    for (;;) {
        ssize_t n = read(fd, line + size, BACKUP_PROGRAM_LINE_BYTES_MAX - size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return;
        size += (size_t)n;
        char *at = line, *newline;
        while ((newline = memchr(at, '\n', size - (size_t)(at - line))) != NULL) {
            *newline = '\0';
            if (!skipping)
                line_take(p, at, (size_t)(newline - at), last, removed);
            skipping = false;
            at = newline + 1;
        }
        size -= (size_t)(at - line);
        memmove(line, at, size);
        if (size == BACKUP_PROGRAM_LINE_BYTES_MAX) {
            skipping = true;
            size = 0;
        }
    }
}

/* How it ended, in words. */
static int judge(int status, const json_t *last, json_t **ret_result, struct error *err)
{
    const char *step = json_string_value(json_object_get(last, "step"));
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        *ret_result = json_incref(json_object_get(last, "result"));
        return 0;
    }
    if (step != NULL && strcmp(step, "failed") == 0) {
        const char *said = json_string_value(json_object_get(last, "text"));
        const char *kind = json_string_value(json_object_get(last, "code"));
        return error_set(err, -EIO, error_kind_from_code(kind != NULL ? kind : "internal"), "%s",
                         said != NULL ? said : "drover-backup does not say why");
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == NOT_INSTALLED)
        return error_set(err, -ENOENT, ERROR_NOT_SUPPORTED, "drover-backup is not installed beside drover-agent");
    if (WIFSIGNALED(status))
        return error_set(err, -EIO, ERROR_INTERNAL, "drover-backup was ended by signal %d (%s)", WTERMSIG(status),
                         strsignal(WTERMSIG(status)));
    return error_set(err, -EIO, ERROR_INTERNAL, "drover-backup ended with status %d and no word", WEXITSTATUS(status));
}

int backup_program_run(struct backup_program *p, json_t **ret_result, struct backup_result *ret_removed, struct error *err)
{
    int fds[2], status = 0;
    json_t *last = NULL;
    char text[16];
    if (pipe2(fds, O_CLOEXEC) < 0)
        return error_errno(err, -errno, "cannot make a pipe");
    if (strcmp(p->arguments[1], "init") != 0) { /* the others tell of their progress */
        snprintf(text, sizeof text, "%d", STDOUT_FILENO);
        backup_program_option(p, "progress-fd", text);
    }
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        program_become(p, fds[1], parent);
    int code = pid < 0 ? error_errno(err, -errno, "cannot start drover-backup") : 0;
    close(fds[1]);
    for (unsigned i = 0; i < p->file_count; i++) /* the ends of sockets are its alone: whoever serves them sees its end */
        close(p->files[i]);
    p->file_count = 0;
    if (code == 0)
        lines_follow(p, fds[0], &last, ret_removed);
    close(fds[0]);
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (code == 0)
        code = judge(status, last, ret_result, err);
    json_decref(last);
    return code;
}
