/* Civil dates by counting days from 1 March, so that the leap day is the last of a year. */
#include "controller/fsm/time_text.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define DAYS_OF_ERA 146097u      /* 400 years */
#define DAYS_TO_1970 719468u     /* from 0000-03-01 */
#define MS_OF_DAY UINT64_C(86400000)
#define AHEAD_MS UINT64_C(60000)
#define MS_MAX UINT64_C(253402300799999) /* 9999-12-31T23:59:59.999Z */

static bool number(const char *text, unsigned digits, uint64_t max, uint64_t *ret)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < digits; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        value = value * 10 + (uint64_t)(text[i] - '0');
    }
    *ret = value;
    return value <= max;
}

static uint64_t days_from_civil(uint64_t year, uint64_t month, uint64_t day)
{
    year -= month <= 2;
    uint64_t year_of_era = year % 400;
    uint64_t day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return year / 400 * DAYS_OF_ERA + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - DAYS_TO_1970;
}

uint64_t time_text_ms(const char *text)
{
    uint64_t year, month, day, hour, minute, second, ms;
    if (text == NULL || strlen(text) != TIME_TEXT_BYTES - 1)
        return 0;
    if (!number(text, 4, 9999, &year) || !number(text + 5, 2, 12, &month) || !number(text + 8, 2, 31, &day) ||
        !number(text + 11, 2, 23, &hour) || !number(text + 14, 2, 59, &minute) || !number(text + 17, 2, 60, &second) ||
        !number(text + 20, 3, 999, &ms) || year < 1970 || month == 0 || day == 0)
        return 0;
    return days_from_civil(year, month, day) * MS_OF_DAY + ((hour * 60 + minute) * 60 + second) * 1000 + ms;
}

bool time_text_is_ahead(uint64_t now_ms, const char *text)
{
    return time_text_ms(text) > now_ms + AHEAD_MS;
}

bool time_text_is_over(uint64_t now_ms, const char *text, uint64_t wait_ms)
{
    return text == NULL || time_text_is_ahead(now_ms, text) || now_ms >= time_text_ms(text) + wait_ms;
}

void time_text_format(uint64_t ms, char ret_text[TIME_TEXT_BYTES])
{
    ms = MIN(ms, MS_MAX);
    uint64_t days = ms / MS_OF_DAY + DAYS_TO_1970, rest = ms % MS_OF_DAY;
    uint64_t day_of_era = days % DAYS_OF_ERA;
    uint64_t year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
    uint64_t day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    uint64_t month_from_march = (5 * day_of_year + 2) / 153;
    uint64_t day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    uint64_t month = month_from_march < 10 ? month_from_march + 3 : month_from_march - 9;
    uint64_t year = days / DAYS_OF_ERA * 400 + year_of_era + (month <= 2);
    char text[64];
    snprintf(text, sizeof text, "%04" PRIu64 "-%02" PRIu64 "-%02" PRIu64 "T%02" PRIu64 ":%02" PRIu64 ":%02" PRIu64 ".%03" PRIu64 "Z",
             year, month, day, rest / 3600000, rest / 60000 % 60, rest / 1000 % 60, rest % 1000);
    memcpy(ret_text, text, TIME_TEXT_BYTES - 1);
    ret_text[TIME_TEXT_BYTES - 1] = '\0';
}
