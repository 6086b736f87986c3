/* The page of a drill; see the header. Widths and places are whole pixels. */
#include "cli/drill_page.h"

#include <inttypes.h>
#include <string.h>

#include "cli/drill_text.h"

#define LEFT 150        /* names of lanes */
#define WIDTH 860       /* of the time axis */
#define LANE 30
#define BAR 18
#define TOP 26
#define TICKS_MAX 12

static const char style[] =
    "body{font:15px/1.45 system-ui,sans-serif;color:#1d2733;background:#fff;margin:2em auto;max-width:1040px;padding:0 1em}"
    "h1{font-size:1.5em;margin:0}h2{font-size:1.1em;margin:1.8em 0 .5em}p{margin:.3em 0}"
    ".sub{color:#5b6876}.badge{display:inline-block;padding:.1em .7em;border-radius:1em;color:#fff;font-weight:600;margin-left:.6em;"
    "font-size:.75em;vertical-align:middle}.passed{background:#1d7f4d}.slow,.unsure{background:#a86a00}.failed{background:#b3261e}"
    "table{border-collapse:collapse;width:100%}th{text-align:left;color:#5b6876;font-weight:500;font-size:.87em}"
    "td,th{padding:.3em .8em .3em 0;border-bottom:1px solid #e3e8ed;vertical-align:top}td.n,th.n{text-align:right;"
    "font-variant-numeric:tabular-nums;white-space:nowrap}svg{width:100%;height:auto;display:block}svg text{font:12px system-ui,sans-serif;fill:#1d2733}"
    "svg .dim{fill:#5b6876}.own td{font-weight:600}.bad{color:#b3261e;font-weight:600}.tiles{display:flex;gap:.8em;flex-wrap:wrap}"
    ".tile{border:1px solid #e3e8ed;border-radius:8px;padding:.5em 1em;min-width:7em}.tile b{display:block;font-size:1.35em;"
    "font-variant-numeric:tabular-nums}.tile span{color:#5b6876;font-size:.87em}";

static const char *const colours[] = {"#2f6fb5", "#d08213", "#3f8f5f", "#8b5bb0", "#b8475e", "#4a97a8", "#8a7a2f", "#6b7683"};

static void put_escaped(struct bytes_writer *out, const char *text)
{
    for (; *text != '\0'; text++)
        switch (*text) {
        case '<':
            bytes_put_text(out, "&lt;");
            break;
        case '>':
            bytes_put_text(out, "&gt;");
            break;
        case '&':
            bytes_put_text(out, "&amp;");
            break;
        case '"':
            bytes_put_text(out, "&quot;");
            break;
        case '\'':
            bytes_put_text(out, "&#39;");
            break;
        default:
            bytes_put_u8(out, (unsigned char)*text < 0x20 ? ' ' : (uint8_t)*text);
        }
}

static void put_seconds(struct bytes_writer *out, int64_t ms, bool known)
{
    uint64_t size = (uint64_t)(ms < 0 ? -ms : ms);
    if (known)
        bytes_put_format(out, "%s%" PRIu64 ".%02" PRIu64 " s", ms < 0 ? "&minus;" : "", size / 1000, size % 1000 / 10);
    else
        bytes_put_text(out, "&ndash;");
}

/* ---- the timeline ---- */

struct axis {
    int64_t from_ms, to_ms;
    unsigned lanes;
};

static void widen(struct axis *axis, int64_t ms)
{
    axis->from_ms = MIN(axis->from_ms, ms);
    axis->to_ms = MAX(axis->to_ms, ms);
}

static int64_t x_of(const struct axis *axis, int64_t ms)
{
    int64_t span = MAX(axis->to_ms - axis->from_ms, (int64_t)1);
    return LEFT + (MIN(MAX(ms, axis->from_ms), axis->to_ms) - axis->from_ms) * WIDTH / span;
}

static struct axis find_axis(const json_t *report)
{
    struct axis axis = {.from_ms = -1000, .to_ms = 1000, .lanes = 1};
    const json_t *o;
    size_t i;
    json_array_foreach(json_object_get(report, "runs"), i, o)
    {
        widen(&axis, json_number(o, "from_ms"));
        widen(&axis, json_number(o, "to_ms"));
    }
    if (i == 0) /* a drill whose VM is its own */
        json_array_foreach(json_object_get(report, "timeline"), i, o) widen(&axis, json_number(o, "at_ms"));
    json_array_foreach(json_object_get(json_object_get(report, "writes"), "gaps"), i, o) widen(&axis, json_number(o, "to_ms"));
    axis.lanes += (unsigned)json_array_size(json_object_get(report, "vms")) + (json_text(report, "host")[0] != '\0');
    return axis;
}

