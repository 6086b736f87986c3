/* The test guest's user half: says hello, ticks each 100 ms, and does what the words of its command line ask.
 *
 *   halt=N     power off (ACPI S5) after N ticks
 *   reset=N    reset (port 0xcf9) after N ticks
 *   fault=N    triple fault after N ticks
 *   dirty=MIB  write that much memory over and over, each page with the number of the round, and check on the way
 *              that it still holds the number of the round before: a page lost by a snapshot or migration is told
 *   smp=N      start the other N processors, which count; each second it is told if one of them does not
 *   disk=SEED  write and read the first disk at random all the time, and check (guest_disk.c)
 *   ledger=N   write numbered blocks to the first disk in an order that follows from N, and tell what was acknowledged and what is
 *              flushed (guest_ledger.c); over=N: to the first N disks; window=N: with so many under way at most
 *   calm       ledger= writes once a tick, and sleeps while it waits for its disk
 *   pair       write numbers to the first disk and the second, one after the other; not with disk (guest_pair.c)
 *   show       tell the text that the first disk begins with, once ("disk says ...")
 *   net        send numbered frames, and look at those that come (guest_net.c)
 *   answer     send the frames back that ask for it, at each tick; not with net
 *   ecam=A     PCI configuration space is in memory at A, not behind ports
 *   quiet      no tick lines
 *
 * and, to measure with (beats are seen from outside, whatever else the machine does):
 *
 *   speed      with smp: "speed N" each second, how far the second processor has counted
 *   hz=N       ticks of 1/N s
 *   beat       a dot for each tick
 *   pace=N     dirty= writes N pages a tick and rests then (0: each page once); each page whole, so that it can neither
 *              be compressed nor sent as a difference, and "round N" is told each time that all have been written
 *   scatter    dirty= goes through its pages in an order like random; MIB is a power of two
 *
 * A line typed on COM1 comes back as "echo <line>"; "verify" has the disk read back besides, "look" each word of what
 * pace= has written: "memory looked at: N pages wrong". */
#include <stdbool.h>
#include <stdint.h>

#include "guest_calls.h"
#include "guest_disk.h"
#include "guest_ledger.h"
#include "guest_net.h"
#include "guest_pair.h"
#include "guest_virtio.h"

enum { COM1 = 0x3f8, COM1_STATUS = COM1 + 5, PM_CONTROL = 0x604, RESET_CONTROL = 0xcf9 };
enum { TIMER_HZ = 1000000000, TICKS_HZ = 10 };
#define SLEEP_S5 (5u << 10 | 1u << 13)
#define DIRTY_START 0x1000000ull /* 16 MiB: above this image */
#define PAGE 4096u
#define PROCESSORS_MAX 64u

extern volatile uint32_t ap_count;
static bool has_disk, has_ledger, has_pair, has_net, answers;
static volatile uint64_t ap_counters[PROCESSORS_MAX][8]; /* a cache line each */

struct start_info { /* hvm_start_info, as far as it is used */
    uint32_t magic, version, flags, modules;
    uint64_t modules_address, cmdline, rsdp;
};

static void put_char(char c)
{
    call(CALL_OUT8, COM1, (uint8_t)c);
}

void put(const char *text)
{
    while (*text)
        put_char(*text++);
}

void put_number(uint64_t n)
{
    char digits[21];
    unsigned at = sizeof(digits) - 1;
    digits[at] = 0;
    do {
        digits[--at] = (char)('0' + n % 10);
        n /= 10;
    } while (n);
    put(digits + at);
}

/* "name=123" among the words of @text; @otherwise when it is not there. */
static uint64_t option(const char *text, const char *name, uint64_t otherwise)
{
    while (*text) {
        const char *n = name;
        while (*text == ' ')
            text++;
        while (*n && *text == *n) {
            text++;
            n++;
        }
        if (!*n && *text == '=') {
            uint64_t value = 0;
            for (text++; *text >= '0' && *text <= '9'; text++)
                value = value * 10 + (uint64_t)(*text - '0');
            return value;
        }
        if (!*n && (*text == ' ' || !*text))
            return 1;
        while (*text && *text != ' ')
            text++;
    }
    return otherwise;
}

static bool is_same(const char *a, const char *b)
{
    while (*a && *a == *b) {
        a++;
        b++;
    }
    return *a == *b;
}

