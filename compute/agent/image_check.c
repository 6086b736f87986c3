/* What of a foreign disk is refused before it is converted; see image_convert.h. Pure. */
#include <errno.h>
#include <jansson.h>
#include <string.h>

#include "compute/agent/image_convert.h"

#define QCOW2_HEADER_BYTES 72u
#define QCOW2_INCOMPATIBLE_DATA_FILE 4u /* QEMU's docs/interop/qcow2.txt: incompatible feature bit 2 */
#define VMDK_NO_PARENT 4294967295

static uint64_t big_endian(const uint8_t *at, unsigned size)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < size; i++)
        n = n << 8 | at[i];
    return n;
}

static int not_of(enum image_format format, struct error *err)
{
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the file is not %s: it does not begin like one; name the format that it has",
                     image_format_desc.names[format]);
}

static int qcow2_check(const uint8_t *h, size_t size, struct error *err)
{
    if (size < QCOW2_HEADER_BYTES || memcmp(h, "QFI\xfb", 4) != 0)
        return not_of(image_format_QCOW2, err);
    uint64_t version = big_endian(h + 4, 4);
    if (version != 2 && version != 3)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "it is qcow version %llu; 2 and 3 are read", (unsigned long long)version);
    if (big_endian(h + 8, 8) != 0)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                         "it has a backing file, so it is not the whole disk; make it one: qemu-img convert -O qcow2 it new");
    if (big_endian(h + 32, 4) != 0)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "it is encrypted; decrypt it first");
    if (version == 3 && size >= 80 && (big_endian(h + 72, 8) & QCOW2_INCOMPATIBLE_DATA_FILE) != 0)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                         "its data is in another file (external data file); make it one: qemu-img convert -O qcow2 it new");
    return 0;
}

int image_convert_check_header(enum image_format format, const uint8_t *header, size_t size, struct error *err)
{
    switch (format) {
    case image_format_QCOW2:
        return qcow2_check(header, size, err);
    case image_format_VMDK:
        if (size >= 21 && memcmp(header, "# Disk DescriptorFile", 21) == 0)
            return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                             "it only describes a disk that lies in other files; export it as one file (streamOptimized)");
        return size >= 4 && memcmp(header, "KDMV", 4) == 0 ? 0 : not_of(format, err);
    case image_format_VHDX:
        return size >= 8 && memcmp(header, "vhdxfile", 8) == 0 ? 0 : not_of(format, err);
    default:
        return error_set(err, -EINVAL, ERROR_INTERNAL, "%s is not converted", image_format_desc.names[format]);
    }
}

static int parts_check(const json_t *doc, struct error *err)
{
    const json_t *data = json_object_get(json_object_get(doc, "format-specific"), "data");
    const json_t *parent = json_object_get(data, "parent-cid"), *extents = json_object_get(data, "extents");
    if (json_object_get(doc, "backing-filename") != NULL || json_object_get(doc, "full-backing-filename") != NULL ||
        (parent != NULL && json_integer_value(parent) != VMDK_NO_PARENT))
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "it has a backing file, so it is not the whole disk");
    if (json_object_get(data, "data-file") != NULL)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "its data is in another file (external data file)");
    if (json_is_true(json_object_get(doc, "encrypted")) || json_object_get(data, "encrypt") != NULL)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "it is encrypted; decrypt it first");
    if (extents != NULL && json_array_size(extents) != 1)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "it lies in %zu files; export it as one file (streamOptimized)",
                         json_array_size(extents));
    if (json_is_true(json_object_get(data, "corrupt")))
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "it is marked as damaged; repair it: qemu-img check -r all");
    return 0;
}

int image_convert_check_info(enum image_format format, const char *text, size_t size, uint64_t *ret_size_bytes,
                             struct error *err)
{
    json_t *doc = size > 0 ? json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL) : NULL;
    const json_t *bytes = json_object_get(doc, "virtual-size");
    const char *found = json_string_value(json_object_get(doc, "format"));
    json_int_t n = json_integer_value(bytes);
    int r;
    if (!json_is_integer(bytes) || found == NULL || strcmp(found, image_format_desc.names[format]) != 0)
        r = error_set(err, -EBADMSG, ERROR_CHECKSUM, "qemu-img cannot say what the file is");
    else if ((r = parts_check(doc, err)) == 0 && (n <= 0 || (uint64_t)n > IMAGE_CONVERT_SIZE_BYTES_MAX))
        r = error_set(err, -EFBIG, ERROR_NOT_SUPPORTED, "its disk has %lld bytes; 1 to %llu are supported", (long long)n,
                      (unsigned long long)IMAGE_CONVERT_SIZE_BYTES_MAX);
    if (r == 0)
        *ret_size_bytes = (uint64_t)n;
    json_decref(doc);
    return r;
}
