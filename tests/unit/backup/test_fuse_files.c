/* A directory of files as the kernel asks for them, and as no kernel would. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "backup/fuse_files.h"
#include "tests/unit/unit_seed.h"

enum { FILE_BYTES = 300000, HOLE = 100000, HOLE_END = 200000 };

static uint8_t content[FILE_BYTES];

static int file_read(void *arg, uint64_t offset, void *buffer, size_t size)
{
    assert_true(size > 0 && offset < FILE_BYTES && size <= FILE_BYTES - offset);
    if (arg != NULL)
        return -EIO;
    memcpy(buffer, content + offset, size);
    return 0;
}

static int file_extent(void *arg UNUSED, uint64_t offset, bool *ret_zero, uint64_t *ret_end)
{
    assert_true(offset < FILE_BYTES);
    *ret_zero = offset >= HOLE && offset < HOLE_END;
    *ret_end = offset < HOLE ? HOLE : offset < HOLE_END ? HOLE_END : FILE_BYTES + 1; /* may say more than there is */
    return 0;
}

static struct fuse_file items[] = {
    {.name = "root.raw", .size_bytes = FILE_BYTES, .read = file_read, .extent = file_extent},
    {.name = "bad.raw", .size_bytes = 10, .read = file_read, .arg = content},
    {.name = "vm.json", .size_bytes = 3, .read = file_read},
};
static const struct fuse_files files = {.items = items, .count = ARRAY_SIZE(items), .time_s = 1000, .user = 7, .group = 8};

static struct {
    struct fuse_out_header head;
    uint8_t data[FUSE_FILES_ANSWER_BYTES_MAX];
} answer;

/* Bytes of the answer's data, or its error. */
static int ask(uint32_t opcode, uint64_t node, const void *arguments, size_t size)
{
    uint8_t request[4096];
    struct fuse_in_header head = {.len = (uint32_t)(sizeof head + size), .opcode = opcode, .unique = 42, .nodeid = node};
    memcpy(request, &head, sizeof head);
    memcpy(request + sizeof head, arguments, size);
    size_t got = fuse_files_answer(&files, request, sizeof head + size, &answer);
    if (got == 0)
        return 0;
    assert_int_equal(answer.head.len, got);
    assert_int_equal(answer.head.unique, 42);
    assert_true(answer.head.error == 0 || got == sizeof answer.head);
    return answer.head.error != 0 ? answer.head.error : (int)(got - sizeof answer.head);
}

static uint64_t lookup(const char *name)
{
    struct fuse_entry_out entry;
    int got = ask(FUSE_LOOKUP, FUSE_ROOT_ID, name, strlen(name) + 1);
    if (got < 0)
        return 0;
    assert_int_equal(got, sizeof entry);
    memcpy(&entry, answer.data, sizeof entry);
    assert_int_equal(entry.attr.mode, S_IFREG | 0400);
    assert_int_equal(entry.attr.uid, 7);
    return entry.nodeid;
}

static void test_init(void **state UNUSED)
{
    struct fuse_init_in in = {.major = FUSE_KERNEL_VERSION, .minor = 31, .max_readahead = 1 << 24, .flags = ~0u};
    struct fuse_init_out out;
    assert_int_equal(ask(FUSE_INIT, 0, &in, 16), sizeof out); /* that is all that old kernels send */
    memcpy(&out, answer.data, sizeof out);
    assert_int_equal(out.minor, 31);
    assert_int_equal(out.max_readahead, FUSE_FILES_READ_BYTES_MAX);
    assert_int_equal(out.flags & ~(uint32_t)(FUSE_ASYNC_READ | FUSE_MAX_PAGES | FUSE_PARALLEL_DIROPS), 0);
    in.major = 8;
    assert_int_equal(ask(FUSE_INIT, 0, &in, 16), sizeof out);
    memcpy(&out, answer.data, sizeof out);
    assert_int_equal(out.major, FUSE_KERNEL_VERSION);
    in = (struct fuse_init_in){.major = 7, .minor = 22};
    assert_int_equal(ask(FUSE_INIT, 0, &in, 16), -EPROTO);
    assert_int_equal(ask(FUSE_INIT, 0, &in, 15), -EINVAL);
}

static void test_names(void **state UNUSED)
{
    struct fuse_attr_out attr;
    uint64_t root = lookup("root.raw");
    assert_true(root > FUSE_ROOT_ID && lookup("vm.json") > root);
    assert_int_equal(lookup("other"), 0);
    assert_int_equal(answer.head.error, -ENOENT);
    assert_int_equal(ask(FUSE_LOOKUP, FUSE_ROOT_ID, "root.raw", 8), -EINVAL); /* no NUL */
    assert_int_equal(ask(FUSE_LOOKUP, FUSE_ROOT_ID, "", 0), -EINVAL);
    assert_int_equal(ask(FUSE_LOOKUP, root, "x", 2), -ENOTDIR);
    assert_int_equal(ask(FUSE_GETATTR, root, &attr, 16), sizeof attr);
    memcpy(&attr, answer.data, sizeof attr);
    assert_int_equal(attr.attr.size, FILE_BYTES);
    assert_int_equal(attr.attr.mtime, 1000);
    assert_int_equal(ask(FUSE_GETATTR, FUSE_ROOT_ID, &attr, 16), sizeof attr);
    memcpy(&attr, answer.data, sizeof attr);
    assert_int_equal(attr.attr.mode, S_IFDIR | 0500);
    assert_int_equal(ask(FUSE_GETATTR, 99, &attr, 16), -ENOENT);
}

