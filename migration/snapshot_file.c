/* Writing and reading of snapshot files: see snapshot_file.h. */
#include "migration/snapshot_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "common/file.h"
#include "migration/stream_pages.h"

enum { IMAGE_VERSION = 1, IMAGE_HEAD_BYTES = 24, PIECE_PAGES = SNAPSHOT_PIECE_BYTES / GUEST_PAGE_BYTES };
#define READ_BYTES 262144u
#define LIVE_HEAD_BYTES (UINT64_C(96) << 20) /* STREAM_STATES_BYTES_MAX, checksums and header have room; what is not written is a hole */
#define LIVE_LEFT_BYTES (UINT64_C(32) << 20) /* so little is left for when the guest stands still */
#define LIVE_ROUNDS_MAX 8u

static uint64_t regions_bytes(const struct guest_region *regions, size_t count)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += regions[i].size;
    return sum;
}

static int image_too_long(uint64_t memory_bytes, struct error *err)
{
    return error_set(err, -E2BIG, ERROR_TOO_LARGE, "%llu bytes of memory are more than an image can have",
                     (unsigned long long)memory_bytes);
}

/* ---- saving ---- */

struct snapshot_writer {
    struct guest *guest;
    int fd;
    bool compress, committed, cancelled /* atomic */;
    char *path, *temporary;
    struct stream_writer stream;
    struct guest_region regions[GUEST_REGIONS_MAX];
    size_t region_count;
    uint64_t memory_bytes;
    struct snapshot_counts counts; /* relaxed atomics */
    /* image */
    uint64_t image_offset;
    uint32_t *crcs;
    uint32_t zero_crc; /* of a whole piece of zeros */
    /* of a guest that runs */
    bool live, tracking;
    uint64_t *dirty[GUEST_REGIONS_MAX]; /* pages that were written since they were copied, a bit for each */
};

