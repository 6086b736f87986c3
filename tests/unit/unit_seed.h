/* The seed of a random test: DROVER_SEED where it is set, as in `make check`, whose outcome is not to depend on luck;
 * otherwise (a test by hand, `make check-all`) another each time. It is printed, so that a failure can be repeated. */
#ifndef DROVER_TESTS_UNIT_UNIT_SEED_H
#define DROVER_TESTS_UNIT_UNIT_SEED_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static inline uint64_t unit_seed(void)
{
    const char *text = getenv("DROVER_SEED");
    uint64_t seed = text != NULL ? strtoull(text, NULL, 10) : (uint64_t)time(NULL);
    printf("# DROVER_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

#endif
