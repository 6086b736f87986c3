/* The table of libraft's error codes: errno, kind and a sentence for people. */
#include "controller/raft/raft_errors.h"

#include <errno.h>
#include <raft.h>
#include <stdarg.h>
#include <stdio.h>

struct raft_errors_row {
    int raft_code, code;
    enum error_kind kind;
    const char *text;
};

static const struct raft_errors_row rows[] = {
    {RAFT_NOMEM, -ENOMEM, ERROR_INTERNAL, "memory is exhausted"},
    {RAFT_BADID, -ENOENT, ERROR_NOT_FOUND, "there is no such member, or it is the leader itself, or it has no vote"},
    {RAFT_DUPLICATEID, -EEXIST, ERROR_EXISTS, "a member with this id exists"},
    {RAFT_DUPLICATEADDRESS, -EADDRINUSE, ERROR_EXISTS, "a member with this address exists"},
    {RAFT_BADROLE, -EALREADY, ERROR_CONFLICT, "the member has this role already"},
    {RAFT_MALFORMED, -EBADMSG, ERROR_CHECKSUM, "the data is malformed"},
    {RAFT_NOTLEADER, -ENOTCONN, ERROR_NO_LEADER, "this controller does not lead"},
    {RAFT_LEADERSHIPLOST, -EINPROGRESS, ERROR_UNKNOWN_OUTCOME, "leadership was lost meanwhile; it may yet be done"},
    {RAFT_SHUTDOWN, -ECANCELED, ERROR_CANCELLED, "the controller is stopping"},
    {RAFT_CANTBOOTSTRAP, -EEXIST, ERROR_EXISTS, "the directory holds Raft data already"},
    {RAFT_CANTCHANGE, -EBUSY, ERROR_CONFLICT, "another change of the members is not finished; try again"},
    {RAFT_CORRUPT, -EUCLEAN, ERROR_CHECKSUM, "the data on disk is damaged"},
    {RAFT_CANCELED, -ECANCELED, ERROR_CANCELLED, "it was cancelled"},
    {RAFT_NAMETOOLONG, -ENAMETOOLONG, ERROR_INVALID, "the path is too long"},
    {RAFT_TOOBIG, -E2BIG, ERROR_TOO_LARGE, "it is too large"},
    {RAFT_NOCONNECTION, -EHOSTUNREACH, ERROR_UNREACHABLE, "the member did not answer or did not catch up in time"},
    {RAFT_BUSY, -EBUSY, ERROR_OVERLOAD, "it is busy"},
    {RAFT_IOERR, -EIO, ERROR_INTERNAL, "reading or writing the disk failed"},
    {RAFT_NOTFOUND, -ENOENT, ERROR_NOT_FOUND, "there is no such member or file"},
    {RAFT_INVALID, -EINVAL, ERROR_INVALID, "a value is not valid"},
    {RAFT_UNAUTHORIZED, -EPERM, ERROR_FORBIDDEN, "the other side's certificate is not that member's"},
    {RAFT_NOSPACE, -ENOSPC, ERROR_NO_SPACE, "a majority of the controllers has no disk space for the log"},
    {RAFT_TOOMANY, -EMFILE, ERROR_INTERNAL, "a limit of the system was reached"},
};

static const struct raft_errors_row *raft_errors_row(int raft_code)
{
    static const struct raft_errors_row unknown = {0, -EIO, ERROR_INTERNAL, "libraft failed"};

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
        if (rows[i].raft_code == raft_code)
            return &rows[i];
    return &unknown;
}

int raft_errors_errno(int raft_code)
{
    return raft_code == 0 ? 0 : raft_errors_row(raft_code)->code;
}

int raft_errors_set(struct error *err, int raft_code, const char *detail, const char *format, ...)
{
    const struct raft_errors_row *row = raft_errors_row(raft_code);
    char what[256];
    va_list args;
    bool has_detail = detail != NULL && detail[0] != '\0';

    va_start(args, format);
    vsnprintf(what, sizeof(what), format, args);
    va_end(args);
    return error_set(err, row->code, row->kind, "%s: %s%s%s%s", what, row->text, has_detail ? " (" : "",
                     has_detail ? detail : "", has_detail ? ")" : "");
}
