/* A file by blocking calls: what a flush that has failed means for those after it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "block/block_sync.h"

enum { DISK_BYTES = 1 << 20 };

/* The kernel says once that it could not write, and then has nothing more to write. What is no file has nothing to be synced. */
static void a_failed_flush_stays_failed(void **state UNUSED)
{
    char path[] = "build/test-sync-XXXXXX";
    uint8_t sector[512];
    struct block *block;
    struct error err;
    int pipes[2], fd = mkstemp(path), kept = dup(fd);
    assert_true(fd >= 0 && kept >= 0 && pipe(pipes) == 0);
    assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
    assert_int_equal(block_sync_from_fd(fd, "test", false, &block, &err), 0);
    assert_int_equal(block_now(block, BLOCK_FLUSH, 0, NULL, 0), 0);
    assert_int_equal(dup2(pipes[0], fd), fd);
    assert_int_equal(block_now(block, BLOCK_FLUSH, 0, NULL, 0), -EINVAL);
    assert_int_equal(dup2(kept, fd), fd);
    assert_int_equal(block_now(block, BLOCK_FLUSH, 0, NULL, 0), -EINVAL);
    assert_int_equal(block_now(block, BLOCK_READ, 0, sector, sizeof sector), 0);
    block_close(block);
    close(kept);
    close(pipes[0]);
    close(pipes[1]);
    unlink(path);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failed_flush_stays_failed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
