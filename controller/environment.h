/* The doors to clock and chance for everything that a controller decides. Rules and replicated state have neither:
 * times and identities are fixed here before a command is proposed. Any thread. */
#ifndef CONTROLLER_ENVIRONMENT_H
#define CONTROLLER_ENVIRONMENT_H

#include "common/base.h"

#define ENVIRONMENT_TIME_SIZE 25 /* "2026-01-31T12:00:00.000Z" and a terminator */
#define ENVIRONMENT_UUID_SIZE 37
#define ENVIRONMENT_SECRET_SIZE 65 /* 256 random bits in hexadecimal */

uint64_t environment_unix_ms(void);      /* wall clock: for people and expiry dates only */
uint64_t environment_monotonic_ms(void); /* for deadlines and intervals */
uint64_t environment_monotonic_us(void);
void environment_time_text(uint64_t unix_ms, char text[ENVIRONMENT_TIME_SIZE]);
void environment_uuid(char text[ENVIRONMENT_UUID_SIZE]); /* random, RFC 9562 version 4 */
void environment_secret(char text[ENVIRONMENT_SECRET_SIZE]);

#endif
