/* A drill ends this process and starts it again, without a supervisor's help.
 *
 *   drill_restart_now(seconds): the process becomes a new one of the same program and words (execve(2)), under the same
 *   number: threads, sockets and locks are gone as by SIGKILL, nothing is said or written; the kernel ends the connections
 *   drill_restart_pause(): called first in main: sleeps for those seconds with nothing open, so that connections are refused
 *   as where a controller's process has died, then goes on as if it had been started
 *
 * Its end is bounded by what cannot fail: a sleep. Whoever ends the sleeping process ends a controller that is down. */
#ifndef CONTROLLER_DRILL_RESTART_H
#define CONTROLLER_DRILL_RESTART_H

#define DRILL_RESTART_SECONDS_MAX 60u

/* Does not return: where the program cannot be started again the process ends by SIGKILL, for a supervisor to see. */
_Noreturn void drill_restart_now(unsigned seconds);
void drill_restart_pause(void);

#endif
