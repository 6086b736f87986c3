/* Limits, files, user: each step needs rights that the next one gives up. See the header. */
#include "compute/agent/task_walls.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

static int limits_set(struct error *err)
{
    static const struct {
        int which;
        rlim_t value;
    } limits[] = {{RLIMIT_CORE, 0}, {RLIMIT_NOFILE, TASK_WALLS_FILES_MAX}, {RLIMIT_MSGQUEUE, 0}};
    for (size_t i = 0; i < ARRAY_SIZE(limits); i++) {
        struct rlimit limit;
        if (getrlimit(limits[i].which, &limit) < 0)
            return error_errno(err, -errno, "cannot limit a task's process");
        limit.rlim_cur = limit.rlim_max = MIN(limit.rlim_max, limits[i].value);
        if (setrlimit(limits[i].which, &limit) < 0)
            return error_errno(err, -errno, "cannot limit a task's process");
    }
    return 0;
}

/* Everything read-only but @writable. A container that allows no mounts has walls of its own. */
static int files_close(const char *writable, struct error *err)
{
    struct mount_attr closed = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID};
    if (unshare(CLONE_NEWNS) < 0)
        return errno == EPERM ? 0 : error_errno(err, -errno, "cannot have mounts of its own");
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return error_errno(err, -errno, "cannot have mounts of its own");
    CLEANUP_FD int fd = open_tree(AT_FDCWD, writable, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
    if (fd < 0)
        return error_errno(err, -errno, "cannot keep %s writable", writable);
    if (mount_setattr(AT_FDCWD, "/", AT_RECURSIVE, &closed, sizeof closed) < 0)
        return error_errno(err, -errno, "cannot make all files read-only");
    if (move_mount(fd, "", AT_FDCWD, writable, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        return error_errno(err, -errno, "cannot keep %s writable", writable);
    return 0;
}

static int capabilities_keep(uint64_t kept, struct error *err)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};
    for (unsigned i = 0; i < _LINUX_CAPABILITY_U32S_3; i++)
        data[i].permitted = data[i].effective = (uint32_t)(kept >> (32 * i));
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 || syscall(SYS_capset, &head, data) < 0)
        return error_errno(err, -errno, "cannot drop capabilities");
    return 0;
}

static int bounds_drop(uint64_t kept, struct error *err)
{
    for (unsigned long c = 0; prctl(PR_CAPBSET_READ, c, 0, 0, 0) >= 0; c++)
        if ((c >= 64 || !(kept >> c & 1)) && prctl(PR_CAPBSET_DROP, c, 0, 0, 0) < 0)
            return error_errno(err, -errno, "cannot give up capability %lu", c);
    return 0;
}

static int user_become(const struct task_walls *walls, struct error *err)
{
    uint64_t kept = walls->user == 0 ? UINT64_C(1) << CAP_DAC_OVERRIDE : 0;
    int code = bounds_drop(kept, err);
    if (code < 0)
        return code;
    if (setgroups(0, NULL) < 0 || setresgid(walls->group, walls->group, walls->group) < 0 ||
        setresuid(walls->user, walls->user, walls->user) < 0)
        return error_errno(err, -errno, "cannot become user %u", walls->user);
    code = capabilities_keep(kept, err);
    if (code == 0 && walls->user != 0 && setresuid(0, 0, 0) == 0)
        code = error_set(err, -EPERM, ERROR_INTERNAL, "it is still possible to become root again");
    return code;
}

int task_walls_raise(const struct task_walls *walls, struct error *err)
{
    bool is_root = geteuid() == 0;
    int code = limits_set(err);
    if (code == 0 && is_root && walls->writable != NULL)
        code = files_close(walls->writable, err);
    if (code == 0 && is_root)
        code = user_become(walls, err);
    if (code < 0)
        return code;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_PDEATHSIG, SIGKILL) < 0) /* a change of user takes it back */
        return error_errno(err, -errno, "cannot give up privileges");
    return 0;
}
