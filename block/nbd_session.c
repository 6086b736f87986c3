/* An NBD client's session: see nbd_session.h. Below: answers, the options before the transmission, its requests. */
#include "block/nbd_session.h"

#include <errno.h>
#include <stdio.h>

#include "block/nbd_wire.h"

enum session_phase { SESSION_FLAGS, SESSION_OPTION, SESSION_OPTION_DATA, SESSION_REQUEST, SESSION_PAYLOAD, SESSION_SKIP, SESSION_OVER };
enum { CONTEXT_ALLOCATION = 1, CONTEXT_CHANGED = 2, HEAD_BYTES_MAX = 32, BUFFER_ALIGN = 4096 };

struct nbd_answer {
    struct list link;
    size_t head_size, data_size, sent;
    uint8_t *data; /* owned */
    uint8_t head[HEAD_BYTES_MAX];
};

struct nbd_request {
    struct block_request block;
    struct nbd_session *session;
    uint16_t flags, type;
    uint64_t cookie;
    bool flush_after;
    uint8_t *buffer; /* of READ and WRITE; owned */
    struct iovec one;
};

struct nbd_session {
    struct nbd_session_options options;
    enum session_phase phase;
    const char *reason;
    bool no_zeroes, structured;
    unsigned contexts;                /* bits of CONTEXT_ */
    const struct nbd_export *context_export, *export; /* NULL: none yet */
    unsigned option_count;
    uint32_t option, option_bytes;    /* the one whose data comes */
    size_t got;                       /* of what the phase waits for */
    uint8_t head[NBD_REQUEST_HEAD_BYTES];
    uint8_t data[NBD_OPTION_BYTES_MAX];
    struct nbd_request *writing;      /* whose payload comes */
    uint32_t skip_bytes;              /* of a payload that nobody wants */
    struct list answers;              /* struct nbd_answer */
    uint64_t bytes;                   /* under way and not sent */
    unsigned in_flight;
    struct list peer;                 /* in options.peers */
    bool has_writer;                  /* the client said which connection of its this is: */
    uint8_t writer_id[NBD_WRITER_ID_BYTES];
    uint64_t writer_number;
};

static void session_end(struct nbd_session *s, const char *reason)
{
    s->phase = SESSION_OVER;
    s->reason = reason;
}

static void phase_enter(struct nbd_session *s, enum session_phase phase)
{
    if (s->phase != SESSION_OVER)
        s->phase = phase;
    s->got = 0;
}

/* ---- answers ---- */

/* @data becomes the answer's. */
static void answer_add(struct nbd_session *s, const void *head, size_t head_size, uint8_t *data, size_t data_size)
{
    struct nbd_answer *a = NEW(struct nbd_answer);
    ASSERT(head_size <= HEAD_BYTES_MAX);
    memcpy(a->head, head, head_size);
    a->head_size = head_size;
    a->data = data;
    a->data_size = data_size;
    list_append(&s->answers, &a->link);
    s->bytes += head_size + data_size;
    s->options.wake(s->options.wake_arg);
}

static void answer_free(struct nbd_answer *a)
{
    list_remove(&a->link);
    free(a->data);
    free(a);
}

static void option_answer(struct nbd_session *s, uint32_t type, uint8_t *data, size_t size)
{
    uint8_t head[NBD_REPLY_HEAD_BYTES];
    uint8_t *at = nbd_put64(head, NBD_REPLY_MAGIC);
    at = nbd_put32(nbd_put32(at, s->option), type);
    nbd_put32(at, (uint32_t)size);
    answer_add(s, head, sizeof head, data, size);
}

/* With words for a person. */
static void option_refuse(struct nbd_session *s, uint32_t type, const char *why)
{
    option_answer(s, type, (uint8_t *)xstrdup(why), strlen(why));
}

