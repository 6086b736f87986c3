/* Split virtqueue, device side: see virtio_queue.h. */
#include "compute/vmm/virtio/virtio_queue.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_ring.h>
#include <string.h>

enum {
    DESC_BYTES = 16,
    USED_ENTRY_BYTES = 8,
    RING_HEADER_BYTES = 4, /* flags and idx, in both rings */
};

struct descriptor {
    uint64_t gpa;
    uint32_t size;
    uint16_t flags, next;
};

void virtio_queue_init(struct virtio_queue *q, struct guest_memory *memory, uint16_t size_max)
{
    ASSERT(size_max > 0 && size_max <= VIRTIO_QUEUE_SIZE_MAX && (size_max & (size_max - 1)) == 0);
    *q = (struct virtio_queue){.memory = memory, .size_max = size_max, .size = size_max};
}

void virtio_queue_reset(struct virtio_queue *q)
{
    virtio_queue_init(q, q->memory, q->size_max);
}

static int queue_break(struct virtio_queue *q, int code, const char *reason)
{
    q->broken = true;
    q->reason = reason;
    return code;
}

static void *ring_at(struct virtio_queue *q, uint64_t gpa, uint64_t size, uint64_t align)
{
    return gpa % align != 0 ? NULL : memory_at(q->memory, gpa, size);
}

int virtio_queue_enable(struct virtio_queue *q)
{
    if (q->size == 0 || q->size > q->size_max || (q->size & (q->size - 1)) != 0)
        return queue_break(q, -EINVAL, "queue size");
    /* Both rings end in a 16-bit event word that is there whether or not EVENT_IDX was negotiated (§2.7). */
    q->desc = ring_at(q, q->desc_gpa, (uint64_t)q->size * DESC_BYTES, 16);
    q->avail = ring_at(q, q->driver_gpa, RING_HEADER_BYTES + 2ull * q->size + 2, 2);
    q->used = ring_at(q, q->device_gpa, RING_HEADER_BYTES + (uint64_t)USED_ENTRY_BYTES * q->size + 2, 4);
    if (q->desc == NULL || q->avail == NULL || q->used == NULL)
        return queue_break(q, -EFAULT, "ring address");
    q->ready = true;
    q->signalled = q->next_used;
    q->signalled_valid = true;
    return 0;
}

/* The words that both sides use without a lock. The guest's CPUs are ordinary threads to us: acquire and release
 * order the ring entries against the indexes, and sequential consistency orders "publish, then look whether the
 * other side wants to be told" against the mirror image of it in the driver (§2.7.7.2, §2.7.10). */
static uint16_t word_get(const uint8_t *at, int order)
{
    const uint16_t *word = (const uint16_t *)(const void *)at;
    return le16toh(order == __ATOMIC_SEQ_CST ? __atomic_load_n(word, __ATOMIC_SEQ_CST)
                                             : __atomic_load_n(word, __ATOMIC_ACQUIRE));
}
static void word_put(uint8_t *at, uint16_t value)
{
    __atomic_store_n((uint16_t *)(void *)at, htole16(value), __ATOMIC_SEQ_CST);
}

static uint16_t avail_index(const struct virtio_queue *q)
{
    return word_get(q->avail + 2, __ATOMIC_SEQ_CST);
}
static uint16_t avail_entry(const struct virtio_queue *q, uint16_t index)
{
    return word_get(q->avail + RING_HEADER_BYTES + 2u * (index & (q->size - 1u)), __ATOMIC_ACQUIRE);
}

static bool head_is_taken(const struct virtio_queue *q, uint16_t head)
{
    return (q->taken[head / 8] & (1u << head % 8)) != 0;
}

/* One copy, so that a guest changing the descriptor meanwhile changes nothing for us. */
static struct descriptor descriptor_copy(const uint8_t *table, uint32_t index)
{
    struct vring_desc raw;
    memcpy(&raw, table + (size_t)index * DESC_BYTES, sizeof raw);
    return (struct descriptor){le64toh(raw.addr), le32toh(raw.len), le16toh(raw.flags), le16toh(raw.next)};
}

