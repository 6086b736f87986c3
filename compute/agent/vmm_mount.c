/* Mounts in a VMM's namespace; see the header. */
#include "compute/agent/vmm_mount.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#define TAKEN_MAX 16u /* mounts one upon the other, of calls that were repeated */

struct job {
    int pidfd;
    const char *source; /* NULL: only take away */
    const char *const *targets;
    size_t count;
    int status;
    struct error err;
};

/* In the VMM's namespace. */
static void targets_clear(const struct job *job)
{
    for (size_t i = 0; i < job->count; i++)
        for (unsigned n = 0; n < TAKEN_MAX && umount2(job->targets[i], MNT_DETACH | UMOUNT_NOFOLLOW) == 0; n++)
            ;
}

static int tree_pick_up(const char *source, int *ret_fd, struct error *err)
{
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC};
    int fd = open_tree(AT_FDCWD, source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (fd < 0 || mount_setattr(fd, "", AT_EMPTY_PATH, &attr, sizeof attr) < 0) {
        int r = error_errno(err, -errno, "cannot show %s to the VMM", source);
        close_fd(&fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

static int job_do(struct job *job)
{
    CLEANUP_FD int tree = -1;
    int r = job->source != NULL ? tree_pick_up(job->source, &tree, &job->err) : 0;
    if (r < 0)
        return r;
    if (unshare(CLONE_FS) < 0)
        return error_errno(&job->err, -errno, "cannot have a root of its own");
    if (setns(job->pidfd, CLONE_NEWNS) < 0) {
        if (errno == ESRCH && job->source == NULL)
            return 0;
        return error_errno(&job->err, -errno, "cannot enter the mount namespace of the VMM");
    }
    targets_clear(job);
    if (job->source != NULL && move_mount(tree, "", AT_FDCWD, job->targets[0], MOVE_MOUNT_F_EMPTY_PATH) < 0)
        return error_errno(&job->err, -errno, "cannot show %s to the VMM", job->source);
    return 0;
}

static void *job_run(void *arg)
{
    struct job *job = arg;
    job->status = job_do(job);
    return NULL;
}

static int run(struct job *job, struct error *err)
{
    pthread_t thread;
    int r = pthread_create(&thread, NULL, job_run, job);
    if (r != 0)
        return error_errno(err, -r, "cannot start a thread");
    pthread_join(thread, NULL);
    if (job->status < 0 && err != NULL)
        *err = job->err;
    return job->status;
}

int vmm_mount_show(int pidfd, const char *source, const char *target, struct error *err)
{
    struct job job = {.pidfd = pidfd, .source = source, .targets = &target, .count = 1};
    return run(&job, err);
}

int vmm_mount_hide(int pidfd, const char *const *targets, size_t count, struct error *err)
{
    struct job job = {.pidfd = pidfd, .targets = targets, .count = count};
    return run(&job, err);
}
