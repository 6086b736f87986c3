/* Clock and chance. The kernel's generator cannot fail once it is seeded; anything else ends the process. */
#include "controller/environment.h"

#include <stdio.h>
#include <sys/random.h>
#include <time.h>

static uint64_t clock_us(clockid_t clock)
{
    struct timespec t;
    ASSERT(clock_gettime(clock, &t) == 0);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

uint64_t environment_unix_ms(void)
{
    return clock_us(CLOCK_REALTIME) / 1000;
}

uint64_t environment_monotonic_ms(void)
{
    return clock_us(CLOCK_MONOTONIC) / 1000;
}

uint64_t environment_monotonic_us(void)
{
    return clock_us(CLOCK_MONOTONIC);
}

void environment_time_text(uint64_t unix_ms, char text[ENVIRONMENT_TIME_SIZE])
{
    time_t seconds = (time_t)(unix_ms / 1000);
    struct tm tm;
    gmtime_r(&seconds, &tm);
    char part[24];
    strftime(part, sizeof part, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(text, ENVIRONMENT_TIME_SIZE, "%.19s.%03uZ", part, (unsigned)(unix_ms % 1000));
}

static void random_bytes(uint8_t *bytes, size_t size)
{
    ASSERT(getrandom(bytes, size, 0) == (ssize_t)size); /* up to 256 bytes are never cut short, random(7) */
}

void environment_uuid(char text[ENVIRONMENT_UUID_SIZE])
{
    uint8_t b[16];
    random_bytes(b, sizeof b);
    b[6] = (uint8_t)((b[6] & 0x0f) | 0x40);
    b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
    snprintf(text, ENVIRONMENT_UUID_SIZE, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
             b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

void environment_secret(char text[ENVIRONMENT_SECRET_SIZE])
{
    uint8_t b[32];
    random_bytes(b, sizeof b);
    for (size_t i = 0; i < sizeof b; i++)
        snprintf(text + 2 * i, 3, "%02x", b[i]);
}