static const char *chain_add(struct virtio_queue *q, struct virtio_chain *chain, struct descriptor d)
{
    bool writable = (d.flags & VRING_DESC_F_WRITE) != 0;
    if (!writable && chain->in_count > 0)
        return "readable descriptor after a writable one";
    if (chain->out_bytes + chain->in_bytes + d.size > UINT32_MAX)
        return "chain of 4 GiB or more";
    if (d.size == 0)
        return NULL;
    uint8_t *host = memory_at(q->memory, d.gpa, d.size);
    if (host == NULL)
        return "buffer outside of guest memory";
    unsigned at = (unsigned)chain->out_count + chain->in_count;
    chain->segments[at] = (struct iovec){host, d.size};
    chain->gpas[at] = d.gpa;
    if (writable) {
        chain->in_count++;
        chain->in_bytes += d.size;
    } else {
        chain->out_count++;
        chain->out_bytes += d.size;
    }
    return NULL;
}

/* Follow descriptors from @index of a table of @count. @left bounds the chain, and so finds loops as well. */
static const char *chain_follow(struct virtio_queue *q, struct virtio_chain *chain, const uint8_t *table,
                                uint32_t count, uint32_t index, uint32_t *left, bool in_indirect)
{
    for (;;) {
        if (index >= count)
            return "descriptor index out of range";
        if (*left == 0)
            return "chain longer than the queue";
        struct descriptor d = descriptor_copy(table, index);
        if ((d.flags & VRING_DESC_F_INDIRECT) != 0) {
            if (!q->indirect || in_indirect || (d.flags & VRING_DESC_F_NEXT) != 0)
                return "indirect descriptor where none may be";
            if (d.size == 0 || d.size % DESC_BYTES != 0 || d.size / DESC_BYTES > q->size)
                return "size of an indirect table";
            const uint8_t *inner = memory_at(q->memory, d.gpa, d.size);
            if (inner == NULL)
                return "indirect table outside of guest memory";
            return chain_follow(q, chain, inner, d.size / DESC_BYTES, 0, left, true);
        }
        (*left)--;
        const char *wrong = chain_add(q, chain, d);
        if (wrong != NULL || (d.flags & VRING_DESC_F_NEXT) == 0)
            return wrong;
        index = d.next;
    }
}

static int chain_from_head(struct virtio_queue *q, uint16_t head, struct virtio_chain *ret_chain)
{
    ret_chain->head = head;
    ret_chain->out_count = ret_chain->in_count = 0;
    ret_chain->out_bytes = ret_chain->in_bytes = 0;
    uint32_t left = q->size;
    const char *wrong = chain_follow(q, ret_chain, q->desc, q->size, head, &left, false);
    return wrong != NULL ? queue_break(q, -EBADMSG, wrong) : 0;
}

int virtio_queue_pop(struct virtio_queue *q, struct virtio_chain *ret_chain)
{
    if (!q->ready || q->broken)
        return 0;
    uint16_t waiting = (uint16_t)(avail_index(q) - q->next_avail);
    if (waiting == 0)
        return 0;
    if (waiting > q->size)
        return queue_break(q, -EBADMSG, "avail index runs ahead");
    uint16_t head = avail_entry(q, q->next_avail);
    if (head >= q->size)
        return queue_break(q, -EBADMSG, "head out of range");
    if (head_is_taken(q, head))
        return queue_break(q, -EBADMSG, "head offered twice");
    int code = chain_from_head(q, head, ret_chain);
    if (code < 0)
        return code;
    q->taken[head / 8] |= (uint8_t)(1u << head % 8);
    q->in_flight++;
    q->next_avail++;
    return 1;
}

