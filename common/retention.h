/* Which backups to keep: pure. As restic and others have it: each rule keeps the newest backup of each of the last so
 * many hours, days, ISO weeks, months and years that have one (empty ones do not count), keep_last the newest so
 * many; what any rule keeps is kept. Time is UTC. */
#ifndef COMMON_RETENTION_H
#define COMMON_RETENTION_H

#include "common/base.h"

struct retention_rules {
    uint64_t last, hourly, daily, weekly, monthly, yearly; /* 0: no such rule */
};
enum retention_reason {
    RETENTION_LAST = 1 << 0,
    RETENTION_HOURLY = 1 << 1,
    RETENTION_DAILY = 1 << 2,
    RETENTION_WEEKLY = 1 << 3,
    RETENTION_MONTHLY = 1 << 4,
    RETENTION_YEARLY = 1 << 5,
};

bool retention_has_rules(const struct retention_rules *rules);
/* @times_ms: of one VM's backups, the newest first. @ret_reasons: for each, why it is kept; 0: it goes. */
void retention_choose(const struct retention_rules *rules, const int64_t *times_ms, size_t count,
                      unsigned *ret_reasons);

#endif
