/* Streams of reads: see read_ahead.h. */
#include "block/read_ahead.h"

/* In reads of the disk: by how many a stream that is read ahead of is kept longer than one that is not, for what is read at random
 * beside it makes a new stream with each read; and how long reads that need not wait are looked at after something was asked for. */
enum { KEPT_READS = 4096 };

static uint64_t distance(uint64_t a, uint64_t b)
{
    return a > b ? a - b : b - a;
}

/* The stream that goes on at @offset. None does: one that begins at @end, NULL is returned. */
static struct read_ahead_stream *stream_find(struct read_ahead *ra, uint64_t offset, uint64_t end)
{
    struct read_ahead_stream *oldest = NULL;
    uint64_t oldest_kept = UINT64_MAX;
    ra->reads++;
    for (unsigned i = 0; i < READ_AHEAD_STREAMS; i++) {
        struct read_ahead_stream *s = &ra->streams[i];
        uint64_t kept = s->used + (s->window > 0 ? KEPT_READS : 0);
        if (s->used > 0 && distance(s->next, offset) <= READ_AHEAD_SLACK) {
            s->used = ra->reads;
            return s;
        }
        if (kept < oldest_kept) {
            oldest = s;
            oldest_kept = kept;
        }
    }
    *oldest = (struct read_ahead_stream){.next = end, .used = ra->reads, .streak = 1, .patience = READ_AHEAD_PATIENCE_FIRST};
    return NULL;
}

/* A read from @offset up to @end had to wait. */
static void stream_waits(struct read_ahead_stream *s, uint64_t offset, uint64_t end)
{
    if (!s->ahead && s->window > 0) {
        bool at_once = offset <= s->asked + READ_AHEAD_FIRST;
        s->patience = at_once ? MIN(s->patience * 2, (uint32_t)READ_AHEAD_PATIENCE_MAX) : (uint32_t)READ_AHEAD_PATIENCE_FIRST;
    }
    s->ahead = true;
    s->doubt = end + s->patience;
}

bool read_ahead_next(struct read_ahead *ra, uint64_t offset, uint64_t size, bool waits, uint64_t disk_bytes, uint64_t *ret_start,
                     uint64_t *ret_end)
{
    if (!waits && ra->reads >= ra->watched)
        return false;
    uint64_t end = offset + size;
    struct read_ahead_stream *s = stream_find(ra, offset, end);
    if (s == NULL || end <= s->next)
        return false;
    s->next = end;
    s->streak = MIN(s->streak + 1, (unsigned)READ_AHEAD_STREAK);
    if (waits && s->streak == READ_AHEAD_STREAK)
        stream_waits(s, offset, end);
    else if (end >= s->doubt)
        s->ahead = false;
    if (!s->ahead || s->asked > end + s->window / 2)
        return false;
    s->window = s->window == 0 ? READ_AHEAD_FIRST : MIN(s->window * 2, (uint32_t)READ_AHEAD_MAX);
    *ret_start = MAX(s->asked, end);
    *ret_end = MIN(end + s->window, disk_bytes);
    s->asked = MAX(*ret_start, *ret_end);
    ra->watched = ra->reads + KEPT_READS;
    return *ret_start < *ret_end;
}