int virtio_queue_retake(struct virtio_queue *q, uint16_t *position, struct virtio_chain *ret_chain)
{
    if (!q->ready || q->broken)
        return 0;
    for (; *position < q->size; (*position)++) {
        if (!head_is_taken(q, *position))
            continue;
        int code = chain_from_head(q, *position, ret_chain);
        (*position)++;
        return code < 0 ? code : 1;
    }
    return 0;
}

static void head_give_back(struct virtio_queue *q, uint16_t head)
{
    ASSERT(head < q->size && head_is_taken(q, head) && q->in_flight > 0);
    q->taken[head / 8] &= (uint8_t) ~(1u << head % 8);
    q->in_flight--;
}

void virtio_queue_push_held(struct virtio_queue *q, uint16_t ahead, uint16_t head, uint32_t written_bytes)
{
    head_give_back(q, head);
    if (!q->ready)
        return;
    uint32_t slot = (uint16_t)(q->next_used + ahead) & (q->size - 1u);
    size_t offset = RING_HEADER_BYTES + (size_t)slot * USED_ENTRY_BYTES;
    struct vring_used_elem entry = {.id = htole32(head), .len = htole32(written_bytes)};
    memcpy(q->used + offset, &entry, sizeof entry);
    memory_mark_dirty(q->memory, q->device_gpa + offset, sizeof entry);
}

void virtio_queue_publish(struct virtio_queue *q, uint16_t count)
{
    if (!q->ready)
        return;
    q->next_used = (uint16_t)(q->next_used + count);
    word_put(q->used + 2, q->next_used);
    memory_mark_dirty(q->memory, q->device_gpa + 2, 2);
}

void virtio_queue_push(struct virtio_queue *q, uint16_t head, uint32_t written_bytes)
{
    virtio_queue_push_held(q, 0, head, written_bytes);
    virtio_queue_publish(q, 1);
}

void virtio_queue_unpop(struct virtio_queue *q, uint16_t head)
{
    head_give_back(q, head);
    q->next_avail--;
}

bool virtio_queue_wants_interrupt(struct virtio_queue *q)
{
    if (!q->ready || q->broken)
        return false;
    uint16_t from = q->signalled;
    bool known = q->signalled_valid;
    if (known && from == q->next_used)
        return false;
    q->signalled = q->next_used;
    q->signalled_valid = true;
    if (!q->event_idx)
        return (word_get(q->avail, __ATOMIC_SEQ_CST) & VRING_AVAIL_F_NO_INTERRUPT) == 0;
    uint16_t event = word_get(q->avail + RING_HEADER_BYTES + 2u * q->size, __ATOMIC_SEQ_CST);
    return !known || vring_need_event(event, q->next_used, from);
}

bool virtio_queue_has_more(const struct virtio_queue *q)
{
    return q->ready && !q->broken && avail_index(q) != q->next_avail;
}

uint16_t virtio_queue_offered(const struct virtio_queue *q)
{
    return q->ready && !q->broken ? avail_index(q) : q->next_avail;
}

bool virtio_queue_ask_notify(struct virtio_queue *q, bool on)
{
    if (!q->ready || q->broken)
        return false;
    if (q->event_idx) {
        /* With EVENT_IDX "don't bother" is said by leaving the event index behind. */
        if (!on)
            return false;
        size_t offset = RING_HEADER_BYTES + (size_t)USED_ENTRY_BYTES * q->size;
        /* Not next_avail: who needs more than what waits already must hear of the next one, too. */
        word_put(q->used + offset, avail_index(q));
        memory_mark_dirty(q->memory, q->device_gpa + offset, 2);
    } else {
        word_put(q->used, on ? 0 : VRING_USED_F_NO_NOTIFY);
        memory_mark_dirty(q->memory, q->device_gpa, 2);
    }
    return on && virtio_queue_has_more(q);
}

