/* RFC 3339 UTC times with milliseconds ("2026-01-31T12:00:00.000Z") as numbers and back, by arithmetic alone: no clock,
 * no time zone, no locale. */
#ifndef CONTROLLER_FSM_TIME_TEXT_H
#define CONTROLLER_FSM_TIME_TEXT_H

#include "common/base.h"

#define TIME_TEXT_BYTES 25u /* with NUL */

/* Milliseconds since 1970; 0 for NULL or text that is no such time. */
uint64_t time_text_ms(const char *text);
/* Is @text further ahead of @now_ms than clocks of one cluster differ (a minute)? Then the clock that it is of was wrong, and has
 * been put right: such a time says nothing. */
bool time_text_is_ahead(uint64_t now_ms, const char *text);
/* Are @wait_ms over since @text? So they are where it is NULL, or ahead: who waited for such a time would wait for as long as the
 * clock was wrong, be it a year. */
bool time_text_is_over(uint64_t now_ms, const char *text, uint64_t wait_ms);
/* Times past the year 9999 are given as its end. */
void time_text_format(uint64_t ms, char ret_text[TIME_TEXT_BYTES]);

#endif
