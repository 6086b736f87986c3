/* What a process of a task gives up before it works on what strangers wrote: a VM's directory and the files in it (its
 * VMM may write there, and may have been taken over), a store's objects, an NBD server's answers.
 *
 *   user     one that the work needs, with no groups, no capabilities and no way back (no_new_privs); what that user may not
 *            open is opened before, and handed on as descriptors
 *   files    for what has to stay root: a mount namespace in which nothing can be written but one directory
 *   limits   no core dumps (there may be keys in memory), TASK_WALLS_FILES_MAX open files
 *
 * Other processes of the user can neither trace it nor read its memory (PR_SET_DUMPABLE is 0 after a change of user), and it ends
 * with its parent. An agent that is not root has nothing to give up but privileges to come. */
#ifndef COMPUTE_AGENT_TASK_WALLS_H
#define COMPUTE_AGENT_TASK_WALLS_H

#include <sys/types.h>

#include "common/base.h"
#include "common/error.h"

#define TASK_WALLS_FILES_MAX 4096

struct task_walls {
    uid_t user; /* 0: stays root, but without all capabilities except that to write where others own (CAP_DAC_OVERRIDE) */
    gid_t group;
    const char *writable; /* all other files can only be read; NULL: they are left as they are */
};

/* By the only thread of a process. After a failure the process is good for nothing but to end. */
int task_walls_raise(const struct task_walls *walls, struct error *err);

#endif
