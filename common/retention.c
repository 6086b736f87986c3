/* Which backups to keep: see retention.h. */
#include "common/retention.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

bool retention_has_rules(const struct retention_rules *rules)
{
    return rules->last + rules->hourly + rules->daily + rules->weekly + rules->monthly + rules->yearly > 0;
}

/* A number for the period that @time_ms is in; the same for all in it. */
static int64_t period_of(enum retention_reason reason, int64_t time_ms)
{
    struct tm tm;
    time_t s = (time_t)(time_ms / 1000);
    char week[16];
    gmtime_r(&s, &tm);
    switch (reason) {
    case RETENTION_HOURLY:
        return s / 3600;
    case RETENTION_DAILY:
        return s / 86400;
    case RETENTION_WEEKLY: /* ISO 8601: weeks begin on Monday, the first has the year's first Thursday */
        strftime(week, sizeof week, "%G%V", &tm);
        return strtoll(week, NULL, 10);
    case RETENTION_MONTHLY:
        return (int64_t)tm.tm_year * 12 + tm.tm_mon;
    default:
        return tm.tm_year;
    }
}

void retention_choose(const struct retention_rules *rules, const int64_t *times_ms, size_t count,
                      unsigned *ret_reasons)
{
    const struct {
        enum retention_reason reason;
        uint64_t keep;
    } all[] = {
        {RETENTION_LAST, rules->last},     {RETENTION_HOURLY, rules->hourly},   {RETENTION_DAILY, rules->daily},
        {RETENTION_WEEKLY, rules->weekly}, {RETENTION_MONTHLY, rules->monthly}, {RETENTION_YEARLY, rules->yearly},
    };
    memset(ret_reasons, 0, count * sizeof *ret_reasons);
    for (size_t r = 0; r < ARRAY_SIZE(all); r++) {
        uint64_t left = all[r].keep;
        int64_t last = 0;
        bool any = false;
        for (size_t i = 0; i < count && left > 0; i++) {
            int64_t period = period_of(all[r].reason, times_ms[i]);
            if (all[r].reason != RETENTION_LAST && any && period == last)
                continue;
            any = true;
            last = period;
            left--;
            ret_reasons[i] |= all[r].reason;
        }
    }
}