static void chunk_answer(struct nbd_session *s, uint64_t cookie, uint16_t flags, uint16_t type, uint64_t offset,
                         uint8_t *data, size_t size)
{
    uint8_t head[NBD_CHUNK_HEAD_BYTES + 8];
    size_t more = type == NBD_CHUNK_DATA ? 8 : 0;
    uint8_t *at = nbd_put32(head, NBD_CHUNK_MAGIC);
    at = nbd_put16(nbd_put16(at, flags), type);
    at = nbd_put32(nbd_put64(at, cookie), (uint32_t)(size + more));
    if (more > 0)
        nbd_put64(at, offset);
    answer_add(s, head, NBD_CHUNK_HEAD_BYTES + more, data, size);
}

static uint32_t wire_error(int code)
{
    switch (-code) {
    case EPERM:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
    case ERANGE:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
        return NBD_ENOSPC;
    case EOPNOTSUPP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

/* The end of a request other than a READ that succeeded or a BLOCK_STATUS. */
static void request_answer(struct nbd_session *s, uint16_t type, uint64_t cookie, int code)
{
    uint8_t head[NBD_SIMPLE_HEAD_BYTES];
    bool in_chunks = s->structured && (type == NBD_CMD_READ || type == NBD_CMD_BLOCK_STATUS);
    if (in_chunks) {
        uint8_t *data = xcalloc(1, 6);
        nbd_put32(data, wire_error(code)); /* and a text of no bytes */
        chunk_answer(s, cookie, NBD_CHUNK_DONE, NBD_CHUNK_ERROR, 0, data, 6);
        return;
    }
    uint8_t *at = nbd_put32(head, NBD_SIMPLE_MAGIC);
    at = nbd_put32(at, code == 0 ? 0 : wire_error(code));
    nbd_put64(at, cookie);
    answer_add(s, head, sizeof head, NULL, 0);
}

/* ---- options ---- */

static const struct nbd_export *export_find(const struct nbd_session *s, const uint8_t *name, uint32_t size)
{
    for (unsigned i = 0; i < s->options.export_count; i++) {
        const struct nbd_export *e = &s->options.exports[i];
        bool is_it = (size == 0 && i == 0) || (strlen(e->name) == size && memcmp(e->name, name, size) == 0);
        if (is_it && e->block != NULL)
            return e;
    }
    return NULL;
}

static uint16_t export_flags(const struct nbd_session *s, const struct nbd_export *e)
{
    const struct block *b = e->block;
    unsigned flags = NBD_HAS_FLAGS | (s->structured ? NBD_SEND_DF : 0);
    if (e->access == NBD_ACCESS_READ || (e->access == NBD_ACCESS_WRITE && b->read_only))
        return (uint16_t)(flags | NBD_READ_ONLY);
    flags |= b->can_discard ? NBD_SEND_TRIM : 0;
    if (e->access == NBD_ACCESS_WRITE)
        flags |= NBD_SEND_FLUSH | NBD_SEND_FUA | (b->can_write_zeroes ? NBD_SEND_WRITE_ZEROES : 0);
    return (uint16_t)flags;
}

static void transmission_enter(struct nbd_session *s, const struct nbd_export *e)
{
    s->export = e;
    if (s->context_export != e) /* they were chosen for another one */
        s->contexts = 0;
    phase_enter(s, SESSION_REQUEST);
}

static void option_export_name(struct nbd_session *s)
{
    const struct nbd_export *e = export_find(s, s->data, s->option_bytes);
    uint8_t head[10];
    if (e == NULL) { /* there is no other way to say so */
        session_end(s, "no such export");
        return;
    }
    nbd_put16(nbd_put64(head, e->block->size_bytes), export_flags(s, e));
    size_t zeroes = s->no_zeroes ? 0 : 124;
    answer_add(s, head, sizeof head, zeroes > 0 ? xcalloc(1, zeroes) : NULL, zeroes);
    transmission_enter(s, e);
}

static void option_list(struct nbd_session *s)
{
    if (s->option_bytes != 0) {
        option_refuse(s, NBD_REP_INVALID, "LIST has no data");
        return;
    }
    for (unsigned i = 0; i < s->options.export_count; i++) {
        const struct nbd_export *e = &s->options.exports[i];
        if (e->block == NULL)
            continue;
        uint32_t length = (uint32_t)strlen(e->name);
        uint8_t *data = xcalloc(1, 4 + length);
        memcpy(nbd_put32(data, length), e->name, length);
        option_answer(s, NBD_REP_SERVER, data, 4 + length);
    }
    option_answer(s, NBD_REP_ACK, NULL, 0);
}

/* The name at the beginning of the option's data; NULL: malformed or unknown, and refused. */
static const struct nbd_export *option_take_name(struct nbd_session *s, uint32_t *ret_at)
{
    uint32_t length = s->option_bytes < 4 ? 0 : nbd_get32(s->data);
    if (s->option_bytes < 4 || length > s->option_bytes - 4 || length > NBD_NAME_BYTES_MAX) {
        option_refuse(s, NBD_REP_INVALID, "the name is longer than the option");
        return NULL;
    }
    const struct nbd_export *e = export_find(s, s->data + 4, length);
    *ret_at = 4 + length;
    if (e == NULL)
        option_refuse(s, NBD_REP_UNKNOWN, "no such export");
    return e;
}

/* INFO and GO. What the client asks for besides does not matter: all that we have is told. */
static void option_go(struct nbd_session *s)
{
    uint32_t at;
    const struct nbd_export *e = option_take_name(s, &at);
    if (e == NULL)
        return;
    if (s->option_bytes - at < 2 || s->option_bytes - at != 2 + 2u * nbd_get16(s->data + at)) {
        option_refuse(s, NBD_REP_INVALID, "the list of requests does not fit the option");
        return;
    }
    uint8_t *info = xcalloc(1, 12), *sizes = xcalloc(1, 14);
    nbd_put16(nbd_put64(nbd_put16(info, NBD_INFO_EXPORT), e->block->size_bytes), export_flags(s, e));
    uint8_t *to = nbd_put32(nbd_put16(sizes, NBD_INFO_BLOCK_SIZE), BLOCK_SECTOR_BYTES);
    nbd_put32(nbd_put32(to, MAX(e->block->block_bytes, 4096u)), NBD_REQUEST_BYTES_MAX);
    option_answer(s, NBD_REP_INFO, info, 12);
    option_answer(s, NBD_REP_INFO, sizes, 14);
    option_answer(s, NBD_REP_ACK, NULL, 0);
    if (s->option == NBD_OPT_GO)
        transmission_enter(s, e);
}

enum { CONTEXT_NAME_SIZE = sizeof NBD_CONTEXT_CHANGED + NBD_SINCE_BYTES_MAX };

/* False: the export has no such context. */
static bool context_name(const struct nbd_export *e, unsigned bit, char name[CONTEXT_NAME_SIZE])
{
    if (bit == CONTEXT_ALLOCATION)
        strcpy(name, NBD_CONTEXT_ALLOCATION);
    else if (e->changed_since != NULL)
        snprintf(name, CONTEXT_NAME_SIZE, NBD_CONTEXT_CHANGED "%s", e->changed_since);
    return bit == CONTEXT_ALLOCATION || e->changed_since != NULL;
}

static unsigned context_bits(const struct nbd_export *e, const uint8_t *query, uint32_t size, bool is_list)
{
    unsigned bits = 0;
    char name[CONTEXT_NAME_SIZE];
    for (unsigned bit = CONTEXT_ALLOCATION; bit <= CONTEXT_CHANGED; bit <<= 1) {
        if (!context_name(e, bit, name))
            continue;
        size_t space = (size_t)(strchr(name, ':') - name) + 1; /* LIST takes "base:" as well */
        if ((size == strlen(name) || (is_list && size == space)) && memcmp(name, query, size) == 0)
            bits |= bit;
    }
    return bits;
}

static void context_tell(struct nbd_session *s, const struct nbd_export *e, unsigned bit)
{
    char name[CONTEXT_NAME_SIZE] = "";
    (void)context_name(e, bit, name);
    size_t length = strlen(name);
    uint8_t *data = xcalloc(1, 4 + length);
    memcpy(nbd_put32(data, s->option == NBD_OPT_SET_CONTEXTS ? bit : 0), name, length);
    option_answer(s, NBD_REP_CONTEXT, data, 4 + length);
}

static void option_contexts(struct nbd_session *s)
{
    uint32_t at, count, size = s->option_bytes;
    bool is_list = s->option == NBD_OPT_LIST_CONTEXTS;
    if (!s->structured) {
        option_refuse(s, NBD_REP_INVALID, "ask for structured replies first");
        return;
    }
    const struct nbd_export *e = option_take_name(s, &at);
    if (e == NULL)
        return;
    count = size - at < 4 ? UINT32_MAX : nbd_get32(s->data + at);
    at += 4;
    unsigned bits = is_list && count == 0 ? CONTEXT_ALLOCATION | (e->changed_since != NULL ? CONTEXT_CHANGED : 0) : 0;
    for (uint32_t i = 0; count <= NBD_QUERIES_MAX && i < count; i++) {
        uint32_t length = size - at < 4 ? UINT32_MAX : nbd_get32(s->data + at);
        if (length > size - at || length > size - at - 4) {
            count = UINT32_MAX;
            break;
        }
        bits |= context_bits(e, s->data + at + 4, length, is_list);
        at += 4 + length;
    }
    if (count > NBD_QUERIES_MAX || at != size) {
        option_refuse(s, NBD_REP_INVALID, "the list of contexts does not fit the option");
        return;
    }
    for (unsigned bit = CONTEXT_ALLOCATION; bit <= CONTEXT_CHANGED; bit <<= 1)
        if (bits & bit)
            context_tell(s, e, bit);
    option_answer(s, NBD_REP_ACK, NULL, 0);
    if (!is_list) {
        s->contexts = bits;
        s->context_export = e;
    }
}

/* Its client has come again: nothing of this session touches the disk after this call. */
static void session_cut(struct nbd_session *s)
{
    if (s->in_flight > 0)
        block_drain(s->export->block);
    ASSERT(s->in_flight == 0);
    while (!list_empty(&s->answers)) { /* nobody reads them */
        struct nbd_answer *a = LIST_ENTRY(s->answers.next, struct nbd_answer, link);
        s->bytes -= a->head_size + a->data_size - a->sent;
        answer_free(a);
    }
    session_end(s, "the client has come again over another connection");
    s->options.wake(s->options.wake_arg);
}

static void option_writer(struct nbd_session *s)
{
    if (s->options.peers == NULL) {
        option_refuse(s, NBD_REP_UNSUPPORTED, "not offered here");
        return;
    }
    if (s->option_bytes != NBD_WRITER_BYTES || s->has_writer) {
        option_refuse(s, NBD_REP_INVALID, "a client says once who it is");
        return;
    }
    memcpy(s->writer_id, s->data, NBD_WRITER_ID_BYTES);
    s->writer_number = nbd_get64(s->data + NBD_WRITER_ID_BYTES);
    LIST_FOREACH(link, s->options.peers) {
        struct nbd_session *peer = LIST_ENTRY(link, struct nbd_session, peer);
        bool is_same = peer->has_writer && memcmp(peer->writer_id, s->writer_id, NBD_WRITER_ID_BYTES) == 0;
        if (!is_same || peer->phase == SESSION_OVER)
            continue;
        if (peer->writer_number >= s->writer_number) { /* words of a connection that its client has given up long since */
            option_refuse(s, NBD_REP_POLICY, "this client has a later connection");
            session_end(s, "");
            return;
        }
        session_cut(peer);
    }
    s->has_writer = true;
    option_answer(s, NBD_REP_ACK, NULL, 0);
}

static void option_take(struct nbd_session *s)
{
    switch (s->option) {
    case NBD_OPT_EXPORT_NAME:
        option_export_name(s);
        break;
    case NBD_OPT_ABORT:
        option_answer(s, NBD_REP_ACK, NULL, 0);
        session_end(s, "");
        break;
    case NBD_OPT_LIST:
        option_list(s);
        break;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        option_go(s);
        break;
    case NBD_OPT_STRUCTURED:
        s->structured = s->structured || s->option_bytes == 0;
        option_answer(s, s->option_bytes == 0 ? NBD_REP_ACK : NBD_REP_INVALID, NULL, 0);
        break;
    case NBD_OPT_LIST_CONTEXTS:
    case NBD_OPT_SET_CONTEXTS:
        option_contexts(s);
        break;
    case NBD_OPT_WRITER:
        option_writer(s);
        break;
    default:
        option_refuse(s, NBD_REP_UNSUPPORTED, "not offered here");
    }
    if (s->phase == SESSION_OPTION_DATA)
        phase_enter(s, SESSION_OPTION);
}

static void option_head_take(struct nbd_session *s)
{
    s->option = nbd_get32(s->head + 8);
    s->option_bytes = nbd_get32(s->head + 12);
    if (nbd_get64(s->head) != NBD_OPTION_MAGIC)
        session_end(s, "an option begins with something else than its magic number");
    else if (s->option_bytes > NBD_OPTION_BYTES_MAX)
        session_end(s, "an option is too long");
    else if (++s->option_count > NBD_OPTIONS_MAX)
        session_end(s, "too many options");
    phase_enter(s, SESSION_OPTION_DATA);
    if (s->phase == SESSION_OPTION_DATA && s->option_bytes == 0)
        option_take(s);
}

static void flags_take(struct nbd_session *s)
{
    uint32_t flags = nbd_get32(s->head);
    s->no_zeroes = (flags & NBD_FLAG_NO_ZEROES) != 0;
    if ((flags & ~(uint32_t)(NBD_FLAG_FIXED | NBD_FLAG_NO_ZEROES)) != 0 || !(flags & NBD_FLAG_FIXED))
        session_end(s, "the client's flags are not those of fixed newstyle");
    phase_enter(s, SESSION_OPTION);
}

/* ---- requests ---- */

static void request_free(struct nbd_request *r)
{
    free(r->buffer);
    free(r);
}

static void request_done(struct block_request *block, int result)
{
    struct nbd_request *r = CONTAINER_OF(block, struct nbd_request, block);
    struct nbd_session *s = r->session;
    if (result == 0 && r->flush_after) {
        r->flush_after = false;
        r->block.op = BLOCK_FLUSH;
        result = block_submit(s->export->block, &r->block);
        if (result == 0)
            return;
    }
    s->in_flight--;
    s->bytes -= r->buffer != NULL ? r->one.iov_len : 0;
    if (r->type != NBD_CMD_READ || result < 0) {
        request_answer(s, r->type, r->cookie, result);
    } else if (s->structured) {
        chunk_answer(s, r->cookie, NBD_CHUNK_DONE, NBD_CHUNK_DATA, r->block.offset, TAKE_PTR(r->buffer), r->one.iov_len);
    } else {
        uint8_t head[NBD_SIMPLE_HEAD_BYTES];
        nbd_put64(nbd_put32(nbd_put32(head, NBD_SIMPLE_MAGIC), 0), r->cookie);
        answer_add(s, head, sizeof head, TAKE_PTR(r->buffer), r->one.iov_len);
    }
    request_free(r);
}

static void request_submit(struct nbd_session *s, struct nbd_request *r)
{
    int code = block_submit(s->export->block, &r->block);
    if (code == 0) {
        s->in_flight++;
        return;
    }
    s->bytes -= r->buffer != NULL ? r->one.iov_len : 0;
    request_answer(s, r->type, r->cookie, code);
    request_free(r);
}

/* Up to where the allocation at @from is the same, at most @end. */
static uint32_t allocation_of(struct block *b, uint64_t from, uint64_t end, uint64_t *ret_end)
{
    uint64_t start = 0, stop = 0;
    int code = block_next_data(b, from, &start, &stop);
    if (code < 0) { /* whoever is not sure has to read */
        *ret_end = end;
        return 0;
    }
    if (code == 0 || start >= end) {
        *ret_end = end;
        return NBD_STATE_HOLE | NBD_STATE_ZERO;
    }
    *ret_end = start > from ? start : MIN(stop, end);
    return start > from ? NBD_STATE_HOLE | NBD_STATE_ZERO : 0;
}

static uint8_t *status_make(struct nbd_session *s, unsigned context, uint64_t offset, uint64_t size, unsigned max,
                            size_t *ret_size)
{
    const struct nbd_export *e = s->export;
    uint8_t *data = xcalloc(max, 8), *to = data;
    uint32_t flags_before = 0;
    uint8_t *last = NULL;
    uint64_t end = offset + size, stop;
    for (uint64_t at = offset; at < end; at = stop) {
        uint32_t flags;
        if (context == CONTEXT_ALLOCATION) {
            flags = allocation_of(e->block, at, end, &stop);
        } else {
            flags = e->changed(e->changed_arg, at, &stop) ? NBD_STATE_CHANGED : 0;
            stop = MIN(stop, end);
        }
        ASSERT(stop > at);
        if (last != NULL && flags == flags_before) {
            nbd_put32(last, nbd_get32(last) + (uint32_t)(stop - at));
            continue;
        }
        if ((unsigned)(to - data) / 8 == max)
            break;
        last = to;
        flags_before = flags;
        to = nbd_put32(nbd_put32(to, (uint32_t)(stop - at)), flags);
    }
    *ret_size = (size_t)(to - data);
    return data;
}

static void status_answer(struct nbd_session *s, uint64_t cookie, uint16_t flags, uint64_t offset, uint64_t size)
{
    unsigned max = flags & NBD_CMD_REQ_ONE ? 1 : NBD_EXTENTS_MAX;
    for (unsigned bit = CONTEXT_ALLOCATION; bit <= CONTEXT_CHANGED; bit <<= 1) {
        uint8_t id[4];
        size_t extents_size;
        if (!(s->contexts & bit))
            continue;
        uint8_t *extents = status_make(s, bit, offset, size, max, &extents_size);
        uint8_t *data = xcalloc(1, sizeof id + extents_size);
        memcpy(nbd_put32(data, bit), extents, extents_size);
        free(extents);
        bool is_last = s->contexts >> 1 < bit;
        chunk_answer(s, cookie, is_last ? NBD_CHUNK_DONE : 0, NBD_CHUNK_STATUS, 0, data, sizeof id + extents_size);
    }
}

static bool is_allowed(const struct nbd_session *s, uint16_t type)
{
    const struct nbd_export *e = s->export;
    if (type == NBD_CMD_READ || type == NBD_CMD_BLOCK_STATUS || e->access == NBD_ACCESS_WRITE)
        return true;
    return e->access == NBD_ACCESS_READ_TRIM && type == NBD_CMD_TRIM;
}

/* 0, or the error that it is refused with. */
static int request_check(const struct nbd_session *s, uint16_t flags, uint16_t type, uint64_t offset, uint32_t size)
{
    static const struct {
        uint16_t type, flags;
    } known[] = {
        {NBD_CMD_READ, NBD_CMD_DF},
        {NBD_CMD_WRITE, NBD_CMD_FUA},
        {NBD_CMD_FLUSH, 0},
        {NBD_CMD_TRIM, NBD_CMD_FUA},
        {NBD_CMD_WRITE_ZEROES, NBD_CMD_FUA | NBD_CMD_NO_HOLE},
        {NBD_CMD_BLOCK_STATUS, NBD_CMD_REQ_ONE},
    };
    uint64_t total = s->export->block->size_bytes;
    for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
        if (known[i].type != type)
            continue;
        if ((flags & ~known[i].flags) != 0)
            return -EINVAL;
        if (!is_allowed(s, type))
            return -EPERM;
        if (type == NBD_CMD_FLUSH)
            return offset == 0 && size == 0 ? 0 : -EINVAL;
        if (size == 0 || size % BLOCK_SECTOR_BYTES != 0 || offset % BLOCK_SECTOR_BYTES != 0 || offset > total)
            return -EINVAL;
        if (size > total - offset)
            return type == NBD_CMD_WRITE || type == NBD_CMD_WRITE_ZEROES ? -ENOSPC : -EINVAL;
        if (type == NBD_CMD_BLOCK_STATUS && s->contexts == 0)
            return -EINVAL;
        return (type == NBD_CMD_READ || type == NBD_CMD_WRITE) && size > NBD_REQUEST_BYTES_MAX ? -EINVAL : 0;
    }
    return -EINVAL;
}

static struct nbd_request *request_create(struct nbd_session *s, uint16_t flags, uint16_t type, uint64_t cookie,
                                          uint64_t offset, uint32_t size)
{
    static const enum block_op ops[] = {
        [NBD_CMD_READ] = BLOCK_READ, [NBD_CMD_WRITE] = BLOCK_WRITE, [NBD_CMD_FLUSH] = BLOCK_FLUSH,
        [NBD_CMD_TRIM] = BLOCK_DISCARD, [NBD_CMD_WRITE_ZEROES] = BLOCK_WRITE_ZEROES,
    };
    struct nbd_request *r = NEW(struct nbd_request);
    r->session = s;
    r->flags = flags;
    r->type = type;
    r->cookie = cookie;
    r->flush_after = (flags & NBD_CMD_FUA) != 0;
    r->block = (struct block_request){.op = ops[type],
                                      .may_unmap = !(flags & NBD_CMD_NO_HOLE),
                                      .offset = offset,
                                      .size = size,
                                      .done = request_done};
    if (type != NBD_CMD_READ && type != NBD_CMD_WRITE)
        return r;
    r->buffer = aligned_alloc(BUFFER_ALIGN, (size + BUFFER_ALIGN - 1) / BUFFER_ALIGN * BUFFER_ALIGN);
    if (r->buffer == NULL) {
        free(r);
        return NULL;
    }
    r->one = (struct iovec){r->buffer, size};
    r->block.iovecs = &r->one;
    r->block.iovec_count = 1;
    s->bytes += size;
    return r;
}

static void request_head_take(struct nbd_session *s)
{
    uint16_t flags = nbd_get16(s->head + 4), type = nbd_get16(s->head + 6);
    uint64_t cookie = nbd_get64(s->head + 8), offset = nbd_get64(s->head + 16);
    uint32_t size = nbd_get32(s->head + 24);
    phase_enter(s, SESSION_REQUEST);
    if (nbd_get32(s->head) != NBD_REQUEST_MAGIC) {
        session_end(s, "a request begins with something else than its magic number");
        return;
    }
    if (type == NBD_CMD_DISCONNECT) {
        session_end(s, "");
        return;
    }
    int code = request_check(s, flags, type, offset, size);
    if (type == NBD_CMD_WRITE && size > NBD_REQUEST_BYTES_MAX) {
        session_end(s, "a write that is too long");
        return;
    }
    if (code == 0 && type == NBD_CMD_BLOCK_STATUS) {
        status_answer(s, cookie, flags, offset, size);
        return;
    }
    struct nbd_request *r = code == 0 ? request_create(s, flags, type, cookie, offset, size) : NULL;
    if (r == NULL) {
        request_answer(s, type, cookie, code < 0 ? code : -ENOMEM);
        s->skip_bytes = type == NBD_CMD_WRITE ? size : 0;
        if (s->skip_bytes > 0)
            phase_enter(s, SESSION_SKIP);
    } else if (type == NBD_CMD_WRITE) {
        s->writing = r;
        phase_enter(s, SESSION_PAYLOAD);
    } else {
        request_submit(s, r);
    }
}

static void payload_take(struct nbd_session *s)
{
    struct nbd_request *r = TAKE_PTR(s->writing);
    phase_enter(s, SESSION_REQUEST);
    request_submit(s, r);
}

/* ---- bytes ---- */

/* How much the phase waits for, and where it goes. */
static size_t phase_bytes(struct nbd_session *s, uint8_t **ret_at)
{
    *ret_at = s->head;
    switch (s->phase) {
    case SESSION_FLAGS:
        return NBD_CLIENT_FLAGS_BYTES;
    case SESSION_OPTION:
        return NBD_OPTION_HEAD_BYTES;
    case SESSION_OPTION_DATA:
        *ret_at = s->data;
        return s->option_bytes;
    case SESSION_REQUEST:
        return NBD_REQUEST_HEAD_BYTES;
    case SESSION_PAYLOAD:
        *ret_at = s->writing->buffer;
        return s->writing->one.iov_len;
    case SESSION_SKIP:
        *ret_at = s->data;
        return MIN(s->skip_bytes, (uint32_t)sizeof s->data);
    case SESSION_OVER:
        break;
    }
    return 0;
}

void *nbd_session_room(struct nbd_session *s, size_t *ret_size)
{
    uint8_t *at;
    size_t bytes = phase_bytes(s, &at);
    bool is_payload = s->phase == SESSION_PAYLOAD || s->phase == SESSION_SKIP;
    bool is_full = s->in_flight >= NBD_REQUESTS_MAX || s->bytes >= s->options.bytes_max;
    if (s->phase == SESSION_OVER || (is_full && !is_payload && s->got == 0))
        return NULL;
    *ret_size = bytes - s->got;
    return at + s->got;
}

void nbd_session_received(struct nbd_session *s, size_t size)
{
    uint8_t *at;
    size_t bytes = phase_bytes(s, &at);
    ASSERT(s->phase != SESSION_OVER && size <= bytes - s->got);
    s->got += size;
    if (s->got < bytes)
        return;
    switch (s->phase) {
    case SESSION_FLAGS:
        flags_take(s);
        break;
    case SESSION_OPTION:
        option_head_take(s);
        break;
    case SESSION_OPTION_DATA:
        option_take(s);
        break;
    case SESSION_REQUEST:
        request_head_take(s);
        break;
    case SESSION_PAYLOAD:
        payload_take(s);
        break;
    case SESSION_SKIP:
        s->skip_bytes -= (uint32_t)bytes;
        phase_enter(s, s->skip_bytes > 0 ? SESSION_SKIP : SESSION_REQUEST);
        break;
    case SESSION_OVER:
        break;
    }
}

unsigned nbd_session_output(const struct nbd_session *s, struct iovec *ret_iovecs, unsigned max)
{
    unsigned count = 0;
    LIST_FOREACH(link, &s->answers) {
        struct nbd_answer *a = LIST_ENTRY(link, struct nbd_answer, link);
        if (count + 2 > max)
            break;
        size_t of_head = MIN(a->sent, a->head_size), of_data = a->sent - of_head;
        if (of_head < a->head_size)
            ret_iovecs[count++] = (struct iovec){a->head + of_head, a->head_size - of_head};
        if (of_data < a->data_size)
            ret_iovecs[count++] = (struct iovec){a->data + of_data, a->data_size - of_data};
    }
    return count;
}

void nbd_session_sent(struct nbd_session *s, size_t size)
{
    while (size > 0) {
        ASSERT(!list_empty(&s->answers));
        struct nbd_answer *a = LIST_ENTRY(s->answers.next, struct nbd_answer, link);
        size_t n = MIN(size, a->head_size + a->data_size - a->sent);
        a->sent += n;
        size -= n;
        s->bytes -= n;
        if (a->sent == a->head_size + a->data_size)
            answer_free(a);
    }
}

bool nbd_session_is_over(const struct nbd_session *s)
{
    return s->phase == SESSION_OVER && s->in_flight == 0;
}

const char *nbd_session_reason(const struct nbd_session *s)
{
    return s->reason;
}

int nbd_session_export(const struct nbd_session *s)
{
    return s->export == NULL ? -1 : (int)(s->export - s->options.exports);
}

struct nbd_session *nbd_session_create(const struct nbd_session_options *options)
{
    struct nbd_session *s = NEW(struct nbd_session);
    uint8_t hello[NBD_HELLO_BYTES];
    s->options = *options;
    s->reason = "";
    list_init(&s->answers);
    list_init(&s->peer);
    if (options->peers != NULL)
        list_append(options->peers, &s->peer);
    nbd_put16(nbd_put64(nbd_put64(hello, NBD_MAGIC), NBD_OPTION_MAGIC), NBD_FLAG_FIXED | NBD_FLAG_NO_ZEROES);
    answer_add(s, hello, sizeof hello, NULL, 0);
    return s;
}

void nbd_session_destroy(struct nbd_session *s)
{
    if (s == NULL)
        return;
    if (s->in_flight > 0)
        block_drain(s->export->block);
    ASSERT(s->in_flight == 0);
    list_remove(&s->peer);
    if (s->writing != NULL)
        request_free(s->writing);
    while (!list_empty(&s->answers))
        answer_free(LIST_ENTRY(s->answers.next, struct nbd_answer, link));
    free(s);
}
