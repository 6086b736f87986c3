/* What the user half of the test guest has of its kernel half, and of each other's files. */
#ifndef TESTS_GUEST_GUEST_CALLS_H
#define TESTS_GUEST_GUEST_CALLS_H

#include <stdbool.h>
#include <stdint.h>

enum {
    CALL_OUT8 = 1,
    CALL_OUT16 = 2,
    CALL_IN8 = 3,
    CALL_WAIT = 4,
    CALL_START = 5,
    CALL_OUT32 = 6,
    CALL_IN32 = 7,
    CALL_TIMER = 8,
};

extern volatile uint64_t timer_ticks; /* of 100 ms */

static inline uint64_t call(uint64_t number, uint64_t port, uint64_t value)
{
    __asm__ volatile("int3" : "+a"(number) : "d"(port), "b"(value) : "memory", "cc");
    return number;
}

/* guest_user.c: to COM1 */
void put(const char *text);
void put_number(uint64_t n);

#endif