static int file_write(void *arg, const void *data, size_t size, struct error *err)
{
    struct snapshot_writer *w = arg;
    for (size_t done = 0; done < size;) {
        ssize_t n = pwrite(w->fd, (const uint8_t *)data + done, size - done, (off_t)(w->stream.bytes + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return error_errno(err, n < 0 ? -errno : -EIO, "cannot write %s", w->temporary);
        done += (size_t)n;
    }
    return 0;
}

static void count_add(uint64_t *count, uint64_t more)
{
    __atomic_fetch_add(count, more, __ATOMIC_RELAXED);
}

static void features_set(struct machine_description *header, bool compress)
{
    for (size_t i = 0; i < header->features.count; i++)
        free(header->features.items[i]);
    header->features.items = xrealloc(header->features.items, sizeof(*header->features.items));
    header->features.items[0] = xstrdup(compress ? STREAM_FEATURE_ZSTD : STREAM_FEATURE_IMAGE);
    header->features.count = 1;
    object_mark(&machine_description_desc, header, "features");
}

static int writer_open(struct guest *guest, const char *path, struct snapshot_writer **ret_writer, struct error *err)
{
    struct snapshot_writer *w = NEW(struct snapshot_writer);
    w->guest = guest;
    w->path = xstrdup(path);
    w->temporary = xasprintf("%s.%d.part", path, (int)getpid());
    w->region_count = guest->ops->regions(guest, w->regions);
    w->memory_bytes = regions_bytes(w->regions, w->region_count);
    unlink(w->temporary); /* of a dead process that had our number */
    w->fd = open(w->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (w->fd >= 0) {
        *ret_writer = w;
        return 0;
    }
    int code = error_errno(err, -errno, "cannot make %s", w->temporary);
    snapshot_writer_destroy(w);
    return code;
}

/* What comes before memory. */
static int head_write(struct snapshot_writer *w, struct machine_description *header, struct error *err)
{
    features_set(header, w->compress);
    int code = stream_writer_begin(&w->stream, file_write, w, header, err);
    return code < 0 ? code : w->guest->ops->state_save(w->guest, &w->stream, err);
}

int snapshot_begin(struct guest *guest, struct machine_description *header, const char *path, bool compress,
                   struct snapshot_writer **ret_writer, struct error *err)
{
    struct snapshot_writer *w;
    int code = writer_open(guest, path, &w, err);
    if (code < 0)
        return code;
    w->compress = compress;
    code = head_write(w, header, err);
    if (code < 0)
        snapshot_writer_destroy(w);
    else
        *ret_writer = w;
    return code;
}

void snapshot_writer_destroy(struct snapshot_writer *w)
{
    if (!w)
        return;
    if (w->tracking)
        w->guest->ops->dirty_stop(w->guest);
    if (w->fd >= 0 && !w->committed)
        unlink(w->temporary);
    for (size_t i = 0; i < w->region_count; i++)
        free(w->dirty[i]);
    close_fd(&w->fd);
    free(w->crcs);
    free(w->path);
    free(w->temporary);
    free(w);
}

struct snapshot_counts snapshot_progress(const struct snapshot_writer *w)
{
    return (struct snapshot_counts){
        .memory_bytes = __atomic_load_n(&w->counts.memory_bytes, __ATOMIC_RELAXED),
        .data_bytes = __atomic_load_n(&w->counts.data_bytes, __ATOMIC_RELAXED),
        .file_bytes = __atomic_load_n(&w->counts.file_bytes, __ATOMIC_RELAXED),
    };
}

void snapshot_cancel(struct snapshot_writer *w)
{
    __atomic_store_n(&w->cancelled, true, __ATOMIC_RELEASE);
}

static int cancel_check(const struct snapshot_writer *w, struct error *err)
{
    if (!__atomic_load_n(&w->cancelled, __ATOMIC_ACQUIRE))
        return 0;
    return error_set(err, -ECANCELED, ERROR_CANCELLED, "the snapshot was cancelled");
}

static void next_data(const struct snapshot_writer *w, size_t region, uint64_t *page, uint64_t *pages)
{
    uint64_t end = w->regions[region].size / GUEST_PAGE_BYTES;
    *pages = end - *page;
    if (*pages && w->guest->ops->next_data)
        w->guest->ops->next_data(w->guest, region, page, pages);
    ASSERT(*page <= end && *pages <= end - *page);
}

static int bytes_write(struct snapshot_writer *w, const uint8_t *data, size_t size, uint64_t offset, struct error *err)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = pwrite(w->fd, data + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return error_errno(err, n < 0 ? -errno : -EIO, "cannot write %s", w->temporary);
        done += (size_t)n;
    }
    count_add(&w->counts.data_bytes, size);
    count_add(&w->counts.file_bytes, size);
    return 0;
}

/* The pages of one piece that are not zero, at their place in the file. */
static int piece_write(struct snapshot_writer *w, const uint8_t *data, size_t size, uint64_t offset,
                       struct error *err)
{
    for (size_t at = 0; at < size;) {
        size_t end = at;
        while (end < size && !stream_page_is_zero(data + end))
            end += GUEST_PAGE_BYTES;
        int code = end > at ? bytes_write(w, data + at, end - at, offset + at, err) : 0;
        if (code < 0)
            return code;
        at = end + (end < size ? GUEST_PAGE_BYTES : 0);
    }
    return 0;
}

/* One region at @base bytes of the whole memory. Pieces are of the whole memory; regions begin at their edges. */
static int image_region_write(struct snapshot_writer *w, size_t region, uint64_t base, struct error *err)
{
    const struct guest_region *r = &w->regions[region];
    uint64_t page = 0, pages;
    while (next_data(w, region, &page, &pages), pages) {
        uint64_t end = page + pages;
        for (uint64_t at = page * GUEST_PAGE_BYTES / SNAPSHOT_PIECE_BYTES * SNAPSHOT_PIECE_BYTES;
             at < end * GUEST_PAGE_BYTES; at += SNAPSHOT_PIECE_BYTES) {
            size_t size = MIN((uint64_t)SNAPSHOT_PIECE_BYTES, r->size - at);
            int code = cancel_check(w, err);
            if (code == 0)
                code = piece_write(w, r->host + at, size, w->image_offset + base + at, err);
            if (code < 0)
                return code;
            if (!w->live) /* else they are made of the file */
                w->crcs[(base + at) / SNAPSHOT_PIECE_BYTES] = bytes_crc32c(0, r->host + at, size);
            count_add(&w->counts.memory_bytes, size);
            page = MIN(at + SNAPSHOT_PIECE_BYTES, r->size) / GUEST_PAGE_BYTES;
        }
    }
    return 0;
}

static uint64_t pieces_of(uint64_t memory_bytes)
{
    return (memory_bytes + SNAPSHOT_PIECE_BYTES - 1) / SNAPSHOT_PIECE_BYTES;
}

/* Pieces that nothing was written to: the last may be shorter than the others. */
static void crcs_init(struct snapshot_writer *w)
{
    uint64_t pieces = pieces_of(w->memory_bytes);
    CLEANUP_FREE uint8_t *zeros = xcalloc(1, SNAPSHOT_PIECE_BYTES);
    uint32_t whole = bytes_crc32c(0, zeros, SNAPSHOT_PIECE_BYTES);
    w->crcs = xcalloc(pieces, sizeof(*w->crcs));
    for (uint64_t i = 0; i < pieces; i++)
        w->crcs[i] = whole;
    if (w->memory_bytes % SNAPSHOT_PIECE_BYTES)
        w->crcs[pieces - 1] = bytes_crc32c(0, zeros, w->memory_bytes % SNAPSHOT_PIECE_BYTES);
}

/* All regions, one after another. */
static int image_regions_write(struct snapshot_writer *w, struct error *err)
{
    uint64_t base = 0;
    for (size_t i = 0; i < w->region_count; i++) {
        ASSERT(base % SNAPSHOT_PIECE_BYTES == 0);
        int code = image_region_write(w, i, base, err);
        if (code < 0)
            return code;
        base += w->regions[i].size;
    }
    return 0;
}

static int image_size(struct snapshot_writer *w, struct error *err)
{
    crcs_init(w);
    if (ftruncate(w->fd, (off_t)(w->image_offset + w->memory_bytes)) < 0)
        return error_errno(err, -errno, "cannot size %s", w->temporary);
    return 0;
}

static uint64_t image_section_bytes(const struct snapshot_writer *w)
{
    return IMAGE_HEAD_BYTES + pieces_of(w->memory_bytes) * 4;
}

/* Where the stream of the file comes to its end, once the image's section and END are in it. */
static uint64_t head_end(const struct snapshot_writer *w)
{
    return w->stream.bytes + 2 * STREAM_SECTION_HEAD_BYTES + image_section_bytes(w) + 12;
}

static int image_section_write(struct snapshot_writer *w, struct error *err)
{
    struct bytes_writer payload = {0};
    bytes_put_u64(&payload, w->image_offset);
    bytes_put_u64(&payload, w->memory_bytes);
    bytes_put_u32(&payload, SNAPSHOT_PIECE_BYTES);
    bytes_put_u32(&payload, 0);
    for (uint64_t i = 0; i < pieces_of(w->memory_bytes); i++)
        bytes_put_u32(&payload, w->crcs[i]);
    int code =
        stream_put(&w->stream, STREAM_IMAGE, IMAGE_VERSION, STREAM_MUST_UNDERSTAND, payload.data, payload.size, err);
    bytes_writer_finish(&payload);
    return code;
}

static int image_write(struct snapshot_writer *w, struct error *err)
{
    if (image_section_bytes(w) > STREAM_SECTION_BYTES_MAX)
        return image_too_long(w->memory_bytes, err);
    w->image_offset = (head_end(w) + SNAPSHOT_ALIGN_BYTES - 1) / SNAPSHOT_ALIGN_BYTES * SNAPSHOT_ALIGN_BYTES;
    int code = image_size(w, err);
    if (code == 0)
        code = image_regions_write(w, err);
    return code < 0 ? code : image_section_write(w, err);
}

/* ---- an image of a guest that runs ---- */

int snapshot_begin_live(struct guest *guest, const char *path, struct snapshot_writer **ret_writer, struct error *err)
{
    struct snapshot_writer *w;
    int code = writer_open(guest, path, &w, err);
    if (code < 0)
        return code;
    w->live = true;
    w->image_offset = LIVE_HEAD_BYTES;
    for (size_t i = 0; i < w->region_count; i++)
        w->dirty[i] = xcalloc((w->regions[i].size / GUEST_PAGE_BYTES + 63) / 64, sizeof(uint64_t));
    code = image_section_bytes(w) > STREAM_SECTION_BYTES_MAX ? image_too_long(w->memory_bytes, err) : image_size(w, err);
    if (code < 0)
        snapshot_writer_destroy(w);
    else
        *ret_writer = w;
    return code;
}

/* What was written since the last time, besides what is in the bitmaps already; *ret_bytes: of all of them. */
static int dirty_fetch(struct snapshot_writer *w, uint64_t *ret_bytes, struct error *err)
{
    uint64_t pages = 0;
    for (size_t i = 0; i < w->region_count; i++) {
        int code = w->guest->ops->dirty_fetch(w->guest, i, w->dirty[i], err);
        if (code < 0)
            return code;
        for (size_t word = 0; word < (w->regions[i].size / GUEST_PAGE_BYTES + 63) / 64; word++)
            pages += (unsigned)__builtin_popcountll(w->dirty[i][word]);
    }
    *ret_bytes = pages * GUEST_PAGE_BYTES;
    return 0;
}

static bool is_dirty(const uint64_t *bitmap, uint64_t page)
{
    return bitmap[page / 64] >> page % 64 & 1;
}

/* Also pages that are zeros by now: what the file has there may be other. */
static int dirty_region_write(struct snapshot_writer *w, size_t region, uint64_t base, struct error *err)
{
    const struct guest_region *r = &w->regions[region];
    uint64_t *bitmap = w->dirty[region], end = r->size / GUEST_PAGE_BYTES;
    for (uint64_t page = 0; page < end;) {
        uint64_t first = page;
        if (page % 64 == 0 && bitmap[page / 64] == 0) {
            page += 64;
            continue;
        }
        while (page < end && page - first < PIECE_PAGES && is_dirty(bitmap, page)) {
            bitmap[page / 64] &= ~(UINT64_C(1) << page % 64);
            page++;
        }
        int code = page > first ? cancel_check(w, err) : 0;
        if (code == 0 && page > first)
            code = bytes_write(w, r->host + first * GUEST_PAGE_BYTES, (page - first) * GUEST_PAGE_BYTES,
                               w->image_offset + base + first * GUEST_PAGE_BYTES, err);
        if (code < 0)
            return code;
        page += page == first;
    }
    return 0;
}

static int dirty_write(struct snapshot_writer *w, struct error *err)
{
    uint64_t base = 0;
    for (size_t i = 0; i < w->region_count; i++) {
        int code = dirty_region_write(w, i, base, err);
        if (code < 0)
            return code;
        base += w->regions[i].size;
    }
    return 0;
}

int snapshot_copy(struct snapshot_writer *w, struct error *err)
{
    uint64_t left, before = UINT64_MAX;
    ASSERT(w->live && !w->tracking);
    int code = w->guest->ops->dirty_start(w->guest, err);
    if (code < 0)
        return code;
    w->tracking = true;
    code = dirty_fetch(w, &left, err); /* may be every page: all of them are looked at next */
    for (size_t i = 0; i < w->region_count; i++)
        memset(w->dirty[i], 0, (w->regions[i].size / GUEST_PAGE_BYTES + 63) / 64 * sizeof(uint64_t));
    if (code == 0)
        code = image_regions_write(w, err);
    for (unsigned round = 0; code == 0 && round < LIVE_ROUNDS_MAX; round++) {
        code = dirty_fetch(w, &left, err);
        if (code < 0 || left <= LIVE_LEFT_BYTES || left > before / 4 * 3)
            break;
        before = left;
        code = dirty_write(w, err);
    }
    return code;
}

int snapshot_stand(struct snapshot_writer *w, struct machine_description *header, struct error *err)
{
    ASSERT(w->live && w->tracking);
    int code = head_write(w, header, err);
    if (code == 0 && head_end(w) > w->image_offset)
        code = error_set(err, -E2BIG, ERROR_TOO_LARGE, "the state of the machine has %llu bytes, and there is room for %llu",
                         (unsigned long long)w->stream.bytes, (unsigned long long)w->image_offset);
    return code;
}

/* The guest stands still: what it wrote last, and saving its state too. */
static int live_memory(struct snapshot_writer *w, struct error *err)
{
    uint64_t left;
    int code = dirty_fetch(w, &left, err);
    return code < 0 ? code : dirty_write(w, err);
}

/* Of what the file has. Holes are zeros. */
static int crcs_read(struct snapshot_writer *w, struct error *err)
{
    CLEANUP_FREE uint8_t *piece = xcalloc(1, SNAPSHOT_PIECE_BYTES);
    for (uint64_t at = 0; at < w->memory_bytes; at += SNAPSHOT_PIECE_BYTES) {
        size_t size = MIN((uint64_t)SNAPSHOT_PIECE_BYTES, w->memory_bytes - at), done = 0;
        off_t data = lseek(w->fd, (off_t)(w->image_offset + at), SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            return 0;
        if (data >= (off_t)(w->image_offset + at + size))
            continue;
        while (done < size) {
            ssize_t n = pread(w->fd, piece + done, size - done, (off_t)(w->image_offset + at + done));
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                return error_errno(err, n < 0 ? -errno : -EIO, "cannot read %s", w->temporary);
            done += (size_t)n;
        }
        w->crcs[at / SNAPSHOT_PIECE_BYTES] = bytes_crc32c(0, piece, size);
        int code = cancel_check(w, err);
        if (code < 0)
            return code;
    }
    return 0;
}

static int live_end(struct snapshot_writer *w, struct error *err)
{
    w->guest->ops->dirty_stop(w->guest);
    w->tracking = false;
    int code = crcs_read(w, err);
    if (code == 0)
        code = image_section_write(w, err);
    return code < 0 ? code : stream_put_end(&w->stream, err);
}

static int pages_write(struct snapshot_writer *w, struct stream_pages_writer *out, struct error *err)
{
    for (size_t i = 0; i < w->region_count; i++) {
        uint64_t page = 0, pages;
        while (next_data(w, i, &page, &pages), pages) {
            for (uint64_t end = page + pages; page < end; page++) {
                const uint8_t *data = w->regions[i].host + page * GUEST_PAGE_BYTES;
                int code = page % PIECE_PAGES == 0 ? cancel_check(w, err) : 0;
                /* The restore goes into memory that is zero already: nothing is said of such pages. */
                if (code == 0 && !stream_page_is_zero(data)) {
                    code = stream_pages_put(out, (uint16_t)i, page, data, err);
                    count_add(&w->counts.data_bytes, GUEST_PAGE_BYTES);
                }
                if (code < 0)
                    return code;
                count_add(&w->counts.memory_bytes, GUEST_PAGE_BYTES);
            }
        }
    }
    return stream_pages_flush(out, err);
}

int snapshot_memory(struct snapshot_writer *w, struct error *err)
{
    int code;
    if (w->live)
        return live_memory(w, err);
    if (w->compress) {
        struct stream_pages_writer *out = stream_pages_writer_create(&w->stream, true);
        code = pages_write(w, out, err);
        count_add(&w->counts.file_bytes, stream_pages_counters(out).payload_bytes);
        stream_pages_writer_destroy(out);
    } else {
        code = image_write(w, err);
    }
    return code < 0 ? code : stream_put_end(&w->stream, err);
}

int snapshot_commit(struct snapshot_writer *w, struct error *err)
{
    char *slash = strrchr(w->path, '/');
    int code = w->live ? live_end(w, err) : 0;
    if (code < 0)
        return code;
    if (fsync(w->fd) < 0)
        return error_errno(err, -errno, "cannot write %s", w->temporary);
    if (rename(w->temporary, w->path) < 0)
        return error_errno(err, -errno, "cannot name the snapshot %s", w->path);
    w->committed = true;
    CLEANUP_FREE char *directory = xstrdup(slash ? w->path : ".");
    if (slash)
        directory[MAX(slash - w->path, 1)] = 0;
    return file_sync_directory(directory, err);
}

/* ---- restoring ---- */

struct snapshot_file {
    char *path;
    int fd;
    uint64_t size, fed; /* of the file; fed to the reader so far */
    struct stream_reader reader;
    struct machine_description description;
    struct stream_states states;
    struct stream_section first; /* the first of memory: IMAGE, PAGES or END. Valid until the next read */
    uint64_t image_offset;       /* 0: no image */
    uint32_t piece_bytes;
    uint32_t *crcs;
};

/* 1 with the next section, or an error: the end of the file before END is one. */
static int section_read(struct snapshot_file *f, struct stream_section *ret_section, struct error *err)
{
    CLEANUP_FREE uint8_t *buffer = NULL;
    while (true) {
        int code = stream_next(&f->reader, ret_section, err);
        if (code != 0)
            return code;
        size_t wanted = MIN(stream_wanted(&f->reader), READ_BYTES);
        if (!buffer)
            buffer = xcalloc(1, READ_BYTES);
        ssize_t n = pread(f->fd, buffer, wanted, (off_t)f->fed);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_errno(err, -errno, "cannot read the snapshot");
        if (n == 0)
            return stream_check_ended(&f->reader, err);
        stream_feed(&f->reader, buffer, (size_t)n);
        f->fed += (uint64_t)n;
    }
}

static int refuse(struct error *err, const char *what)
{
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "%s", what);
}

/* Where the image is and what it should be; END follows at once. */
static int image_read(struct snapshot_file *f, struct error *err)
{
    struct stream_section end;
    struct bytes_reader in = bytes_reader(f->first.payload, f->first.size);
    uint64_t offset = bytes_get_u64(&in), bytes = bytes_get_u64(&in);
    f->piece_bytes = bytes_get_u32(&in);
    uint32_t zero = bytes_get_u32(&in);
    if (in.bad || zero != 0 || f->piece_bytes != SNAPSHOT_PIECE_BYTES || bytes != f->description.memory_bytes ||
        offset == 0 || offset % GUEST_PAGE_BYTES || bytes_left(&in) != pieces_of(bytes) * 4)
        return refuse(err, "the description of its memory is malformed");
    f->crcs = xcalloc(pieces_of(bytes), sizeof(*f->crcs));
    for (uint64_t i = 0; i < pieces_of(bytes); i++)
        f->crcs[i] = bytes_get_u32(&in);
    int code = section_read(f, &end, err);
    if (code < 0)
        return code;
    if (end.tag != STREAM_END || offset < f->reader.bytes)
        return refuse(err, "its end does not follow its memory");
    if (f->size < offset || f->size - offset != bytes)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "it has %llu bytes, and its memory ends at %llu",
                         (unsigned long long)f->size, (unsigned long long)(offset + bytes));
    f->image_offset = offset;
    return 0;
}

static int head_read(struct snapshot_file *f, struct error *err)
{
    struct stream_section s;
    int code = section_read(f, &s, err);
    if (code > 0)
        code = stream_header_decode(&s, &f->description, err);
    while (code >= 0) {
        code = section_read(f, &s, err);
        if (code < 0 || s.tag != STREAM_STATE)
            break;
        code = stream_states_add(&f->states, &s, err);
    }
    if (code < 0)
        return code;
    f->first = s;
    return s.tag == STREAM_IMAGE ? image_read(f, err) : 0;
}

int snapshot_open(const char *path, struct snapshot_file **ret_file, struct error *err)
{
    struct stat st;
    struct snapshot_file *f = NEW(struct snapshot_file);
    f->path = xstrdup(path);
    f->fd = open(path, O_RDONLY | O_CLOEXEC);
    int code = f->fd < 0 || fstat(f->fd, &st) < 0 ? error_errno(err, -errno, "cannot open the snapshot") : 0;
    if (code == 0) {
        f->size = (uint64_t)st.st_size;
        code = S_ISREG(st.st_mode) ? head_read(f, err) : refuse(err, "it is no file");
    }
    if (code < 0) {
        error_prefix(err, "%s: ", path);
        snapshot_close(f);
        return code;
    }
    *ret_file = f;
    return 0;
}

void snapshot_close(struct snapshot_file *f)
{
    if (!f)
        return;
    close_fd(&f->fd);
    stream_reader_finish(&f->reader);
    stream_states_finish(&f->states);
    OBJECT_CLEAR(machine_description, &f->description);
    free(f->crcs);
    free(f->path);
    free(f);
}

const struct machine_description *snapshot_description(const struct snapshot_file *f)
{
    return &f->description;
}

/* Without holes: they are zero in memory already. */
static int image_region_read(struct snapshot_file *f, const struct guest_region *r, uint64_t offset,
                             struct error *err)
{
    off_t at = (off_t)offset, end = (off_t)(offset + r->size);
    while (at < end) {
        off_t data = lseek(f->fd, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            return 0;
        if (data >= end)
            return 0;
        at = data < 0 ? at : data; /* a file system that knows no holes */
        off_t hole = lseek(f->fd, at, SEEK_HOLE);
        off_t stop = hole < 0 || hole > end ? end : hole;
        while (at < stop) {
            ssize_t n = pread(f->fd, r->host + (at - (off_t)offset), (size_t)(stop - at), at);
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                return error_errno(err, n < 0 ? -errno : -EIO, "cannot read memory");
            at += n;
        }
    }
    return 0;
}

/* Piece by piece, what is not zeros: what was never touched stays so, and costs no memory of the host. @base: of the whole memory. */
static int image_region_copy(const struct snapshot_file *f, const struct guest_region *r, uint64_t base, bool verify, struct error *err)
{
    CLEANUP_FREE uint8_t *piece = xcalloc(1, SNAPSHOT_PIECE_BYTES);
    const uint32_t zeros = bytes_crc32c(0, piece, SNAPSHOT_PIECE_BYTES);
    for (uint64_t at = 0; at < r->size; at += SNAPSHOT_PIECE_BYTES) {
        size_t size = MIN((uint64_t)SNAPSHOT_PIECE_BYTES, r->size - at), done = 0;
        off_t offset = (off_t)(f->image_offset + base + at), data = lseek(f->fd, offset, SEEK_DATA);
        uint32_t crc = zeros;
        bool hole = size == SNAPSHOT_PIECE_BYTES && (data < 0 ? errno == ENXIO : data >= offset + (off_t)size);
        while (!hole && done < size) {
            ssize_t n = pread(f->fd, piece + done, size - done, offset + (off_t)done);
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                return error_errno(err, n < 0 ? -errno : -EIO, "cannot read memory");
            done += (size_t)n;
        }
        if (verify && !hole)
            crc = bytes_crc32c(0, piece, size);
        if (verify && crc != f->crcs[(base + at) / SNAPSHOT_PIECE_BYTES])
            return error_set(err, -EBADMSG, ERROR_CHECKSUM, "memory at %#llx is damaged", (unsigned long long)(r->gpa + at));
        for (size_t page = 0; page < done; page += GUEST_PAGE_BYTES)
            if (!stream_page_is_zero(piece + page))
                memcpy(r->host + at + page, piece + page, GUEST_PAGE_BYTES);
    }
    return 0;
}

static int image_verify(const struct snapshot_file *f, const struct guest_region *r, uint64_t base, struct error *err)
{
    for (uint64_t at = 0; at < r->size; at += SNAPSHOT_PIECE_BYTES)
        if (bytes_crc32c(0, r->host + at, MIN((uint64_t)SNAPSHOT_PIECE_BYTES, r->size - at)) !=
            f->crcs[(base + at) / SNAPSHOT_PIECE_BYTES])
            return error_set(err, -EBADMSG, ERROR_CHECKSUM, "memory at %#llx is damaged",
                             (unsigned long long)(r->gpa + at));
    return 0;
}

static int image_load(struct snapshot_file *f, struct guest *guest, const struct guest_region *regions, size_t count,
                      unsigned how, struct error *err)
{
    uint64_t base = 0;
    for (size_t i = 0; i < count; i++) {
        int code = -ENOTSUP;
        if (how & SNAPSHOT_COPY) {
            code = image_region_copy(f, &regions[i], base, how & SNAPSHOT_VERIFY, err);
            if (code < 0)
                return code;
            base += regions[i].size;
            continue;
        }
        if (guest->ops->memory_map)
            code = guest->ops->memory_map(guest, i, f->fd, f->image_offset + base, err);
        if (code == -ENOTSUP)
            code = image_region_read(f, &regions[i], f->image_offset + base, err);
        if (code == 0 && how & SNAPSHOT_VERIFY)
            code = image_verify(f, &regions[i], base, err);
        if (code < 0)
            return code;
        base += regions[i].size;
    }
    return 0;
}

static int pages_load(struct snapshot_file *f, const struct guest_region *regions, size_t count, struct error *err)
{
    struct stream_pages_reader *pages = stream_pages_reader_create();
    struct stream_section s = f->first;
    int code = 1;
    while (code > 0 && s.tag != STREAM_END) {
        code = s.tag == STREAM_PAGES ? stream_pages_apply(pages, &s, regions, count, true, err)
                                     : refuse(err, "there is something between its memory and its end");
        if (code == 0)
            code = section_read(f, &s, err);
    }
    stream_pages_reader_destroy(pages);
    if (code > 0 && f->fed != f->size)
        return refuse(err, "there is more after its end");
    return MIN(code, 0);
}

int snapshot_load(struct snapshot_file *f, struct guest *guest, unsigned how, struct error *err)
{
    struct guest_region regions[GUEST_REGIONS_MAX];
    size_t count = guest->ops->regions(guest, regions);
    int code = 0;
    if (regions_bytes(regions, count) != f->description.memory_bytes)
        code = error_set(err, -EINVAL, ERROR_INVALID, "it has %llu bytes of memory, this machine %llu",
                         (unsigned long long)f->description.memory_bytes,
                         (unsigned long long)regions_bytes(regions, count));
    else if (f->image_offset)
        code = image_load(f, guest, regions, count, how, err);
    else
        code = pages_load(f, regions, count, err);
    if (code == 0)
        code = guest->ops->state_load(guest, &f->states, err);
    if (code == 0)
        code = stream_states_check_taken(&f->states, err);
    if (code < 0)
        error_prefix(err, "%s: ", f->path);
    return code;
}
