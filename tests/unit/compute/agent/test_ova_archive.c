/* OVA archives made here, whole and in every way wrong; and what qemu-img may say of a disk. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "compute/agent/image_convert.h"
#include "compute/agent/ova_archive.h"

#define OVF                                                                                                          \
    "<?xml version='1.0'?><Envelope xmlns:ovf='x'><!-- <Disk ovf:fileRef='no'/> --><References>"                     \
    "<File ovf:id='f1' ovf:href='disk.vmdk'/></References><DiskSection><Disk ovf:fileRef=\"f1\"/></DiskSection></Envelope>"

static void put_entry(struct bytes_writer *w, const char *name, char type, const char *content)
{
    uint8_t h[512] = {0};
    unsigned sum = 0;
    size_t size = strlen(content);
    snprintf((char *)h, 100, "%s", name);
    snprintf((char *)h + 124, 12, "%011o", (unsigned)size);
    memset(h + 148, ' ', 8);
    h[156] = (uint8_t)type;
    memcpy(h + 257, "ustar", 5);
    for (unsigned i = 0; i < 512; i++)
        sum += h[i];
    snprintf((char *)h + 148, 8, "%06o", sum);
    bytes_put(w, h, 512);
    bytes_put(w, content, size);
    bytes_put_padding(w, 512);
}

static int read_memory(void *data, size_t size, uint64_t offset, void *arg)
{
    const struct bytes_writer *w = arg;
    assert_true(offset <= w->size && size <= w->size - offset);
    memcpy(data, w->data + offset, size);
    return 0;
}

static int find(struct bytes_writer *w, struct ova_entry *disk, struct error *err)
{
    return ova_find_disk(read_memory, w, w->size, disk, err);
}

static void test_whole_and_cut(void **state)
{
    struct bytes_writer w = {0};
    struct ova_entry disk;
    struct error err;
    static const uint8_t end[1024];
    (void)state;
    put_entry(&w, "box.ovf", '0', OVF);
    put_entry(&w, "box.mf", '0', "SHA256(disk.vmdk)= x");
    put_entry(&w, "./disk.vmdk", '0', "the disk's bytes");
    size_t content = w.size - 512;
    bytes_put(&w, end, sizeof(end));
    assert_int_equal(find(&w, &disk, &err), 0);
    assert_int_equal(disk.offset, content);
    assert_int_equal(disk.size, 16);
    /* cut off anywhere before the end of the disk's bytes: never found, never read past the end */
    for (size_t size = 0; size < content + 16; size += 7) {
        struct bytes_writer part = {.data = w.data, .size = size};
        assert_true(find(&part, &disk, &err) < 0);
    }
    /* a byte of a header that is another one */
    for (size_t i = 0; i < 512; i += 3) {
        w.data[i] ^= 1;
        int r = find(&w, &disk, &err);
        assert_true(r < 0 || i >= 500);
        w.data[i] ^= 1;
    }
    bytes_writer_finish(&w);
}

static void test_names(void **state)
{
    static const struct {
        const char *ovf;
        int code;
        const char *words;
    } cases[] = {
        {OVF, 0, ""},
        {"<E><File id='f1' href='a.vmdk'/><Disk fileRef='f1'/><Disk diskId='empty'/></E>", 0, ""},
        {"<E><File id='f1' href='a.vmdk'/><Disk fileRef='f1'/><Disk fileRef='f1'/></E>", -ENOTSUP, "2 disks"},
        {"<E><File id='f1' href='a.vmdk'/></E>", -ENOTSUP, "0 disks"},
        {"<E><File id='f1' href='../../etc/passwd'/><Disk fileRef='f1'/></E>", -ENOTSUP, "elsewhere"},
        {"<E><File id='f1' href='http://x/y'/><Disk fileRef='f1'/></E>", -ENOTSUP, "elsewhere"},
        {"<E><File id='f1' href='a' compression='gzip'/><Disk fileRef='f1'/></E>", -ENOTSUP, "compressed"},
        {"<E><File id='f1' href='a' chunkSize='5'/><Disk fileRef='f1'/></E>", -ENOTSUP, "pieces"},
        {"<E><File id='f1' href='a'/><Disk fileRef='f1' parentRef='d0'/></E>", -ENOTSUP, "parent"},
        {"<E><File id='f2' href='a'/><Disk fileRef='f1'/></E>", -EBADMSG, "does not name"},
        {"<E><File id='f1' href='a&amp;b'/><Disk fileRef='f1'/></E>", -EBADMSG, "malformed"},
        {"<E><File id='f1' href='a'/><Disk fileRef='f1'", -EBADMSG, "malformed"},
        {"<E><File id=f1 href='a'/><Disk fileRef=f1/></E>", -EBADMSG, "malformed"},
        {"<E><!-- <Disk fileRef='f1'/>", -EBADMSG, "malformed"},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct error err = {.code = 0};
        char name[OVA_NAME_BYTES_MAX + 1];
        assert_int_equal(ova_disk_name(cases[i].ovf, strlen(cases[i].ovf), name, &err), cases[i].code);
        assert_non_null(strstr(err.text, cases[i].words));
    }
}

