/* libraft's error codes in our terms: the only place that knows what RAFT_NOSPACE and its like mean. */
#ifndef CONTROLLER_RAFT_RAFT_ERRORS_H
#define CONTROLLER_RAFT_RAFT_ERRORS_H

#include "common/error.h"

/* Negative errno for a code of <raft.h>; 0 for 0. */
int raft_errors_errno(int raft_code);
/* "<format>: what the code means (libraft's own @detail, where it has one)". Returns the errno. */
int raft_errors_set(struct error *err, int raft_code, const char *detail, const char *format, ...) PRINTF_LIKE(4, 5);

#endif
