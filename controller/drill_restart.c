/* See the header. How long to sleep goes from the old to the new process in the environment. */
#include "controller/drill_restart.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base.h"
#include "common/file.h"
#include "common/log.h"

#define VARIABLE "DROVER_DRILL_PAUSE_S"
#define WORDS_MAX 32u
#define WORDS_BYTES_MAX 65536u
#define FDS_MAX 1048576 /* more than any limit that we are given */

/* The words that we were started with, from the kernel: main keeps none. */
static bool own_words(char *words[WORDS_MAX + 1])
{
    char *text = NULL;
    size_t size = 0, n = 0;
    if (file_read("/proc/self/cmdline", WORDS_BYTES_MAX, &text, &size, NULL) < 0)
        return false;
    for (size_t at = 0; at < size && n < WORDS_MAX; at += strlen(text + at) + 1)
        words[n++] = text + at;
    words[n] = NULL;
    return n > 0;
}

void drill_restart_now(unsigned seconds)
{
    char *words[WORDS_MAX + 1], value[16], program[4096];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    sigset_t none;
    snprintf(value, sizeof value, "%u", MIN(seconds, DRILL_RESTART_SECONDS_MAX));
    if (own_words(words) && setenv(VARIABLE, value, 1) == 0) {
        for (int fd = 3; fd < FDS_MAX && (fd < 1024 || fcntl(fd, F_GETFD) >= 0); fd++)
            fcntl(fd, F_SETFD, FD_CLOEXEC);
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        program[MAX(n, (ssize_t)0)] = '\0';
        execv(program, words);
        execv("/proc/self/exe", words); /* the file has been replaced: this one, under another name */
    }
    raise(SIGKILL);
    abort();
}

void drill_restart_pause(void)
{
    const char *text = getenv(VARIABLE);
    if (text == NULL)
        return;
    unsigned seconds = MIN((unsigned)strtoul(text, NULL, 10), DRILL_RESTART_SECONDS_MAX);
    unsetenv(VARIABLE);
    log_warning("drill-pause", "seconds=%u", seconds);
    struct timespec left = {.tv_sec = (time_t)seconds};
    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
    log_info("drill-ends", "%s", "starting");
}
