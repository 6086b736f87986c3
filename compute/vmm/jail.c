/* Limits, then the view of the files, then the user: each step needs rights that the next one gives up.
 *
 * Mounts are made by descriptor (open_tree(2), mount_setattr(2), move_mount(2)): what is to be shown is picked up, with
 * its attributes, before anything is covered. The new root is mounted over the home, for a directory is needed that is
 * certainly there; the home itself, picked up before, then comes back inside. */
#include "compute/vmm/jail.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common/file.h"
#include "common/log.h"
#include "compute/vmm/sandbox.h"

#define ROOT_OPTIONS "size=1m,nr_inodes=1024,mode=0755"

static const char *const devices[] = {"/dev/kvm", "/dev/net/tun"};

/* Something of the host that will be seen inside; fd -1: not there. */
struct view {
    const char *path;
    int fd;
    bool directory;
};

struct builder {
    const struct jail_options *options;
    struct view views[JAIL_FILES_MAX + 2];
    size_t count;
};

static int limits_set(struct error *err)
{
    static const struct {
        int which;
        rlim_t value;
        const char *name;
    } limits[] = {
        {RLIMIT_CORE, 0, "core dumps"},
        {RLIMIT_NOFILE, JAIL_OPEN_FILES_MAX, "open files"},
        {RLIMIT_NPROC, JAIL_THREADS_MAX, "threads"},
        {RLIMIT_MEMLOCK, JAIL_LOCKED_BYTES_MAX, "locked memory"},
        {RLIMIT_MSGQUEUE, 0, "message queues"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(limits); i++) {
        struct rlimit limit;
        if (getrlimit(limits[i].which, &limit) < 0)
            return error_errno(err, -errno, "cannot limit %s", limits[i].name);
        limit.rlim_max = MIN(limit.rlim_max, limits[i].value); /* root in a container may not always raise them */
        limit.rlim_cur = limit.rlim_max;
        if (setrlimit(limits[i].which, &limit) < 0)
            return error_errno(err, -errno, "cannot limit %s", limits[i].name);
    }
    return 0;
}

/* ---- the files ---- */

static int path_check(const char *path, struct error *err)
{
    bool up = strstr(path, "/../") != NULL || (strlen(path) >= 3 && strcmp(path + strlen(path) - 3, "/..") == 0);
    if (path[0] == '/' && !up)
        return 0;
    return error_set(err, -EINVAL, ERROR_INVALID, "%s: with --user, paths begin with / and have no \"..\" in them", path);
}

static bool is_below(const char *path, const char *directory)
{
    size_t length = strlen(directory);
    return strncmp(path, directory, length) == 0 && path[length] == '/';
}

/* Pick up @path as a mount of its own, attached nowhere yet. */
static int view_add(struct builder *b, const char *path, bool directory, uint64_t attributes, struct error *err)
{
    struct mount_attr attr = {.attr_set = attributes};
    ASSERT(b->count < ARRAY_SIZE(b->views));
    int fd = open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (directory ? AT_RECURSIVE : 0));
    if (fd < 0 && errno == ENOENT && !directory)
        return 0; /* who needs it says so in better words */
    if (fd < 0)
        return error_errno(err, -errno, "cannot show %s in the jail", path);
    b->views[b->count++] = (struct view){path, fd, directory};
    if (mount_setattr(fd, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof(attr)) < 0)
        return error_errno(err, -errno, "cannot show %s in the jail", path);
    return 0;
}

static int views_pick_up(struct builder *b, struct error *err)
{
    const struct jail_options *o = b->options;
    int code = view_add(b, o->home, true, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, err);
    for (size_t i = 0; code == 0 && i < o->file_count; i++) {
        const struct jail_file *f = &o->files[i];
        code = path_check(f->path, err);
        bool twice = is_below(f->path, o->home);
        for (size_t j = 0; j < i; j++)
            twice = twice || strcmp(f->path, o->files[j].path) == 0;
        if (code == 0 && !twice) /* a disk may be a block device: no NODEV */
            code = view_add(b, f->path, f->directory,
                            (f->directory ? MOUNT_ATTR_NODEV : 0u) | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | (f->writable ? 0u : MOUNT_ATTR_RDONLY), err);
    }
    if (code == 0 && sandbox_is_widened())
        code = view_add(b, "/proc", true, MOUNT_ATTR_NOSUID, err);
    return code;
}