static void put_axis(struct bytes_writer *out, const struct axis *axis)
{
    static const int64_t steps[] = {500, 1000, 2000, 5000, 10000, 20000, 30000, 60000, 120000, 300000, 600000};
    int64_t step = steps[ARRAY_SIZE(steps) - 1];
    unsigned bottom = TOP + axis->lanes * LANE;
    for (size_t i = ARRAY_SIZE(steps); i-- > 0;)
        if ((axis->to_ms - axis->from_ms) / steps[i] <= TICKS_MAX)
            step = steps[i];
    for (int64_t at = axis->from_ms / step * step; at <= axis->to_ms; at += step) {
        if (at < axis->from_ms)
            continue;
        bytes_put_format(out, "<line x1=\"%" PRId64 "\" x2=\"%" PRId64 "\" y1=\"%d\" y2=\"%u\" stroke=\"%s\"/>", x_of(axis, at), x_of(axis, at),
                         TOP, bottom, at == 0 ? "#b3261e" : "#e3e8ed");
        bytes_put_format(out, "<text class=\"dim\" text-anchor=\"middle\" x=\"%" PRId64 "\" y=\"%d\">%s%" PRId64 "%s s</text>", x_of(axis, at),
                         TOP - 10, at < 0 ? "&#8722;" : "", (at < 0 ? -at : at) / 1000, step < 1000 && at % 1000 != 0 ? ".5" : "");
    }
}

static void put_lane(struct bytes_writer *out, unsigned lane, const char *name)
{
    unsigned y = TOP + lane * LANE;
    bytes_put_format(out, "<line x1=\"0\" x2=\"%d\" y1=\"%u\" y2=\"%u\" stroke=\"#e3e8ed\"/><text x=\"0\" y=\"%u\">", LEFT + WIDTH, y + LANE,
                     y + LANE, y + LANE / 2 + 4);
    bytes_put_format(out, "<title>");
    put_escaped(out, name);
    bytes_put_text(out, "</title>");
    CLEANUP_FREE char *shown = xasprintf("%.20s%s", name, strlen(name) > 20 ? "\xe2\x80\xa6" : ""); /* names are ASCII */
    put_escaped(out, shown);
    bytes_put_text(out, "</text>");
}

static void put_bar(struct bytes_writer *out, const struct axis *axis, unsigned lane, int64_t from_ms, int64_t to_ms, const char *colour,
                    const char *text)
{
    int64_t x = x_of(axis, from_ms), width = MAX(x_of(axis, to_ms) - x, (int64_t)2);
    unsigned y = TOP + lane * LANE + (LANE - BAR) / 2;
    bytes_put_format(out, "<rect x=\"%" PRId64 "\" y=\"%u\" width=\"%" PRId64 "\" height=\"%d\" rx=\"3\" fill=\"%s\"><title>", x, y, width, BAR,
                     colour);
    put_escaped(out, text);
    bytes_put_text(out, ": ");
    put_seconds(out, from_ms, true);
    bytes_put_text(out, " to ");
    put_seconds(out, to_ms, true);
    bytes_put_text(out, "</title></rect>");
    if (width < (int64_t)strlen(text) * 8 + 8)
        return;
    bytes_put_format(out, "<text x=\"%" PRId64 "\" y=\"%u\" style=\"fill:#fff\">", x + 6, y + BAR - 5);
    put_escaped(out, text);
    bytes_put_text(out, "</text>");
}

static const char *colour_of(const char *host)
{
    unsigned sum = 0;
    for (; *host != '\0'; host++)
        sum = sum * 31 + (unsigned char)*host;
    return colours[sum % ARRAY_SIZE(colours)];
}

/* The first time after the fault that the timeline says @what; @otherwise: never. */
static int64_t said(const json_t *report, const char *what, int64_t otherwise)
{
    const json_t *o;
    size_t i;
    json_array_foreach(json_object_get(report, "timeline"), i, o)
        if (json_number(o, "at_ms") >= 0 && strcmp(json_text(o, "what"), what) == 0)
            return json_number(o, "at_ms");
    return otherwise;
}