/* One page of the dirtier's endless rounds. */
static void dirty_step(uint64_t pages)
{
    static uint64_t round = 1, page;
    volatile uint64_t *at = (volatile uint64_t *)(DIRTY_START + page * PAGE);
    if (*at != round - 1 && round > 1) {
        put("memory corrupt at page ");
        put_number(page);
        put("\n");
    }
    *at = round;
    if (++page < pages)
        return;
    page = 0;
    round++;
}

/* ---- at a given pace ---- */

static struct {
    uint64_t pages, pace, round, page;
    bool on, scatter, resting; /* resting: pace 0, and all is written */
} paced;

static uint64_t word_of(uint64_t page, uint64_t round, uint64_t word)
{
    uint64_t x = (page << 32 ^ round << 9 ^ word) * 0x9e3779b97f4a7c15u;
    return (x ^ x >> 29) * 0xbf58476d1ce4e5b9u;
}

/* Each page once a round: every step can be undone, and keeps below @pages, a power of two. */
static uint64_t scattered(uint64_t page, uint64_t round, uint64_t pages)
{
    uint64_t mask = pages - 1, x = (page ^ round * 0x9e3779b1u) & mask;
    unsigned half = (64 - (unsigned)__builtin_clzll(pages)) / 2;
    x = (x * 0x2c1b3c6du) & mask;
    x ^= x >> half;
    x = (x * 0x297a2d39u) & mask;
    return x ^ x >> half;
}

static void paced_page(void)
{
    uint64_t page = paced.scatter ? scattered(paced.page, paced.round, paced.pages) : paced.page;
    volatile uint64_t *at = (volatile uint64_t *)(DIRTY_START + page * PAGE);
    uint64_t before = paced.round - 1;
    if (before && (at[0] != word_of(page, before, 0) || at[511] != word_of(page, before, 511) ||
                   at[page % 512] != word_of(page, before, page % 512))) {
        put("memory corrupt at page ");
        put_number(page);
        put("\n");
    }
    for (uint64_t word = 0; word < PAGE / 8; word++)
        at[word] = word_of(page, paced.round, word);
    if (++paced.page < paced.pages)
        return;
    paced.page = 0;
    put("round ");
    put_number(paced.round++);
    put("\n");
    paced.resting = paced.pace == 0;
}

static void paced_tick(void)
{
    for (uint64_t n = 0; !paced.resting && n < (paced.round == 1 ? 16 + paced.pace : paced.pace); n++)
        paced_page();
}

/* All of it, as the rounds have left it so far. */
static void paced_look(void)
{
    uint64_t wrong = 0;
    for (uint64_t n = 0; n < paced.pages; n++) {
        uint64_t page = paced.scatter ? scattered(n, paced.round, paced.pages) : n;
        uint64_t round = n < paced.page ? paced.round : paced.round - 1;
        volatile uint64_t *at = (volatile uint64_t *)(DIRTY_START + page * PAGE);
        bool is_right = true;
        for (uint64_t word = 0; word < PAGE / 8; word++)
            is_right &= at[word] == (round ? word_of(page, round, word) : 0);
        wrong += !is_right;
    }
    put("memory looked at: ");
    put_number(wrong);
    put(" pages wrong\n");
}

static void echo_input(void)
{
    static char line[256];
    static unsigned length;
    while (call(CALL_IN8, COM1_STATUS, 0) & 1) {
        char c = (char)call(CALL_IN8, COM1, 0);
        if (c != '\n' && c != '\r') {
            if (length < sizeof(line) - 1)
                line[length++] = c;
            continue;
        }
        line[length] = 0;
        length = 0;
        put("echo ");
        put(line);
        put("\n");
        if (has_disk && is_same(line, "verify"))
            disk_verify();
        if (paced.on && is_same(line, "look"))
            paced_look();
    }
}

static void wait_for_tick(uint64_t seen, uint64_t dirty_pages)
{
    while (timer_ticks == seen) {
        if (dirty_pages)
            dirty_step(dirty_pages);
        if (has_disk)
            disk_step();
        if (has_pair)
            pair_step();
        if (has_net)
            net_step();
        bool has_work = has_ledger && ledger_step();
        if (!dirty_pages && !has_disk && !has_pair && !has_net && !has_work)
            call(CALL_WAIT, 0, seen);
    }
}