void virtio_queue_save(const struct virtio_queue *q, struct bytes_writer *out)
{
    bytes_put_u16(out, q->size_max);
    bytes_put_u16(out, q->size);
    bytes_put_u64(out, q->desc_gpa);
    bytes_put_u64(out, q->driver_gpa);
    bytes_put_u64(out, q->device_gpa);
    bytes_put_u8(out, q->ready);
    bytes_put_u8(out, q->broken);
    bytes_put_u16(out, q->next_avail);
    bytes_put_u16(out, q->next_used);
    bytes_put_u16(out, (uint16_t)q->in_flight);
    for (uint16_t head = 0; head < q->size; head++)
        if (head_is_taken(q, head))
            bytes_put_u16(out, head);
}

/* The heads taken, ascending, each once. */
static bool taken_load(struct virtio_queue *q, struct bytes_reader *in)
{
    uint16_t count = bytes_get_u16(in);
    int last = -1;
    if (count > q->size)
        return false;
    for (uint16_t i = 0; i < count; i++) {
        uint16_t head = bytes_get_u16(in);
        if (in->bad || head >= q->size || head <= last)
            return false;
        q->taken[head / 8] |= (uint8_t)(1u << head % 8);
        last = head;
    }
    q->in_flight = count;
    return true;
}

int virtio_queue_load(struct virtio_queue *q, struct bytes_reader *in, bool event_idx, bool indirect)
{
    struct virtio_queue loaded;
    virtio_queue_init(&loaded, q->memory, q->size_max);
    uint16_t size_max = bytes_get_u16(in);
    loaded.size = bytes_get_u16(in);
    loaded.desc_gpa = bytes_get_u64(in);
    loaded.driver_gpa = bytes_get_u64(in);
    loaded.device_gpa = bytes_get_u64(in);
    uint8_t ready = bytes_get_u8(in), broken = bytes_get_u8(in);
    loaded.next_avail = bytes_get_u16(in);
    loaded.next_used = bytes_get_u16(in);
    loaded.event_idx = event_idx;
    loaded.indirect = indirect;
    if (in->bad || size_max != q->size_max || ready > 1 || broken > 1 || loaded.size > q->size_max ||
        !taken_load(&loaded, in) || in->bad)
        return -EBADMSG;
    if (ready && virtio_queue_enable(&loaded) < 0)
        return -EBADMSG;
    loaded.signalled_valid = false;
    if (broken) {
        loaded.broken = true;
        loaded.reason = "broken before it was saved";
    }
    *q = loaded;
    return 0;
}

size_t virtio_chain_read(const struct virtio_chain *chain, uint64_t offset, void *ret_data, size_t size)
{
    size_t done = 0;
    for (unsigned i = 0; i < chain->out_count && done < size; i++) {
        const struct iovec *segment = &chain->segments[i];
        if (offset >= segment->iov_len) {
            offset -= segment->iov_len;
            continue;
        }
        size_t piece = MIN(size - done, segment->iov_len - (size_t)offset);
        memcpy((uint8_t *)ret_data + done, (const uint8_t *)segment->iov_base + offset, piece);
        done += piece;
        offset = 0;
    }
    return done;
}

size_t virtio_chain_write(const struct virtio_chain *chain, struct guest_memory *memory, uint64_t offset,
                          const void *data, size_t size)
{
    size_t done = 0;
    unsigned end = (unsigned)chain->out_count + chain->in_count;
    for (unsigned i = chain->out_count; i < end && done < size; i++) {
        const struct iovec *segment = &chain->segments[i];
        if (offset >= segment->iov_len) {
            offset -= segment->iov_len;
            continue;
        }
        size_t piece = MIN(size - done, segment->iov_len - (size_t)offset);
        memcpy((uint8_t *)segment->iov_base + offset, (const uint8_t *)data + done, piece);
        memory_mark_dirty(memory, chain->gpas[i] + offset, piece);
        done += piece;
        offset = 0;
    }
    return done;
}
