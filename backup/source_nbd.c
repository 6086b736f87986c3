/* A backup's source that is an export of an NBD server: see source_nbd.h. */
#include "backup/source_nbd.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "block/nbd_client.h"
#include "block/nbd_wire.h"

enum { BUFFER_ALIGN = 4096, TRIM_BYTES_MIN = 8 << 20 };

struct source_nbd {
    struct backup_source source;
    struct block *block;
    struct nbd_extent extent; /* what was told last, of [told_from, extent.end) */
    uint64_t told_from;
    uint8_t *ahead; /* holds [ahead_from, ahead_end) */
    uint64_t ahead_from, ahead_end;
    uint64_t given_back; /* all before it */
};

static struct source_nbd *of_source(struct backup_source *source)
{
    return CONTAINER_OF(source, struct source_nbd, source);
}

static int extent_ask(struct source_nbd *s, uint64_t offset, struct error *err)
{
    uint64_t from = offset / BLOCK_SECTOR_BYTES * BLOCK_SECTOR_BYTES;
    if (offset >= s->told_from && offset < s->extent.end)
        return 0;
    int code = nbd_client_extent(s->block, from, s->source.size_bytes, &s->extent, err);
    if (code < 0) {
        s->extent.end = 0;
        return code;
    }
    s->told_from = from;
    return 0;
}

/* Nobody comes back to what lies far behind. That the server does not want to hear of it is no failure. */
static void give_back(struct source_nbd *s, uint64_t offset)
{
    uint64_t until = offset < NBD_BEHIND_BYTES ? 0 : (offset - NBD_BEHIND_BYTES) / BUFFER_ALIGN * BUFFER_ALIGN;
    if (!s->block->can_discard || until < s->given_back + TRIM_BYTES_MIN)
        return;
    while (s->given_back < until) {
        uint64_t size = MIN(until - s->given_back, UINT64_C(1) << 30);
        if (block_now(s->block, BLOCK_DISCARD, s->given_back, NULL, size) < 0)
            break;
        s->given_back += size;
    }
    s->given_back = until;
}

static int nbd_extent(struct backup_source *source, uint64_t offset, enum backup_extent *ret_kind, uint64_t *ret_end,
                      struct error *err)
{
    struct source_nbd *s = of_source(source);
    int code = extent_ask(s, offset, err);
    if (code < 0)
        return code;
    give_back(s, offset);
    *ret_kind = source->knows_changes && !s->extent.changed ? BACKUP_SAME
                : s->extent.zero                            ? BACKUP_ZERO
                                                            : BACKUP_DATA;
    *ret_end = s->extent.end;
    return 0;
}

static int range_read(struct source_nbd *s, uint64_t offset, void *buffer, size_t size, struct error *err)
{
    int code = block_now(s->block, BLOCK_READ, offset, buffer, size);
    if (code < 0)
        return error_set(
            err, code, ERROR_UNREACHABLE,
            "the NBD server cannot read %zu bytes at %llu (%s); the image of a VM may have been given up: "
            "see its failure",
            size, (unsigned long long)offset, strerror(-code));
    return 0;
}

/* Fill the buffer from the sector of @offset on, as far as data goes on. */
static int ahead_fill(struct source_nbd *s, uint64_t offset, uint64_t end, struct error *err)
{
    uint64_t from = offset / BLOCK_SECTOR_BYTES * BLOCK_SECTOR_BYTES,
             to = MIN(from + NBD_AHEAD_BYTES, s->source.size_bytes);
    int code = extent_ask(s, offset, err);
    if (code < 0)
        return code;
    uint64_t needed = MIN((end + BLOCK_SECTOR_BYTES - 1) / BLOCK_SECTOR_BYTES * BLOCK_SECTOR_BYTES, to);
    to = MIN(to, MAX(s->extent.end, needed));
    s->ahead_end = s->ahead_from = from;
    code = range_read(s, from, s->ahead, (size_t)(to - from), err);
    if (code == 0)
        s->ahead_end = to;
    return code;
}

static int nbd_read(struct backup_source *source, uint64_t offset, void *buffer, size_t size, struct error *err)
{
    struct source_nbd *s = of_source(source);
    uint8_t *to = buffer;
    for (uint64_t at = offset, end = offset + size; at < end;) {
        if (at < s->ahead_from || at >= s->ahead_end) {
            int code = ahead_fill(s, at, end, err);
            if (code < 0)
                return code;
        }
        size_t n = (size_t)(MIN(end, s->ahead_end) - at);
        memcpy(to, s->ahead + (at - s->ahead_from), n);
        to += n;
        at += n;
    }
    give_back(s, offset);
    return 0;
}

static void nbd_close(struct backup_source *source)
{
    struct source_nbd *s = of_source(source);
    block_close(s->block);
    free(s->ahead);
    free(s);
}

static int location_refuse(const char *location, struct error *err)
{
    return error_set(err, -EINVAL, ERROR_INVALID, "nbd:%.100s is neither nbd:unix:/SOCKET[:EXPORT[@MARK]] nor nbd:fd:N[:EXPORT[@MARK]]",
                     location);
}

/* A number that is not one of the three that every program has; -1: it is none. */
static int socket_number(const char *text)
{
    char *end;
    unsigned long number = strtoul(text, &end, 10);
    return text[0] >= '0' && text[0] <= '9' && *end == '\0' && number > STDERR_FILENO && number <= INT32_MAX ? (int)number : -1;
}

int source_nbd_open(const char *location, const char *parent_mark, struct backup_source **ret_source,
                    struct error *err)
{
    static const struct backup_source_ops ops = {.extent = nbd_extent, .read = nbd_read, .close = nbd_close};
    bool is_fd = strncmp(location, "fd:", 3) == 0;
    if (!is_fd && strncmp(location, "unix:/", 6) != 0)
        return location_refuse(location, err);
    CLEANUP_FREE char *path = xstrdup(location + (is_fd ? 3 : 5));
    char *export = strchr(path, ':'), *mark = NULL;
    if (export != NULL)
        *export ++ = '\0';
    if (export != NULL && (mark = strchr(export, '@')) != NULL)
        *mark++ = '\0';
    int fd = is_fd ? socket_number(path) : -1;
    if ((is_fd && fd < 0) || (mark != NULL && (mark[0] == '\0' || strlen(mark) > NBD_SINCE_BYTES_MAX)))
        return location_refuse(location, err);
    bool asks = parent_mark != NULL && parent_mark[0] != '\0' && strlen(parent_mark) <= NBD_SINCE_BYTES_MAX;
    struct nbd_client_options options = {
        .socket_path = path, .has_fd = is_fd, .fd = fd, .export_name = export, .trims_only = true, .changed_since = asks ? parent_mark : NULL};
    struct block *block;
    int code = nbd_client_open(&options, &block, err);
    if (code < 0)
        return code;
    struct source_nbd *s = NEW(struct source_nbd);
    s->source = (struct backup_source){
        .ops = &ops, .size_bytes = block->size_bytes, .knows_changes = asks && nbd_client_has_changed(block)};
    if (mark != NULL)
        memcpy(s->source.mark, mark, strlen(mark) + 1);
    s->block = block;
    s->ahead = aligned_alloc(BUFFER_ALIGN, NBD_AHEAD_BYTES);
    ASSERT(s->ahead != NULL);
    *ret_source = &s->source;
    return 0;
}
