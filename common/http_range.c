/* Ranges of bytes; see http_range.h. */
#include "common/http_range.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

#define UNIT "bytes"

/* Digits at *@text, which is moved behind them. */
static int number_take(const char **text, uint64_t *ret_number)
{
    const char *at = *text;
    uint64_t n = 0;
    if (*at < '0' || *at > '9')
        return -EINVAL;
    for (; *at >= '0' && *at <= '9'; at++) {
        unsigned digit = (unsigned)(*at - '0');
        if (n > (HTTP_RANGE_NUMBER_MAX - digit) / 10)
            return -EINVAL;
        n = n * 10 + digit;
    }
    *text = at;
    *ret_number = n;
    return 0;
}

int http_range_number(const char *text, uint64_t *ret_number)
{
    uint64_t n;
    if (text == NULL || number_take(&text, &n) < 0 || *text != '\0')
        return -EINVAL;
    *ret_number = n;
    return 0;
}

int http_range_parse_request(const char *text, uint64_t total, struct http_range *ret_range)
{
    struct http_range range = {.end = total, .total = total};
    uint64_t last;
    if (text == NULL || strncasecmp(text, UNIT "=", sizeof(UNIT)) != 0)
        return 0;
    text += sizeof(UNIT);
    if (number_take(&text, &range.first) < 0 || *text++ != '-')
        return 0;
    if (*text != '\0') {
        if (number_take(&text, &last) < 0 || *text != '\0' || last < range.first)
            return 0;
        if (last < total)
            range.end = last + 1;
    }
    if (range.first >= total)
        return -ERANGE;
    *ret_range = range;
    return 1;
}

int http_range_parse_answer(const char *text, struct http_range *ret_range)
{
    struct http_range range;
    uint64_t last;
    if (text == NULL || strncasecmp(text, UNIT " ", sizeof(UNIT)) != 0)
        return -EINVAL;
    text += sizeof(UNIT);
    if (number_take(&text, &range.first) < 0 || *text++ != '-' || number_take(&text, &last) < 0 || *text++ != '/' ||
        number_take(&text, &range.total) < 0 || *text != '\0' || last < range.first || last >= range.total)
        return -EINVAL;
    range.end = last + 1;
    *ret_range = range;
    return 0;
}