/* The other processors come here, numbered from 0. */
__attribute__((used, noreturn)) void ap_main(uint32_t number)
{
    for (;;) {
        ap_counters[number % PROCESSORS_MAX][0]++;
        __asm__ volatile("pause");
    }
}

static void processors_start(uint64_t count)
{
    call(CALL_START, 0, 0);
    while (ap_count < count)
        call(CALL_WAIT, 0, timer_ticks);
    put("processors ");
    put_number(ap_count + 1);
    put("\n");
}

static void processors_check(uint64_t count)
{
    static uint64_t before[PROCESSORS_MAX];
    for (uint64_t i = 0; i < count; i++) {
        uint64_t now = ap_counters[i][0];
        if (now == before[i]) {
            put("stands still: processor ");
            put_number(i + 1);
            put("\n");
        }
        before[i] = now;
    }
}

static void end_if_asked(const char *cmdline, uint64_t ticks)
{
    if (ticks == option(cmdline, "halt", UINT64_MAX))
        call(CALL_OUT16, PM_CONTROL, SLEEP_S5);
    if (ticks == option(cmdline, "reset", UINT64_MAX))
        call(CALL_OUT8, RESET_CONTROL, 6);
    if (ticks == option(cmdline, "fault", UINT64_MAX))
        *(volatile uint8_t *)0x7fffffffffull = 1; /* not mapped: the guest's last exception */
}

void user_main(const struct start_info *info)
{
    const char *cmdline = (const char *)info->cmdline;
    bool quiet = option(cmdline, "quiet", 0) != 0;
    uint64_t dirty_pages = option(cmdline, "dirty", 0) * (1048576 / PAGE);
    put("drover-guest: hello cmdline=<");
    put(cmdline);
    put(">\n");
    uint64_t others = option(cmdline, "smp", 0), hz = option(cmdline, "hz", TICKS_HZ);
    bool beat = option(cmdline, "beat", 0) != 0, speed = option(cmdline, "speed", 0) != 0;
    paced.on = option(cmdline, "pace", UINT64_MAX) != UINT64_MAX && dirty_pages;
    if (paced.on) {
        paced.pages = dirty_pages;
        paced.pace = option(cmdline, "pace", 0);
        paced.scatter = option(cmdline, "scatter", 0) != 0;
        paced.round = 1;
        dirty_pages = 0;
    }
    if (hz > TICKS_HZ && hz <= 1000)
        call(CALL_TIMER, 0, TIMER_HZ / hz);
    else
        hz = TICKS_HZ;
    if (others && others < PROCESSORS_MAX)
        processors_start(others);
    virtio_ecam(option(cmdline, "ecam", 0));
    if (option(cmdline, "disk", 0))
        has_disk = disk_start(option(cmdline, "disk", 0));
    if (option(cmdline, "ledger", 0))
        has_ledger = ledger_start(option(cmdline, "ledger", 0), option(cmdline, "over", 1), option(cmdline, "window", LEDGER_WINDOW_MAX));
    if (option(cmdline, "calm", 0))
        ledger_calm();
    if (option(cmdline, "pair", 0))
        has_pair = pair_start();
    if (option(cmdline, "show", 0))
        disk_show();
    if (option(cmdline, "net", 0))
        has_net = net_start();
    if (option(cmdline, "answer", 0) && !has_net)
        answers = net_start();
    for (uint64_t n = 1;; n++) {
        wait_for_tick(timer_ticks, dirty_pages);
        if (!quiet) {
            put("tick ");
            put_number(n);
            put("\n");
        }
        if (has_disk)
            disk_tick(quiet);
        if (has_ledger)
            ledger_tick();
        if (has_pair)
            pair_tick();
        if (has_net)
            net_tick(quiet);
        if (answers)
            net_answer();
        if (beat)
            put(".");
        if (paced.on)
            paced_tick();
        if (others && others < PROCESSORS_MAX && n % 10 == 0)
            processors_check(others);
        if (speed && n % 10 == 0) {
            put("speed ");
            put_number(ap_counters[0][0]);
            put("\n");
        }
        if (n % (hz / TICKS_HZ) == 0)
            echo_input();
        end_if_asked(cmdline, n);
    }
}