static void put_host_lane(struct bytes_writer *out, const json_t *report, const struct axis *axis, unsigned lane)
{
    static const struct {
        const char *state, *colour;
    } states[] = {{"up", "#1d7f4d"}, {"suspect", "#a86a00"}, {"lost", "#b3261e"}, {"up", "#1d7f4d"}};
    const char *host = json_text(report, "host");
    CLEANUP_FREE char *name = xasprintf("host %s", host);
    int64_t edges[ARRAY_SIZE(states) + 1] = {axis->from_ms};
    put_lane(out, lane, name);
    for (size_t i = 1; i < ARRAY_SIZE(states); i++) {
        CLEANUP_FREE char *what = xasprintf("host %s is %s", host, states[i].state);
        edges[i] = said(report, what, axis->to_ms);
    }
    edges[ARRAY_SIZE(states)] = axis->to_ms;
    for (size_t i = 0; i < ARRAY_SIZE(states); i++)
        if (edges[i + 1] > edges[i])
            put_bar(out, axis, lane, edges[i], edges[i + 1], states[i].colour, states[i].state);
}

static void put_timeline(struct bytes_writer *out, const json_t *report)
{
    struct axis axis = find_axis(report);
    const json_t *vm, *o;
    size_t i, j;
    unsigned lane = 0;
    bytes_put_format(out, "<h2>Timeline</h2><p class=\"sub\">Seconds from the fault. A VM&#39;s bar shows on which host it executed.</p>"
                          "<svg viewBox=\"0 0 %d %u\" role=\"img\" aria-label=\"timeline\">", LEFT + WIDTH + 20, TOP + axis.lanes * LANE + 6);
    put_axis(out, &axis);
    if (json_text(report, "host")[0] != '\0')
        put_host_lane(out, report, &axis, lane++);
    put_lane(out, lane, "API writes");
    put_bar(out, &axis, lane, axis.from_ms, axis.to_ms, "#9fb6a8", "answered");
    json_array_foreach(json_object_get(json_object_get(report, "writes"), "gaps"), i, o)
        put_bar(out, &axis, lane, json_number(o, "from_ms"), json_number(o, "to_ms"), "#b3261e", "none");
    lane++;
    json_array_foreach(json_object_get(report, "vms"), i, vm)
    {
        CLEANUP_FREE char *name = xasprintf("VM %s", json_text(vm, "name"));
        put_lane(out, lane, name);
        json_array_foreach(json_object_get(report, "runs"), j, o)
            if (strcmp(json_text(o, "vm"), json_text(vm, "name")) == 0)
                put_bar(out, &axis, lane, json_number(o, "from_ms"), json_number(o, "to_ms"), colour_of(json_text(o, "host")),
                        json_text(o, "host"));
        lane++;
    }
    bytes_put_text(out, "</svg>");
}

/* ---- tables ---- */

static void put_cell(struct bytes_writer *out, const char *text)
{
    bytes_put_text(out, "<td>");
    put_escaped(out, text);
    bytes_put_text(out, "</td>");
}

static void put_time_cell(struct bytes_writer *out, const json_t *o, const char *field)
{
    bytes_put_text(out, "<td class=\"n\">");
    put_seconds(out, json_number(o, field), json_object_get(o, field) != NULL && json_number(o, field) >= 0);
    bytes_put_text(out, "</td>");
}

