/* What the guest does on its first network interface; one of two, by its command line.
 *
 * "net": numbered frames, some each tick, and a look at the numbers of those that come in.
 *
 * Out: ethertype 0x88b5, then the number, from 1, each once. In: 0x88b6 and a number that grows, with gaps perhaps (a
 * network may lose), but never again one that was there. Told on the console:
 *
 *   net: answered twice           a buffer came back that is not on its way
 *   net: N came after M           a frame came in twice, or out of order
 *   net: torn N                   its content is not that of its number
 *
 * "net N sent M received" with each tick: N is how many the device has taken.
 *
 * "answer": what comes as ethertype 0x88b7 goes back to its sender as 0x88b8, at the next tick. */
#include "guest_net.h"
#include "guest_virtio.h"

enum { RX = 0, TX = 1, HEADER_BYTES = 12, TYPE_OUT = 0x88b5, TYPE_IN = 0x88b6, TYPE_ASKED = 0x88b7, TYPE_ANSWER = 0x88b8, WORDS = 8, EACH_TICK = 40, SENDING = 6 };

struct frame { /* as on the wire, behind struct virtio_net_hdr */
    uint8_t header[HEADER_BYTES];
    uint8_t to[6], from[6];
    uint16_t type; /* big-endian */
    uint64_t words[WORDS];
    uint8_t rest[2048 - HEADER_BYTES - 14 - 8 * WORDS];
} __attribute__((packed));

static struct virtio net;
static volatile struct frame out[VIRTIO_QUEUE_SIZE], in[VIRTIO_QUEUE_SIZE];
static bool sending[VIRTIO_QUEUE_SIZE];
static uint64_t next_number, sent, received, last_in;
static unsigned left;

static uint16_t swap(uint16_t value)
{
    return (uint16_t)(value << 8 | value >> 8);
}

static void tell(const char *what, uint64_t a, uint64_t b)
{
    put("net: ");
    put_number(a);
    put(what);
    put_number(b);
    put("\n");
}

static void buffer_offer(unsigned i)
{
    net.queues[RX].ring.desc[i] = (struct virtio_desc){(uint64_t)&in[i], sizeof in[i], DESC_WRITE, 0};
    virtio_offer(&net.queues[RX], (uint16_t)i);
}

static void came_in(const volatile struct frame *f)
{
    uint64_t number = f->words[0];
    if (f->type != swap(TYPE_IN))
        return; /* of the host's own */
    for (unsigned i = 1; i < WORDS; i++)
        if (f->words[i] != number * i) {
            tell(" torn ", number, i);
            return;
        }
    if (number <= last_in)
        tell(" came after ", number, last_in);
    last_in = number;
    received++;
}

static void offer_out(unsigned i)
{
    sending[i] = true;
    net.queues[TX].ring.desc[i] = (struct virtio_desc){(uint64_t)&out[i], HEADER_BYTES + 14 + 8 * WORDS, 0, 0};
    virtio_offer(&net.queues[TX], (uint16_t)i);
}

static void frame_send(unsigned i)
{
    volatile struct frame *f = &out[i];
    uint64_t number = ++next_number;
    for (unsigned k = 0; k < 6; k++) {
        f->to[k] = 0xff;
        f->from[k] = (uint8_t)(k == 0 ? 2 : k);
    }
    f->type = swap(TYPE_OUT);
    for (unsigned k = 0; k < WORDS; k++)
        f->words[k] = k == 0 ? number : number * k;
    offer_out(i);
}

bool net_start(void)
{
    if (!virtio_start(&net, VIRTIO_NET, 2)) {
        put("net: there is none\n");
        return false;
    }
    for (unsigned i = 0; i < VIRTIO_QUEUE_SIZE; i++)
        buffer_offer(i);
    return true;
}

void net_step(void)
{
    uint32_t head, size;
    while (virtio_take(&net.queues[RX], &head, &size)) {
        came_in(&in[head % VIRTIO_QUEUE_SIZE]);
        buffer_offer(head % VIRTIO_QUEUE_SIZE);
    }
    while (virtio_take(&net.queues[TX], &head, &size)) {
        if (head >= VIRTIO_QUEUE_SIZE || !sending[head]) {
            put("net: answered twice\n");
            continue;
        }
        sending[head] = false;
        sent++;
    }
    for (unsigned i = 0; i < SENDING && left > 0; i++)
        if (!sending[i]) {
            frame_send(i);
            left--;
        }
}

void net_tick(bool quiet)
{
    left = EACH_TICK;
    if (quiet)
        return;
    put("net ");
    put_number(sent);
    put(" sent ");
    put_number(received);
    put(" received\n");
}

static void answer(unsigned i, const volatile struct frame *f)
{
    for (unsigned k = 0; k < 6; k++) {
        out[i].to[k] = f->from[k];
        out[i].from[k] = f->to[k];
    }
    out[i].type = swap(TYPE_ANSWER);
    for (unsigned k = 0; k < WORDS; k++)
        out[i].words[k] = f->words[k];
    offer_out(i);
}

void net_answer(void)
{
    uint32_t head, size;
    unsigned i = 0;
    while (virtio_take(&net.queues[TX], &head, &size))
        sending[head % VIRTIO_QUEUE_SIZE] = false;
    while (virtio_take(&net.queues[RX], &head, &size)) {
        const volatile struct frame *f = &in[head % VIRTIO_QUEUE_SIZE];
        while (i < VIRTIO_QUEUE_SIZE && sending[i])
            i++;
        if (i < VIRTIO_QUEUE_SIZE && f->type == swap(TYPE_ASKED))
            answer(i, f);
        buffer_offer(head % VIRTIO_QUEUE_SIZE);
    }
}
