/* The seed disk: its files as a reader of FAT finds them, and that nothing a user says becomes another key. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <jansson.h>
#include <string.h>

#include "compute/agent/seed_files.h"
#include "compute/agent/seed_image.h"

static unsigned get16(const uint8_t *at)
{
    return (unsigned)at[0] | (unsigned)at[1] << 8;
}

/* A FAT12 reader of its own: the file @name's content, NUL behind it, or NULL. The caller frees. */
static char *read_file(const uint8_t *image, size_t image_size, const char *name)
{
    unsigned sector = get16(image + 11), reserved = get16(image + 14), fats = image[16], entries = get16(image + 17);
    unsigned fat_sectors = get16(image + 22);
    const uint8_t *fat = image + reserved * sector, *root = fat + fats * fat_sectors * sector, *data = root + entries * 32;
    char long_name[64] = "";
    assert_int_equal(get16(image + 510), 0xaa55);
    assert_int_equal(get16(image + 19) * sector, image_size);
    assert_memory_equal(fat, fat + fat_sectors * sector, fat_sectors * sector);
    assert_memory_equal(root, "CIDATA     \x08", 12);
    for (const uint8_t *e = root + 32; e[0] != 0; e += 32) {
        static const uint8_t places[] = {1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30};
        if (e[11] == 0x0f) {
            for (unsigned i = 0; i < 13; i++)
                if (get16(e + places[i]) != 0xffff)
                    long_name[((e[0] & 0x3f) - 1) * 13 + i] = (char)get16(e + places[i]);
            continue;
        }
        if (strcmp(long_name, name) != 0) {
            memset(long_name, 0, sizeof long_name);
            continue;
        }
        size_t size = get16(e + 28) | (size_t)get16(e + 30) << 16, done = 0;
        char *text = calloc(1, size + 1);
        for (unsigned c = get16(e + 26); size > done; done += 512) {
            assert_true(c >= 2 && c < 0xff0);
            memcpy(text + done, data + (c - 2) * 512, size - done < 512 ? size - done : 512);
            const uint8_t *at = fat + c * 3 / 2;
            c = c % 2 ? get16(at) >> 4 : get16(at) & 0xfff;
            assert_int_equal(c >= 0xff8, size - done <= 512);
        }
        return text;
    }
    return NULL;
}

static void files(void **test UNUSED)
{
    static char big[20000];
    struct bytes_writer image = {0};
    for (size_t i = 0; i < sizeof big; i++)
        big[i] = (char)('a' + i % 23);
    const struct seed_image_file given[] = {{"meta-data", "one", 3}, {"empty", "", 0}, {"network-config", big, sizeof big}, {"user-data", "two", 3}};
    assert_int_equal(seed_image_make("CIDATA", given, 4, &image), 0);
    for (size_t i = 0; i < 4; i++) {
        char *text = read_file(image.data, image.size, given[i].name);
        assert_non_null(text);
        assert_int_equal(strlen(text), given[i].size);
        assert_memory_equal(text, given[i].data, given[i].size);
        free(text);
    }
    assert_null(read_file(image.data, image.size, "other"));
    bytes_writer_finish(&image);
    const struct seed_image_file huge = {"x", big, SEED_IMAGE_BYTES_MAX};
    assert_int_equal(seed_image_make("CIDATA", &huge, 1, &image), -EFBIG);
    assert_null(image.data);
}

static void order_of(struct vm_order *order, const char *json)
{
    struct error err = {0};
    if (OBJECT_DECODE(vm_order, json, strlen(json), OBJECT_STORED, order, &err) < 0)
        fail_msg("%s %s", err.field, err.text);
}

static const char *text_of(struct bytes_writer *out)
{
    bytes_put_u8(out, 0);
    return (const char *)out->data;
}

static void what_cloud_init_is_told(void **test UNUSED)
{
    struct vm_order order;
    struct network network = {0};
    struct error err = {0};
    struct bytes_writer out = {0};
    order_of(&order, "{\"id\":\"6f1c0b0e-6c1e-4d7a-9a57-0c6b8f3b2a11\",\"name\":\"web1\",\"ssh_keys\":\"# mine\\nssh-ed25519 AAAA a: \\\"b\\\"\\n\\nssh-rsa BBBB\\n\","
                     "\"nics\":[{\"network\":\"lan\",\"mac\":\"52:54:00:00:00:01\",\"ips\":[\"192.0.2.10\",\"2001:db8::7\"]},{\"bridge\":\"br0\",\"mac\":\"52:54:00:00:00:02\"}]}");
    static const char lan[] = "{\"name\":\"lan\",\"ipv4_subnet\":\"192.0.2.0/24\",\"ipv4_gateway\":\"192.0.2.1\",\"ipv6_subnet\":\"2001:db8::/64\",\"ipv6_gateway\":\"2001:db8::1\",\"dns_servers\":[\"192.0.2.53\"],\"mtu\":1400}";
    assert_int_equal(OBJECT_DECODE(network, lan, strlen(lan), OBJECT_STORED, &network, &err), 0);
    const struct network *networks[] = {&network, NULL};
    assert_true(seed_files_wanted(&order));
    seed_files_meta_data(&order, &out);
    assert_string_equal(text_of(&out), "instance-id: \"6f1c0b0e-6c1e-4d7a-9a57-0c6b8f3b2a11\"\nlocal-hostname: \"web1\"\npublic-keys:\n"
                                       "  - \"ssh-ed25519 AAAA a: \\\"b\\\"\"\n  - \"ssh-rsa BBBB\"\n");
    bytes_writer_finish(&out);
    out = (struct bytes_writer){0};
    seed_files_network_config(&order, networks, &out);
    assert_string_equal(text_of(&out), "version: 2\nethernets:\n  nic0:\n    match:\n      macaddress: \"52:54:00:00:00:01\"\n    addresses:\n"
                                       "      - \"192.0.2.10/24\"\n      - \"2001:db8::7/64\"\n    routes:\n"
                                       "      - to: \"0.0.0.0/0\"\n        via: \"192.0.2.1\"\n"
                                       "      - to: \"::/0\"\n        via: \"2001:db8::1\"\n    mtu: 1400\n"
                                       "    nameservers:\n      addresses:\n        - \"192.0.2.53\"\n"
                                       "  nic1:\n    match:\n      macaddress: \"52:54:00:00:00:02\"\n    dhcp4: true\n");
    bytes_writer_finish(&out);
    out = (struct bytes_writer){0};
    assert_int_equal(seed_files_image(&order, networks, &out, &err), 0);
    char *user = read_file(out.data, out.size, "user-data");
    assert_string_equal(user, "#cloud-config\n{}\n");
    free(user);
    bytes_writer_finish(&out);
    OBJECT_CLEAR(vm_order, &order);
    OBJECT_CLEAR(network, &network);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(files), cmocka_unit_test(what_cloud_init_is_told)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
