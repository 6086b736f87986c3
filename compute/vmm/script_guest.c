/* See script_guest.h. Order within a step: interrupts, hot plug, tick. */
#include "compute/vmm/script_guest.h"

#include <string.h>

#include "compute/vmm/pc1_layout.h"

enum { LINE_BYTES = 256, SLOTS = 32, PAGE = 4096 };
enum { SERIAL_STATUS = PC1_PORT_SERIAL0 + 5, SERIAL_READY = 1 };
enum { RESET_HARD = 6, SLEEP_ENABLE = 1 << 13, SLEEP_TYPE_SHIFT = 10 };
enum { HOTPLUG_UP = PC1_PORT_PCIHP, HOTPLUG_DOWN = PC1_PORT_PCIHP + 4, HOTPLUG_EJECT = PC1_PORT_PCIHP + 8 };
#define START_CMDLINE 24u      /* offset in hvm_start_info */
#define DIRTY_START 0x1000000ull /* 16 MiB */
#define NEVER UINT64_MAX

/* All its variables, at SCRIPT_STATE. */
struct state {
    uint64_t cmdline; /* address */
    uint64_t ticks, dirty_round;
    uint32_t line_bytes, unused;
    char line[LINE_BYTES];
    struct script_disk disks[SLOTS];
};

static struct state *state_of(struct script *s)
{
    return script_memory(s, SCRIPT_STATE, sizeof(struct state), true);
}

/* ---- console ---- */

void script_text(struct script *s, const char *text)
{
    while (*text)
        script_out(s, PC1_PORT_SERIAL0, 1, (uint8_t)*text++);
}

void script_number(struct script *s, uint64_t number)
{
    char digits[21];
    unsigned at = sizeof(digits) - 1;
    digits[at] = '\0';
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    script_text(s, digits + at);
}

static void echo_input(struct script *s, struct state *g)
{
    while (script_in(s, SERIAL_STATUS, 1) & SERIAL_READY) {
        char c = (char)script_in(s, PC1_PORT_SERIAL0, 1);
        if (c != '\n' && c != '\r') {
            if (g->line_bytes < LINE_BYTES - 1)
                g->line[g->line_bytes++] = c;
            continue;
        }
        g->line[g->line_bytes] = '\0';
        g->line_bytes = 0;
        script_text(s, "echo ");
        script_text(s, g->line);
        script_text(s, "\n");
    }
}

/* ---- the command line ---- */

static const char *cmdline_of(struct script *s, const struct state *g)
{
    return script_memory(s, g->cmdline, LINE_BYTES, false);
}

/* "name=123" among its words; 1 for "name" alone; @otherwise where it is not there. */
static uint64_t option(struct script *s, const struct state *g, const char *name, uint64_t otherwise)
{
    const char *at = cmdline_of(s, g);
    size_t length = strlen(name);
    for (; *at != '\0'; at += strcspn(at, " ")) {
        at += strspn(at, " ");
        if (strncmp(at, name, length) != 0 || strchr(" =", at[length]) == NULL) /* strchr finds the terminator too */
            continue;
        if (at[length] != '=')
            return 1;
        uint64_t value = 0;
        for (at += length + 1; *at >= '0' && *at <= '9'; at++)
            value = value * 10 + (uint64_t)(*at - '0');
        return value;
    }
    return otherwise;
}

/* ---- memory ---- */

/* One round over all pages: each holds the number of the round before. */
static void dirty(struct script *s, struct state *g, uint64_t pages)
{
    if (pages == 0)
        return;
    for (uint64_t page = 0; page < pages; page++) {
        uint64_t *at = script_memory(s, DIRTY_START + page * PAGE, sizeof(*at), true);
        if (*at != g->dirty_round && g->dirty_round > 0) {
            script_text(s, "memory corrupt at page ");
            script_number(s, page);
            script_text(s, "\n");
        }
        *at = g->dirty_round + 1;
    }
    g->dirty_round++;
}

/* ---- disks ---- */

static void interrupts(struct script *s, struct state *g)
{
    uint8_t vector;
    while (script_take_interrupt(s, &vector))
        for (unsigned slot = 0; slot < SLOTS; slot++)
            if (g->disks[slot].here && (vector & ~1u) == SCRIPT_DISK_VECTOR(slot))
                script_disk_interrupt(s, &g->disks[slot], slot, vector == SCRIPT_DISK_VECTOR(slot));
}

/* As the methods of the DSDT do it (pcihp.h). */
static void hotplug(struct script *s, struct state *g)
{
    uint32_t bit = 1u << PC1_GPE_PCIHP;
    if (!script_line_is_high(s, PC1_IRQ_SCI) || !(script_in(s, PC1_PORT_GPE, 2) & bit))
        return;
    script_out(s, PC1_PORT_GPE, 2, bit);
    uint32_t up = (uint32_t)script_in(s, HOTPLUG_UP, 4), down = (uint32_t)script_in(s, HOTPLUG_DOWN, 4);
    script_out(s, HOTPLUG_UP, 4, up);
    script_out(s, HOTPLUG_DOWN, 4, down);
    for (unsigned slot = 0; slot < SLOTS; slot++) {
        if (up & 1u << slot)
            script_disk_find(s, &g->disks[slot], slot);
        if (!(down & 1u << slot))
            continue;
        g->disks[slot].here = 0;
        script_text(s, "disk ");
        script_number(s, slot);
        script_text(s, " gone\n");
        script_out(s, HOTPLUG_EJECT, 4, 1u << slot);
    }
}

/* ---- the program ---- */

void script_guest_boot(struct script *s, uint64_t start_info)
{
    struct state *g = state_of(s);
    memset(g, 0, sizeof(*g));
    g->cmdline = *(const uint64_t *)script_memory(s, start_info + START_CMDLINE, sizeof(uint64_t), false);
    script_text(s, "drover-guest: hello cmdline=<");
    script_text(s, cmdline_of(s, g));
    script_text(s, ">\n");
    if (!option(s, g, "disk", 0))
        return;
    for (unsigned slot = PC1_SLOT_DEVICES; slot < SLOTS; slot++)
        script_disk_find(s, &g->disks[slot], slot);
    script_out(s, PC1_PORT_GPE + 2, 2, 1u << PC1_GPE_PCIHP);
}

static void end_if_asked(struct script *s, const struct state *g)
{
    if (g->ticks == option(s, g, "halt", NEVER)) {
        script_out(s, PC1_PORT_PM_CONTROL, 2, SLEEP_ENABLE | PC1_SLEEP_TYPE_S5 << SLEEP_TYPE_SHIFT);
    } else if (g->ticks == option(s, g, "reset", NEVER)) {
        script_out(s, PC1_PORT_RESET, 1, RESET_HARD);
    } else if (g->ticks == option(s, g, "fault", NEVER)) {
        script_text(s, "!"); /* as the test guest's handler of exceptions does */
        script_triple_fault(s);
    }
}

void script_guest_step(struct script *s, bool tick)
{
    struct state *g = state_of(s);
    interrupts(s, g);
    hotplug(s, g);
    if (!tick)
        return;
    g->ticks++;
    dirty(s, g, option(s, g, "dirty", 0) * (1048576 / PAGE));
    if (!option(s, g, "quiet", 0)) {
        script_text(s, "tick ");
        script_number(s, g->ticks);
        script_text(s, "\n");
    }
    for (unsigned slot = 0; slot < SLOTS; slot++)
        if (g->disks[slot].here)
            script_disk_write(s, &g->disks[slot], slot);
    echo_input(s, g);
    end_if_asked(s, g);
}