/* All names, whatever little room there is for each answer. */
static void test_directory(void **state UNUSED)
{
    for (uint32_t room = 40; room < 400; room += 24) {
        struct fuse_read_in in = {.size = room};
        char seen[200] = "";
        for (int got; (got = ask(FUSE_READDIR, FUSE_ROOT_ID, &in, sizeof in)) != 0;) {
            assert_in_range(got, 1, room);
            for (int at = 0; at < got;) {
                struct fuse_dirent entry;
                memcpy(&entry, answer.data + at, FUSE_NAME_OFFSET);
                snprintf(seen + strlen(seen), sizeof seen - strlen(seen), "%.*s,", (int)entry.namelen,
                         (char *)answer.data + at + FUSE_NAME_OFFSET);
                in.offset = entry.off;
                at += (int)FUSE_REC_ALIGN(FUSE_NAME_OFFSET + entry.namelen);
            }
        }
        assert_string_equal(seen, ".,..,root.raw,bad.raw,vm.json,");
    }
    struct fuse_read_in in = {.size = 4096};
    assert_int_equal(ask(FUSE_READDIR, lookup("root.raw"), &in, sizeof in), -ENOTDIR);
}

static int read_at(uint64_t node, uint64_t offset, uint32_t size)
{
    struct fuse_read_in in = {.offset = offset, .size = size};
    return ask(FUSE_READ, node, &in, sizeof in);
}

static int seek(uint64_t node, uint64_t offset, uint32_t whence)
{
    struct fuse_lseek_in in = {.offset = offset, .whence = whence};
    struct fuse_lseek_out out;
    int got = ask(FUSE_LSEEK, node, &in, sizeof in);
    memcpy(&out, answer.data, sizeof out);
    return got < 0 ? got : (int)out.offset;
}

static void test_reading(void **state UNUSED)
{
    uint64_t root = lookup("root.raw");
    struct fuse_open_in open = {.flags = O_RDONLY};
    assert_int_equal(ask(FUSE_OPEN, root, &open, sizeof open), sizeof(struct fuse_open_out));
    open.flags = O_RDWR;
    assert_int_equal(ask(FUSE_OPEN, root, &open, sizeof open), -EROFS);
    assert_int_equal(ask(FUSE_OPENDIR, root, &open, sizeof open), -ENOENT);
    assert_int_equal(read_at(root, 1000, 5000), 5000);
    assert_memory_equal(answer.data, content + 1000, 5000);
    assert_int_equal(read_at(root, FILE_BYTES - 10, 4096), 10);
    assert_memory_equal(answer.data, content + FILE_BYTES - 10, 10);
    assert_int_equal(read_at(root, FILE_BYTES, 4096), 0);
    assert_int_equal(read_at(root, UINT64_MAX, 4096), 0);
    assert_int_equal(read_at(root, 0, FUSE_FILES_READ_BYTES_MAX + 1), -EINVAL);
    assert_int_equal(read_at(lookup("bad.raw"), 0, 10), -EIO);
    assert_int_equal(read_at(FUSE_ROOT_ID, 0, 10), -ENOENT);
    assert_int_equal(seek(root, 0, SEEK_HOLE), HOLE);
    assert_int_equal(seek(root, HOLE + 1, SEEK_HOLE), HOLE + 1);
    assert_int_equal(seek(root, HOLE, SEEK_DATA), HOLE_END);
    assert_int_equal(seek(root, HOLE_END, SEEK_HOLE), FILE_BYTES);
    assert_int_equal(seek(root, FILE_BYTES, SEEK_DATA), -ENXIO);
    assert_int_equal(seek(root, 0, SEEK_SET), -EINVAL);
    assert_int_equal(seek(lookup("vm.json"), 1, SEEK_DATA), 1);
    assert_int_equal(seek(lookup("vm.json"), 1, SEEK_HOLE), 3);
    assert_int_equal(ask(FUSE_WRITE, root, content, 100), -EROFS);
    assert_int_equal(ask(FUSE_UNLINK, FUSE_ROOT_ID, "root.raw", 9), -EROFS);
    assert_int_equal(ask(FUSE_GETXATTR, root, content, 100), -ENOSYS);
    assert_int_equal(fuse_files_answer(&files, content, sizeof(struct fuse_in_header) - 1, &answer), 0);
}

static void test_anything(void **state UNUSED)
{
    unsigned seed = (unsigned)unit_seed();
    for (unsigned round = 0; round < 20000; round++) {
        uint8_t arguments[128];
        for (unsigned i = 0; i < sizeof arguments; i++)
            arguments[i] = rand_r(&seed) % 2 == 0 ? 0 : (uint8_t)rand_r(&seed);
        ask((uint32_t)rand_r(&seed) % 60, (uint64_t)rand_r(&seed) % 8, arguments, (size_t)rand_r(&seed) % sizeof arguments);
    }
}

int main(void)
{
    for (unsigned i = 0; i < FILE_BYTES; i++)
        content[i] = i >= HOLE && i < HOLE_END ? 0 : (uint8_t)(i * 7 + i / 256);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_init), cmocka_unit_test(test_names),
                                       cmocka_unit_test(test_directory), cmocka_unit_test(test_reading),
                                       cmocka_unit_test(test_anything)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