static void test_headers(void **state)
{
    uint8_t h[IMAGE_CONVERT_HEADER_BYTES] = "QFI\xfb";
    (void)state;
    h[7] = 3;
    assert_int_equal(image_convert_check_header(image_format_QCOW2, h, sizeof(h), NULL), 0);
    h[15] = 1; /* backing file */
    assert_int_equal(image_convert_check_header(image_format_QCOW2, h, sizeof(h), NULL), -ENOTSUP);
    h[15] = 0;
    h[35] = 2; /* encrypted */
    assert_int_equal(image_convert_check_header(image_format_QCOW2, h, sizeof(h), NULL), -ENOTSUP);
    h[35] = 0;
    h[79] = 4; /* external data file */
    assert_int_equal(image_convert_check_header(image_format_QCOW2, h, sizeof(h), NULL), -ENOTSUP);
    h[79] = 0;
    h[7] = 1;
    assert_int_equal(image_convert_check_header(image_format_QCOW2, h, sizeof(h), NULL), -ENOTSUP);
    for (size_t size = 0; size < 72; size++)
        assert_int_equal(image_convert_check_header(image_format_QCOW2, h, size, NULL), -EBADMSG);
    assert_int_equal(image_convert_check_header(image_format_VMDK, h, sizeof(h), NULL), -EBADMSG);
    assert_int_equal(image_convert_check_header(image_format_VHDX, h, sizeof(h), NULL), -EBADMSG);
    assert_int_equal(image_convert_check_header(image_format_VMDK, (const uint8_t *)"# Disk DescriptorFile\n", 22, NULL), -ENOTSUP);
}

static void test_info(void **state)
{
    static const struct {
        const char *text;
        int code;
    } cases[] = {
        {"{\"format\":\"qcow2\",\"virtual-size\":1048576}", 0},
        {"{\"format\":\"raw\",\"virtual-size\":1048576}", -EBADMSG},
        {"{\"format\":\"qcow2\",\"virtual-size\":0}", -EFBIG},
        {"{\"format\":\"qcow2\",\"virtual-size\":-5}", -EFBIG},
        {"{\"format\":\"qcow2\",\"virtual-size\":9223372036854775807}", -EFBIG},
        {"{\"format\":\"qcow2\",\"virtual-size\":\"1\"}", -EBADMSG},
        {"{\"format\":\"qcow2\",\"virtual-size\":5,\"backing-filename\":\"/etc/shadow\"}", -ENOTSUP},
        {"{\"format\":\"qcow2\",\"virtual-size\":5,\"encrypted\":true}", -ENOTSUP},
        {"{\"format\":\"qcow2\",\"virtual-size\":5,\"format-specific\":{\"data\":{\"data-file\":\"x\"}}}", -ENOTSUP},
        {"{\"format\":\"qcow2\",\"virtual-size\":5,\"format-specific\":{\"data\":{\"parent-cid\":7}}}", -ENOTSUP},
        {"{\"format\":\"qcow2\",\"virtual-size\":5,\"format-specific\":{\"data\":{\"extents\":[{},{}]}}}", -ENOTSUP},
        {"{\"format\":\"qcow2\",\"virtual-size\":5,\"format-specific\":{\"data\":{\"corrupt\":true}}}", -EBADMSG},
        {"[]", -EBADMSG},
        {"", -EBADMSG},
        {"{", -EBADMSG},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint64_t size = 0;
        assert_int_equal(image_convert_check_info(image_format_QCOW2, cases[i].text, strlen(cases[i].text), &size, NULL), cases[i].code);
        assert_int_equal(size, cases[i].code == 0 ? 1048576 : 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_and_cut),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_info),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
