/* Small things every room needs: sizes, containers, scoped cleanup, assertions that stay on in release. */
#ifndef COMMON_BASE_H
#define COMMON_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define STRINGIFY_(x) #x
#define STRINGIFY(x) STRINGIFY_(x)
#define UNUSED __attribute__((unused))
#define PRINTF_LIKE(format_at, args_at) __attribute__((format(printf, format_at, args_at)))
#define STATIC_ASSERT(cond, text) _Static_assert(cond, text)

/* The struct that @member of @type, pointed to by @ptr, is part of. */
#define CONTAINER_OF(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

/* Straight-line ownership: a variable marked CLEANUP(f) is given to f at the end of its scope;
 * TAKE_PTR hands the pointer on and leaves NULL behind, so that f does nothing. */
#define CLEANUP(f) __attribute__((cleanup(f)))
#define TAKE_PTR(p)                                                                                                  \
    __extension__({                                                                                                  \
        __typeof__(p) taken_ = (p);                                                                                  \
        (p) = NULL;                                                                                                  \
        taken_;                                                                                                      \
    })

static inline void free_ptr(void *p)
{
    free(*(void **)p);
}
/* -1 afterwards: a number that is closed twice is another file's by then. */
static inline void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}
#define CLEANUP_FREE CLEANUP(free_ptr)
#define CLEANUP_FD CLEANUP(close_fd)

/* A mistake of ours ends the process, in release too. Never for bytes from a guest, network, disk or user. */
#define ASSERT(cond) ((cond) ? (void)0 : assert_failed(#cond, __FILE__, __LINE__, __func__))
_Noreturn void assert_failed(const char *text, const char *file, int line, const char *function);

/* Allocation that cannot fail for sizes of our own making: ends the process where memory is gone.
 * For sizes chosen by a guest, peer or user use malloc() and answer -ENOMEM. The caller frees. */
void *xcalloc(size_t count, size_t size) __attribute__((malloc, returns_nonnull));
void *xrealloc(void *p, size_t size) __attribute__((returns_nonnull));
char *xstrdup(const char *text) __attribute__((malloc, returns_nonnull));
char *xasprintf(const char *format, ...) PRINTF_LIKE(1, 2) __attribute__((malloc, returns_nonnull));
/* Take away a UTF-8 character that was cut in two at the end of @text. */
void text_trim(char *text);
/* As much of @text as @size bytes hold, NUL included, no UTF-8 character cut in two. */
void text_copy(char *buffer, size_t size, const char *text);
/* Are they the same? NULL is "". */
bool text_same(const char *a, const char *b);
#define NEW(type) ((type *)xcalloc(1, sizeof(type)))

#endif