static void put_head(struct bytes_writer *out, const json_t *report)
{
    const json_t *failure;
    size_t i;
    bytes_put_text(out, "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">"
                        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>");
    put_escaped(out, json_text(report, "id"));
    bytes_put_format(out, "</title><style>%s</style></head><body><h1>Drill: ", style);
    put_escaped(out, json_text(report, "drill"));
    bytes_put_text(out, "<span class=\"badge ");
    put_escaped(out, json_text(report, "result"));
    bytes_put_text(out, "\">");
    put_escaped(out, json_text(report, "result"));
    bytes_put_text(out, "</span></h1><p class=\"sub\">cluster ");
    put_escaped(out, json_text(report, "cluster"));
    bytes_put_text(out, ", ");
    put_escaped(out, json_text(report, "begun_at"));
    bytes_put_text(out, ", leader ");
    put_escaped(out, json_text(report, "leader"));
    bytes_put_text(out, json_text(report, "host")[0] != '\0' ? ", host " : "");
    put_escaped(out, json_text(report, "host"));
    bytes_put_text(out, json_text(report, "controller")[0] != '\0' ? ", what fails: controller " : "");
    put_escaped(out, json_text(report, "controller"));
    bytes_put_text(out, ", ");
    put_escaped(out, json_text(report, "id"));
    bytes_put_text(out, "</p>");
    json_array_foreach(json_object_get(report, "failures"), i, failure)
    {
        bytes_put_text(out, "<p class=\"bad\">");
        put_escaped(out, json_string_value(failure) != NULL ? json_string_value(failure) : "");
        bytes_put_text(out, "</p>");
    }
}

static void put_tile(struct bytes_writer *out, const char *name, int64_t ms)
{
    bytes_put_text(out, "<div class=\"tile\"><b>");
    put_seconds(out, ms, ms >= 0);
    bytes_put_text(out, "</b><span>");
    put_escaped(out, name);
    bytes_put_text(out, "</span></div>");
}

static void put_tiles(struct bytes_writer *out, const json_t *report)
{
    const json_t *step;
    size_t i;
    bytes_put_text(out, "<h2>How long it took</h2><div class=\"tiles\">");
    json_array_foreach(json_object_get(report, "steps"), i, step)
        put_tile(out, strcmp(json_text(step, "step"), "all") == 0 ? "until all VMs executed elsewhere" : json_text(step, "step"),
                 json_number(step, "ms"));
    put_tile(out, "longest time without a write", json_number(json_object_get(report, "writes"), "longest_gap_ms"));
    bytes_put_text(out, "</div>");
}

static void put_vms(struct bytes_writer *out, const json_t *report)
{
    const json_t *vm;
    size_t i;
    if (json_array_size(json_object_get(report, "vms")) == 0)
        return;
    bytes_put_text(out, "<h2>VMs with ha</h2><table><tr><th>VM</th><th>from</th><th>to</th><th class=\"n\">last executed there</th>"
                        "<th class=\"n\">executes elsewhere</th><th class=\"n\">stood still</th><th>executed at most once at a time</th></tr>");
    json_array_foreach(json_object_get(report, "vms"), i, vm)
    {
        bool once = strcmp(json_text(vm, "once"), "once") == 0;
        bytes_put_text(out, "<tr>");
        put_cell(out, json_text(vm, "name"));
        put_cell(out, json_text(vm, "from"));
        put_cell(out, json_text(vm, "to"));
        put_time_cell(out, vm, "last_ms");
        put_time_cell(out, vm, "executes_ms");
        put_time_cell(out, vm, "stood_still_ms");
        bytes_put_text(out, once ? "<td>yes" : "<td class=\"bad\">");
        put_escaped(out, once ? "" : json_text(vm, "once"));
        bytes_put_text(out, once ? "" : ": ");
        put_escaped(out, json_text(vm, "why"));
        bytes_put_text(out, "</td></tr>");
    }
    bytes_put_text(out, "</table>");
}

static void put_marks(struct bytes_writer *out, const json_t *report, const char *title, const char *list, const char *field)
{
    const json_t *o;
    size_t i;
    if (json_array_size(json_object_get(report, list)) == 0)
        return;
    bytes_put_format(out, "<h2>%s</h2><table>", title);
    json_array_foreach(json_object_get(report, list), i, o)
    {
        bytes_put_text(out, "<tr>");
        put_cell(out, json_text(o, field));
        bytes_put_text(out, json_is_true(json_object_get(o, "ok")) ? "<td>yes</td>" : "<td class=\"bad\">no</td>");
        put_cell(out, json_text(o, "detail"));
        bytes_put_text(out, "</tr>");
    }
    bytes_put_text(out, "</table>");
}

static void put_moments(struct bytes_writer *out, const json_t *report)
{
    const json_t *o;
    size_t i;
    bytes_put_text(out, "<h2>What happened</h2><table>");
    json_array_foreach(json_object_get(report, "timeline"), i, o)
    {
        bytes_put_format(out, "<tr%s><td class=\"n\">", json_is_true(json_object_get(o, "own")) ? " class=\"own\"" : "");
        put_seconds(out, json_number(o, "at_ms"), true);
        bytes_put_text(out, "</td>");
        put_cell(out, json_text(o, "what"));
        bytes_put_text(out, "</tr>");
    }
    bytes_put_text(out, "</table>");
}

void drill_page_put(const json_t *report, struct bytes_writer *out)
{
    put_head(out, report);
    put_tiles(out, report);
    put_timeline(out, report);
    put_vms(out, report);
    put_moments(out, report);
    put_marks(out, report, "Before it began", "checks", "check");
    put_marks(out, report, "Put back", "put_back", "what");
    bytes_put_text(out, "</body></html>\n");
}
