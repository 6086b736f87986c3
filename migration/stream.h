/* The stream that a machine travels in: through a socket (migration) or as a file (snapshot). One format, one reader.
 *
 *   prologue   8 bytes "DROVERVM", u16 version, u16 oldest version whose readers may read it, u32 CRC32C of the
 *              12 bytes before                                                                      (16 bytes)
 *   section    u16 tag, u16 version, u16 flags, u16 0, u32 number, u32 payload bytes, u32 CRC32C of the payload,
 *              u32 CRC32C of the 20 bytes before; then the payload                                  (24 bytes +
 * payload)
 *   ...        numbers count up from 0: nothing is lost, doubled or swapped unseen
 *
 * All integers are little-endian. Section 0 is HEADER, the last one END; between them any number of the others, in
 * the order that the use asks for (snapshot_file.h, migrate_wire.h). A reader that meets a tag it does not know passes
 * over it, unless its flag MUST_UNDERSTAND is set; a version of a known tag that is newer is refused. Everything that a reader
 * needs to know beforehand is named in the header's `features`.
 *
 *   tag  name    payload
 *    1   HEADER  JSON of machine_description (schema/objects.def)
 *    2   STATE   u8 length and name of the device ("vcpu0", "serial0"), then the device's own bytes; version is that of
 *                the device's state
 *    3   PAGES   a batch of guest memory: stream_pages.h
 *    4   IMAGE   where a snapshot file holds guest memory as it is: snapshot_file.h
 *    5   END     u32 number of sections before it, u64 bytes of the stream before it
 *    6   MIGRATE a step of a live migration: migrate_wire.h
 *
 * Reading: bytes are fed in pieces of any size; sections come out whole and checked. What is held is one section, at
 * most STREAM_SECTION_BYTES_MAX, and a length is judged before anything is allocated for it.
 * Failure modes, all -EBADMSG but where said, and final: wrong magic, damage (CRC), out of order, too long, bytes
 * after END; -ENOTSUP: newer than this program. The end of input before END is the caller's to see:
 * stream_reader_finish().
 * Threads: one at a time for each writer and reader. */
#ifndef MIGRATION_STREAM_H
#define MIGRATION_STREAM_H

#include "common/bytes.h"
#include "common/error.h"
#include "schema/objects.h"

#define STREAM_MAGIC "DROVERVM"
#define STREAM_SECTION_BYTES_MAX (16u << 20)
#define STREAM_HEADER_BYTES_MAX (256u << 10)
#define STREAM_NAME_BYTES_MAX 31u
#define STREAM_STATES_MAX 256u              /* STATE sections of one machine... */
#define STREAM_STATES_BYTES_MAX (64u << 20) /* ...and their bytes in all */
enum {
    STREAM_VERSION = 1,
    STREAM_PROLOGUE_BYTES = 16,
    STREAM_SECTION_HEAD_BYTES = 24,
};

enum stream_tag {
    STREAM_HEADER = 1,
    STREAM_STATE = 2,
    STREAM_PAGES = 3,
    STREAM_IMAGE = 4,
    STREAM_END = 5,
    STREAM_MIGRATE = 6,
};
enum stream_flag { STREAM_MUST_UNDERSTAND = 1 };

/* Names of features that this program can read; a writer puts those it uses into the header. */
#define STREAM_FEATURE_ZSTD "zstd"   /* PAGES may be compressed */
#define STREAM_FEATURE_IMAGE "image" /* memory is in an IMAGE */
#define STREAM_FEATURE_MIGRATE "migrate" /* it is a live migration: steps between, answers the other way */

/* ---- writing ---- */

/* Takes all of @data or fails. */
typedef int (*stream_write_fn)(void *arg, const void *data, size_t size, struct error *err);

struct stream_writer {
    stream_write_fn write;
    void *arg;
    uint32_t sections; /* written so far */
    uint64_t bytes;
};

/* Prologue and header. */
int stream_writer_begin(struct stream_writer *w, stream_write_fn write, void *arg,
                        const struct machine_description *header, struct error *err);
/* One section; @size within STREAM_SECTION_BYTES_MAX. After a failure the stream is worthless. */
int stream_put(struct stream_writer *w, uint16_t tag, uint16_t version, uint16_t flags, const void *payload,
               size_t size, struct error *err);
/* A STATE section that must be understood. @name: 1 to STREAM_NAME_BYTES_MAX bytes. */
int stream_put_state(struct stream_writer *w, const char *name, uint16_t version, const void *data, size_t size,
                     struct error *err);
int stream_put_end(struct stream_writer *w, struct error *err);

/* ---- reading ---- */

struct stream_section {
    uint16_t tag, version, flags;
    uint32_t number;
    const uint8_t *payload; /* valid until the next call on the reader */
    size_t size;
};

struct stream_reader {
    struct bytes_writer buffer; /* fed and not yet consumed */
    size_t taken;               /* bytes at the start of the buffer that are done with */
    uint64_t bytes;             /* of the stream, consumed */
    uint32_t sections;          /* consumed */
    bool has_prologue, ended;
    int failed; /* the error of the first failure; every later call gives it again */
};

void stream_reader_init(struct stream_reader *r);
void stream_reader_finish(struct stream_reader *r);
/* How many bytes to feed before the next call of stream_next can do anything: > 0 unless the stream has ended. */
size_t stream_wanted(const struct stream_reader *r);
/* @size at most stream_wanted() is best; more is kept. */
void stream_feed(struct stream_reader *r, const void *data, size_t size);
/* 1: @ret_section is the next one (END too: then nothing follows); 0: feed more; negative: the stream is refused.
 * Optional sections with an unknown tag are passed over here. */
int stream_next(struct stream_reader *r, struct stream_section *ret_section, struct error *err);
/* -EBADMSG unless END was read: the input was cut short. */
int stream_check_ended(const struct stream_reader *r, struct error *err);

/* The header's content; also checks that every feature is known here. @ret_header must be zeroed and is cleared by
 * the caller (OBJECT_CLEAR). */
int stream_header_decode(const struct stream_section *section, struct machine_description *ret_header,
                         struct error *err);

/* ---- states, gathered ---- */

struct stream_state {
    char name[STREAM_NAME_BYTES_MAX + 1];
    uint16_t version;
    bool taken; /* somebody has loaded it */
    uint8_t *data;
    size_t size;
};
struct stream_states {
    struct stream_state *items;
    size_t count, bytes;
};

/* Keep a copy of a STATE section. -EBADMSG for a bad name, a double one, or too many. */
int stream_states_add(struct stream_states *states, const struct stream_section *section, struct error *err);
void stream_states_finish(struct stream_states *states);
/* The state of @name, marked as taken; NULL with words where there is none, or its version is above @version_max. */
struct stream_state *stream_states_take(struct stream_states *states, const char *name, uint16_t version_max,
                                        struct error *err);
/* -EBADMSG, naming it, when a state was taken by nobody: this machine lacks a device. */
int stream_states_check_taken(const struct stream_states *states, struct error *err);

#endif
