/* Errors in words. Mechanism travels as a negative errno; what a person or program must know travels in
 * struct error, filled once where the knowledge is and prefixed on the way up.
 *
 * error_kinds below is the one table of what can go wrong: stable code for programs (the API's `code`),
 * HTTP status, CLI exit status. Add rows at the end; never rename a code. */
#ifndef COMMON_ERROR_H
#define COMMON_ERROR_H

#include "common/base.h"

/* X(SYMBOL, code, http_status, exit_status, title) */
#define ERROR_KINDS(X)                                                                                               \
    X(INTERNAL, "internal", 500, 1, "Internal error")                                                                \
    X(INVALID, "invalid", 400, 2, "The request is not valid")                                                        \
    X(UNKNOWN_FIELD, "unknown-field", 400, 2, "A field is not known here")                                           \
    X(MALFORMED, "malformed", 400, 2, "The body is not well-formed JSON")                                            \
    X(TOO_LARGE, "too-large", 413, 2, "The request is too large")                                                    \
    X(UNAUTHENTICATED, "unauthenticated", 401, 3, "Who you are is not known")                                        \
    X(FORBIDDEN, "forbidden", 403, 3, "You may not do this")                                                         \
    X(NOT_FOUND, "not-found", 404, 4, "There is no such object")                                                     \
    X(METHOD, "method-not-allowed", 405, 2, "This path does not take this method")                                   \
    X(EXISTS, "already-exists", 409, 5, "An object of that name exists")                                             \
    X(CONFLICT, "conflict", 409, 5, "The object's state does not allow this")                                        \
    X(IN_USE, "in-use", 409, 5, "The object is in use")                                                              \
    X(STALE, "stale-revision", 412, 6, "The object has changed since you read it")                                   \
    X(KEY_REUSED, "idempotency-key-reused", 422, 5, "This Idempotency-Key was used for another request")             \
    X(NO_HOST, "no-host", 409, 7, "No host can take the VM")                                                         \
    X(OVERLOAD, "overload", 503, 8, "The controller is busy")                                                        \
    X(NO_LEADER, "no-leader", 503, 8, "The controllers have no leader at this moment")                               \
    X(UNKNOWN_OUTCOME, "unknown-outcome", 503, 8, "It is not known whether the change was made")                     \
    X(TIMEOUT, "timeout", 504, 9, "It took too long")                                                                \
    X(UNREACHABLE, "unreachable", 502, 9, "The other side cannot be reached")                                        \
    X(NOT_SUPPORTED, "not-supported", 501, 10, "This is not supported")                                              \
    X(GONE, "resync", 410, 6, "Those events are no longer held; read the list again")                                \
    X(CANCELLED, "cancelled", 409, 11, "It was cancelled")                                                           \
    X(NO_SPACE, "no-space", 507, 1, "There is no space left")                                                        \
    X(CHECKSUM, "checksum", 422, 1, "The content does not match its checksum")                                       \
    X(NOT_INITIALIZED, "not-initialized", 503, 8, "This controller belongs to no cluster yet")

enum error_kind {
#define X(symbol, code, status, exit, title) ERROR_##symbol,
    ERROR_KINDS(X)
#undef X
        ERROR_KIND_COUNT
};

struct error_kind_info {
    const char *code;  /* stable name for programs */
    int http_status;   /* of an answer that carries it */
    int exit_status;   /* of the CLI */
    const char *title; /* the same sentence for every error of the kind */
};

struct error {
    int code;             /* negative errno, 0 = no error */
    enum error_kind kind; /* row of ERROR_KINDS */
    char field[128];      /* JSON pointer ("/disks/0/size_bytes") or empty */
    char text[512];       /* one sentence: what, the limit, the cure */
};

const struct error_kind_info *error_kind_info(enum error_kind kind);
/* The kind whose stable code is @code; ERROR_INTERNAL where there is none. */
enum error_kind error_kind_from_code(const char *code);

/* Fill @err (which may be NULL) and return @code, so that `return error_set(err, -EINVAL, ...)` reads well. */
int error_set(struct error *err, int code, enum error_kind kind, const char *format, ...) PRINTF_LIKE(4, 5);
/* The same, naming the field by JSON pointer. */
int error_set_field(struct error *err, int code, enum error_kind kind, const char *field, const char *format, ...)
    PRINTF_LIKE(5, 6);
/* From an errno: "cannot open /x: No such file or directory". @code is negative. */
int error_errno(struct error *err, int code, const char *format, ...) PRINTF_LIKE(3, 4);
/* Put "disk 'root': " before the text. */
/* For a person: the field's name before the text as one sentence ("name must be ...") or, where the text is a sentence
 * of its own, with a colon ("flavor: there is no ..."). Returns @buffer. */
const char *error_words(const struct error *err, char *buffer, size_t size);
void error_prefix(struct error *err, const char *format, ...) PRINTF_LIKE(2, 3);

#endif
