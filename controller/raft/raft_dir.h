/* A Raft directory seen from outside libraft, which tells too little of it. Files as raft_uv 0.22.1 makes them:
 *
 *   open-N                    a log file being written, or prepared and still all zero; begins with its format, not 0
 *   FIRST-LAST                a finished log file, with the indexes of its first and last entry, 16 digits each
 *   snapshot-TERM-INDEX-TIME  and the same with .meta
 *   metadata1, metadata2      term and vote */
#ifndef CONTROLLER_RAFT_RAFT_DIR_H
#define CONTROLLER_RAFT_RAFT_DIR_H

#include "common/error.h"

#include <stdbool.h>
#include <stdint.h>

/* Look for damage that libraft does not survive or see, before it loads the directory. -EUCLEAN: there is some, in words;
 * other: the directory cannot be read. */
int raft_dir_check(const char *dir, struct error *err);

/* Remove what a crash may leave, and what libraft does not get over:
 *   - in the middle of a cut: beside FIRST-LAST a FIRST-SHORTER with the same entries up to there. libraft takes either,
 *     and fails (without a word) to cut there again
 *   - between a snapshot that is installed and the removal of the log before it: with files that are prepared and all
 *     zero, which libraft removes itself when it starts, it calls the log too short for the snapshot
 * Nobody may have the directory open. A negative errno: a file cannot be removed, or the directory not be read. */
int raft_dir_clean(const char *dir, struct error *err);

/* Whether a cut of the log at @index is done: no file has been written that is not finished, and no finished one has that
 * entry or a later one. Only while nothing else is written. False too where the directory cannot be read. */
bool raft_dir_is_cut(const char *dir, uint64_t index);

/* Free space for us where @dir is; UINT64_MAX where nobody can say. */
uint64_t raft_dir_free_bytes(const char *dir);

#endif
