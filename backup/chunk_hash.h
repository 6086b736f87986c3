/* BLAKE3, as the names of chunks (keyed) and as the checksum of what is stored (plain): 32 bytes each. The C and
 * assembler files are Debian's (package librust-blake3-dev). Pure; any thread. */
#ifndef BACKUP_CHUNK_HASH_H
#define BACKUP_CHUNK_HASH_H

#include "common/base.h"

enum { CHUNK_HASH_BYTES = 32, CHUNK_HASH_TEXT_BYTES = 65, CHUNK_KEY_BYTES = 32 };

struct chunk_hash {
    uint8_t bytes[CHUNK_HASH_BYTES];
};

void chunk_hash_plain(const void *data, size_t size, struct chunk_hash *ret_hash);
void chunk_hash_keyed(const uint8_t key[CHUNK_KEY_BYTES], const void *data, size_t size, struct chunk_hash *ret_hash);
/* A key of its own for each @use (a fixed sentence, BLAKE3's context string). */
void chunk_hash_derive(const char *use, const uint8_t key[CHUNK_KEY_BYTES], uint8_t ret_key[CHUNK_KEY_BYTES]);
bool chunk_hash_equal(const struct chunk_hash *a, const struct chunk_hash *b);
bool chunk_hash_is_zero(const struct chunk_hash *hash);
/* Lower-case hexadecimal into CHUNK_HASH_TEXT_BYTES; returns it. */
const char *chunk_hash_text(const struct chunk_hash *hash, char *ret_text);
/* -EINVAL unless 64 lower-case hexadecimal digits and the end. */
int chunk_hash_parse(const char *text, struct chunk_hash *ret_hash);
/* @size bytes as 2 * @size digits and a terminator; returns @ret_text. And back: -EINVAL. */
const char *chunk_hex_text(const void *bytes, size_t size, char *ret_text);
int chunk_hex_parse(const char *text, size_t size, void *ret_bytes);

#endif
