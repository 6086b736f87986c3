/* Any bytes as any object in any mode: refused or read, and what was read encodes to something equal. */
#include "schema/objects.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    const struct object_desc *d = schema_objects[data[0] % schema_objects_count];
    enum object_mode mode = (enum object_mode)(data[1] % 4);
    void *a = xcalloc(1, d->size), *b = xcalloc(1, d->size);
    if (object_decode(d, (const char *)data + 2, size - 2, mode, a, NULL) == 0) {
        struct bytes_writer w = {0};
        object_encode(d, a, &w);
        ASSERT(object_decode(d, (const char *)w.data, w.size, OBJECT_STORED, b, NULL) == 0);
        ASSERT(object_equal(d, a, b));
        bytes_writer_finish(&w);
        object_clear(d, b);
    }
    object_clear(d, a);
    free(a);
    free(b);
    return 0;
}
