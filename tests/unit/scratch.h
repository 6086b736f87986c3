/* Directories of a test's own that are gone when its process is, also where it was killed: another process, in a session of its own, waits
 * for that. A test that comes to its end removes them itself. */
#ifndef TESTS_UNIT_SCRATCH_H
#define TESTS_UNIT_SCRATCH_H

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/file.h"

#define SCRATCH_PARENT "/tmp/"

/* Until the pipe that leads here has nobody at its other end: what has come is a line for each directory, its name below SCRATCH_PARENT. */
static _Noreturn void scratch_watch(int fd)
{
    char line[NAME_MAX + 2], *names = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&names, &size);
    FILE *in = fdopen(fd, "r");
    (void)setsid(); /* whoever ends the test's group does not end it */
    while (out != NULL && in != NULL && fgets(line, sizeof line, in) != NULL)
        fputs(line, out);
    if (out != NULL && fflush(out) == 0)
        for (char *rest = NULL, *name = strtok_r(names, "\n", &rest); name != NULL; name = strtok_r(NULL, "\n", &rest))
            (void)file_remove_tree(SCRATCH_PARENT, name, NULL);
    _exit(0);
}

/* As mkdtemp, of a @path below SCRATCH_PARENT. False: it could not be made. */
static inline bool scratch_make(char *path)
{
    static int watcher = -1;
    int fds[2];
    if (watcher < 0 && pipe2(fds, O_CLOEXEC) == 0) {
        pid_t pid = fork();
        if (pid == 0) {
            close(fds[1]);
            scratch_watch(fds[0]);
        }
        close(fds[0]);
        watcher = fds[1];
    }
    if (watcher < 0 || mkdtemp(path) == NULL)
        return false;
    return dprintf(watcher, "%s\n", path + strlen(SCRATCH_PARENT)) > 0;
}

#endif
