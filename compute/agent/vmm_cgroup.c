/* Files of cgroup v2 (Documentation/admin-guide/cgroup-v2.rst). */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#include "common/file.h"
#include "common/log.h"
#include "compute/agent/vmm_cgroup.h"

#define WEIGHT_OF_ONE 100u
#define WEIGHT_MAX 10000u
#define MOUNTS_BYTES_MAX (1024 * 1024)

static const char *const controllers[] = {"cpu", "memory", "pids"};

/* Into a file that is there already; -ENOENT: this group has not that controller. */
static int value_write(const char *directory, const char *file, const char *value)
{
    CLEANUP_FREE char *path = xasprintf("%s/%s", directory, file);
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    return write(fd, value, strlen(value)) < 0 ? -errno : 0;
}

static bool has_word(const char *text, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = text; (at = strstr(at, word)) != NULL; at += length)
        if ((at == text || at[-1] == ' ') && strchr(" \n", at[length]) != NULL)
            return true; /* strchr finds the terminator too */
    return false;
}

/* The line of mountinfo (proc(5)) that was mounted last: it covers those before it. The caller frees. */
static char *mount_find(void)
{
    CLEANUP_FREE char *text = NULL;
    char *found = NULL, *rest = NULL;
    struct statfs fs;
    size_t size;
    if (file_read("/proc/self/mountinfo", MOUNTS_BYTES_MAX, &text, &size, NULL) < 0)
        return NULL;
    for (char *line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest)) {
        char place[256];
        if (strstr(line, " - cgroup2 ") == NULL || sscanf(line, "%*u %*u %*s %*s %255s", place) != 1 ||
            statfs(place, &fs) < 0 || fs.f_type != CGROUP2_SUPER_MAGIC)
            continue;
        free(found);
        found = xstrdup(place);
    }
    return found;
}

/* Offer the controllers to the children of @directory, one by one: one that is refused must not cost the others. */
static void controllers_offer(const char *directory)
{
    for (size_t i = 0; i < ARRAY_SIZE(controllers); i++) {
        char word[16];
        snprintf(word, sizeof(word), "+%s", controllers[i]);
        value_write(directory, "cgroup.subtree_control", word);
    }
}

/* What the VMs' groups will have. */
static void state_tell(struct vmm_cgroups *g, const char *mount)
{
    CLEANUP_FREE char *path = xasprintf("%s/cgroup.subtree_control", g->directory);
    CLEANUP_FREE char *text = NULL;
    char have[40] = "", lack[40] = "";
    size_t size;
    if (file_read(path, 4096, &text, &size, NULL) < 0)
        text = xstrdup("");
    for (size_t i = 0; i < ARRAY_SIZE(controllers); i++) {
        char *to = has_word(text, controllers[i]) ? have : lack;
        snprintf(to + strlen(to), sizeof(have) - strlen(to), "%s%s", *to != '\0' ? " " : "", controllers[i]);
    }
    g->complete = lack[0] == '\0';
    if (g->complete)
        snprintf(g->state, sizeof(g->state), "cgroup (%s)", have);
    else
        snprintf(g->state, sizeof(g->state), "cgroup (%s) without %s: not offered by %.40s",
                 have[0] != '\0' ? have : "no limits", lack, mount);
}

void vmm_cgroups_open(const char *mount, const char *name, struct vmm_cgroups *ret_groups)
{
    struct vmm_cgroups g = {.directory = NULL};
    CLEANUP_FREE char *found = mount != NULL ? xstrdup(mount) : mount_find();
    if (found == NULL) {
        snprintf(g.state, sizeof(g.state), "no cgroup: version 2 is not mounted on this host");
    } else {
        g.directory = xasprintf("%s/%s", found, name);
        controllers_offer(found);
        if (mkdir(g.directory, 0755) < 0 && errno != EEXIST) {
            snprintf(g.state, sizeof(g.state), "no cgroup: cannot make %.60s: %s", g.directory, strerror(errno));
            free(TAKE_PTR(g.directory));
        } else {
            controllers_offer(g.directory);
            state_tell(&g, found);
        }
    }
    *ret_groups = g;
}

void vmm_cgroups_close(struct vmm_cgroups *groups)
{
    free(TAKE_PTR(groups->directory));
}

static int limit_write(const char *directory, const char *file, uint64_t value, struct error *err)
{
    char text[24];
    snprintf(text, sizeof(text), "%" PRIu64, value);
    int r = value_write(directory, file, text);
    return r < 0 && r != -ENOENT ? error_errno(err, r, "cannot write %s to %s/%s", text, directory, file) : 0;
}

int vmm_cgroup_make(const struct vmm_cgroups *groups, const char *vm_id, uint32_t vcpus, uint64_t memory_bytes,
                    char **ret_procs, struct error *err)
{
    int r;
    if (groups->directory == NULL) {
        *ret_procs = NULL;
        return 0;
    }
    CLEANUP_FREE char *directory = xasprintf("%s/vm-%s", groups->directory, vm_id);
    if (mkdir(directory, 0755) < 0 && errno != EEXIST)
        return error_errno(err, -errno, "cannot make %s", directory);
    if ((r = limit_write(directory, "cpu.weight", groups->last ? 1 : MIN(vcpus * WEIGHT_OF_ONE, WEIGHT_MAX), err)) < 0 ||
        (r = limit_write(directory, "memory.max", memory_bytes + memory_bytes / 8 + VMM_CGROUP_HEADROOM_BYTES, err)) < 0 ||
        (r = limit_write(directory, "pids.max", VMM_CGROUP_THREADS_MAX, err)) < 0)
        return r;
    *ret_procs = xasprintf("%s/cgroup.procs", directory);
    return 0;
}

void vmm_cgroup_remove(const struct vmm_cgroups *groups, const char *vm_id)
{
    if (groups->directory == NULL)
        return;
    CLEANUP_FREE char *directory = xasprintf("%s/vm-%s", groups->directory, vm_id);
    if (rmdir(directory) < 0 && errno != ENOENT)
        log_warning("cgroup-remove", "path=%s error=\"%s, ignoring\"", directory, strerror(errno));
}