/* An empty file or directory at @path within the new root, and all directories above it. The caller frees. */
static int place_make(const char *root, const char *path, bool directory, char **ret_place, struct error *err)
{
    CLEANUP_FREE char *place = xasprintf("%s%s", root, path);
    char *slash = strrchr(place, '/');
    *slash = '\0';
    int code = file_make_directories(place, 0755, err);
    *slash = '/';
    if (code == 0 && directory)
        code = file_make_directories(place, 0755, err);
    if (code == 0 && !directory) {
        CLEANUP_FD int fd = open(place, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0400);
        if (fd < 0)
            code = error_errno(err, -errno, "cannot make %s in the jail", path);
    }
    if (code == 0)
        *ret_place = TAKE_PTR(place);
    return code;
}

static int view_attach(const char *root, const struct view *view, struct error *err)
{
    CLEANUP_FREE char *place = NULL;
    int code = place_make(root, view->path, view->directory, &place, err);
    if (code == 0 && move_mount(view->fd, "", AT_FDCWD, place, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        code = error_errno(err, -errno, "cannot show %s in the jail", view->path);
    return code;
}

/* A node of its own instead of the host's: that one may be closed to the user. */
static int device_make(const char *root, const char *path, uid_t user, struct error *err)
{
    CLEANUP_FREE char *place = NULL;
    struct stat st;
    if (stat(path, &st) < 0 || !S_ISCHR(st.st_mode))
        return 0; /* who needs it says so */
    int code = place_make(root, path, false, &place, err);
    if (code < 0)
        return code;
    unlink(place);
    if (mknod(place, S_IFCHR | 0600, st.st_rdev) < 0 || chown(place, user, user) < 0)
        return error_errno(err, -errno, "cannot make %s in the jail", path);
    return 0;
}

static int root_build(struct builder *b, struct error *err)
{
    const char *root = b->options->home;
    int code = 0;
    if (mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NOEXEC, ROOT_OPTIONS) < 0)
        return error_errno(err, -errno, "cannot mount the jail's root");
    for (size_t i = 0; code == 0 && i < b->count; i++)
        code = view_attach(root, &b->views[i], err);
    for (size_t i = 0; code == 0 && i < ARRAY_SIZE(devices); i++)
        code = device_make(root, devices[i], b->options->user, err);
    if (code < 0)
        return code;
    if (mount(NULL, root, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL) < 0)
        return error_errno(err, -errno, "cannot make the jail's root read-only");
    /* pivot_root(2), "pivot_root(".", ".")": the old root lies on the new one then, and is taken off it. */
    if (chdir(root) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
        return error_errno(err, -errno, "cannot move into the jail");
    return 0;
}

static int files_hide(const struct jail_options *options, struct error *err)
{
    struct builder b = {.options = options};
    mode_t mask = umask(022);
    /* Private: nothing that is mounted here is to be seen outside, nor the other way round. */
    if (unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return error_errno(err, -errno, "cannot have a mount namespace of its own");
    int code = views_pick_up(&b, err);
    if (code == 0)
        code = root_build(&b, err);
    for (size_t i = 0; i < b.count; i++)
        close(b.views[i].fd);
    umask(mask);
    return code;
}

/* ---- the user ---- */

static int capabilities_drop(struct error *err)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0}};
    if (syscall(SYS_capset, &head, none) < 0)
        return error_errno(err, -errno, "cannot drop capabilities");
    return 0;
}

static int user_become(uid_t user, struct error *err)
{
    for (unsigned long c = 0; prctl(PR_CAPBSET_READ, c, 0, 0, 0) >= 0; c++)
        if (prctl(PR_CAPBSET_DROP, c, 0, 0, 0) < 0)
            return error_errno(err, -errno, "cannot give up capability %lu", c);
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 || setgroups(0, NULL) < 0 ||
        setresgid(user, user, user) < 0 || setresuid(user, user, user) < 0)
        return error_errno(err, -errno, "cannot become user %u", user);
    int code = capabilities_drop(err);
    if (code < 0)
        return code;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_DUMPABLE, sandbox_is_widened(), 0, 0, 0) < 0)
        return error_errno(err, -errno, "cannot give up privileges");
    if (setresuid(0, 0, 0) == 0 || setresgid(0, 0, 0) == 0)
        return error_set(err, -EPERM, ERROR_INTERNAL, "it is still possible to become root again");
    return 0;
}

int jail_enter(const struct jail_options *options, struct error *err)
{
    int code;
    ASSERT(options->user != 0 && options->file_count <= JAIL_FILES_MAX);
    if (geteuid() != 0)
        return error_set(err, -EPERM, ERROR_FORBIDDEN, "--user %u: only root can become another user", options->user);
    if ((code = path_check(options->home, err)) < 0 || (code = limits_set(err)) < 0 ||
        (code = files_hide(options, err)) < 0 || (code = user_become(options->user, err)) < 0)
        return code;
    return 0;
}
