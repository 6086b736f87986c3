/* BLAKE3 by the C files of Debian's package: see chunk_hash.h. */
#include "backup/chunk_hash.h"

#include <blake3.h>
#include <errno.h>
#include <string.h>

void chunk_hash_plain(const void *data, size_t size, struct chunk_hash *ret_hash)
{
    blake3_hasher h;
    blake3_hasher_init(&h);
    blake3_hasher_update(&h, data, size);
    blake3_hasher_finalize(&h, ret_hash->bytes, CHUNK_HASH_BYTES);
}

void chunk_hash_keyed(const uint8_t key[CHUNK_KEY_BYTES], const void *data, size_t size, struct chunk_hash *ret_hash)
{
    blake3_hasher h;
    blake3_hasher_init_keyed(&h, key);
    blake3_hasher_update(&h, data, size);
    blake3_hasher_finalize(&h, ret_hash->bytes, CHUNK_HASH_BYTES);
}

void chunk_hash_derive(const char *use, const uint8_t key[CHUNK_KEY_BYTES], uint8_t ret_key[CHUNK_KEY_BYTES])
{
    blake3_hasher h;
    blake3_hasher_init_derive_key(&h, use);
    blake3_hasher_update(&h, key, CHUNK_KEY_BYTES);
    blake3_hasher_finalize(&h, ret_key, CHUNK_KEY_BYTES);
}

bool chunk_hash_equal(const struct chunk_hash *a, const struct chunk_hash *b)
{
    return memcmp(a->bytes, b->bytes, CHUNK_HASH_BYTES) == 0;
}

bool chunk_hash_is_zero(const struct chunk_hash *hash)
{
    static const struct chunk_hash zero;
    return chunk_hash_equal(hash, &zero);
}

const char *chunk_hex_text(const void *bytes, size_t size, char *ret_text)
{
    static const char digits[] = "0123456789abcdef";
    const uint8_t *b = bytes;
    for (size_t i = 0; i < size; i++) {
        ret_text[2 * i] = digits[b[i] >> 4];
        ret_text[2 * i + 1] = digits[b[i] & 15];
    }
    ret_text[2 * size] = '\0';
    return ret_text;
}

static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int chunk_hex_parse(const char *text, size_t size, void *ret_bytes)
{
    uint8_t *b = ret_bytes;
    if (strlen(text) != 2 * size)
        return -EINVAL;
    for (size_t i = 0; i < 2 * size; i++)
        if (digit(text[i]) < 0)
            return -EINVAL;
    for (size_t i = 0; i < size; i++)
        b[i] = (uint8_t)(digit(text[2 * i]) << 4 | digit(text[2 * i + 1]));
    return 0;
}

const char *chunk_hash_text(const struct chunk_hash *hash, char *ret_text)
{
    return chunk_hex_text(hash->bytes, CHUNK_HASH_BYTES, ret_text);
}

int chunk_hash_parse(const char *text, struct chunk_hash *ret_hash)
{
    return chunk_hex_parse(text, CHUNK_HASH_BYTES, ret_hash->bytes);
}
