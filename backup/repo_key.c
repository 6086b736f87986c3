/* The header of a store and its keys: see repo_key.h. */
#include "backup/repo_key.h"

#include <ctype.h>
#include <errno.h>
#include <sodium.h>
#include <string.h>

#define MAGIC "DRVBSTOR"
#define FLAG_ENCRYPTED 1u
#define SLOT_BYTES (REPO_SLOT_NAME_BYTES + REPO_NONCE_BYTES + REPO_SEALED_KEY_BYTES)
#define KEY_PREFIX "drbk1"

STATIC_ASSERT(crypto_secretbox_NONCEBYTES == REPO_NONCE_BYTES, "nonce of a slot");
STATIC_ASSERT(crypto_secretbox_MACBYTES + CHUNK_KEY_BYTES == REPO_SEALED_KEY_BYTES, "sealed key of a slot");
STATIC_ASSERT(crypto_aead_xchacha20poly1305_ietf_NPUBBYTES + crypto_aead_xchacha20poly1305_ietf_ABYTES ==
                  REPO_SEAL_BYTES,
              "what sealing adds");

void repo_random(void *ret, size_t size)
{
    ASSERT(sodium_init() >= 0);
    randombytes_buf(ret, size);
}

void repo_keys_wipe(struct repo_keys *keys)
{
    sodium_memzero(keys, sizeof *keys);
}

static void keys_derive(const uint8_t master[CHUNK_KEY_BYTES], struct repo_keys *ret_keys)
{
    chunk_hash_derive("drover 2026-11 backup: names of chunks", master, ret_keys->names);
    chunk_hash_derive("drover 2026-11 backup: sealing of frames", master, ret_keys->seal);
    chunk_hash_derive("drover 2026-11 backup: signing of manifests", master, ret_keys->sign);
    ret_keys->present = true;
}

static void slot_fill(struct repo_slot *slot, const char *name, const uint8_t *master, const uint8_t *key)
{
    memset(slot, 0, sizeof *slot);
    memcpy(slot->name, name, strlen(name));
    repo_random(slot->nonce, sizeof slot->nonce);
    ASSERT(crypto_secretbox_easy(slot->sealed, master, CHUNK_KEY_BYTES, slot->nonce, key) == 0);
}

int repo_header_make(bool encrypted, uint32_t chunk_bytes, struct repo_header *ret_header,
                     uint8_t ret_key[CHUNK_KEY_BYTES], struct error *err)
{
    struct repo_header h = {.encrypted = encrypted, .chunk_bytes = chunk_bytes, .slot_count = 1};
    uint8_t master[CHUNK_KEY_BYTES];
    if (chunk_bytes < REPO_CHUNK_BYTES_MIN || chunk_bytes > REPO_CHUNK_BYTES_MAX ||
        (chunk_bytes & (chunk_bytes - 1)) != 0)
        return error_set_field(err, -EINVAL, ERROR_INVALID, "/chunk_bytes",
                               "chunks have a power of two of bytes, %d to %d", REPO_CHUNK_BYTES_MIN,
                               REPO_CHUNK_BYTES_MAX);
    repo_random(h.id, sizeof h.id);
    repo_random(master, sizeof master);
    if (encrypted) {
        repo_random(ret_key, CHUNK_KEY_BYTES);
        slot_fill(&h.slots[0], "recovery", master, ret_key);
    } else {
        memcpy(h.slots[0].name, "plain", 5);
        memcpy(h.slots[0].sealed, master, sizeof master);
    }
    sodium_memzero(master, sizeof master);
    *ret_header = h;
    return 0;
}

void repo_header_encode(const struct repo_header *header, struct bytes_writer *out)
{
    size_t from = out->size;
    bytes_put(out, MAGIC, 8);
    bytes_put_u32(out, REPO_VERSION);
    bytes_put_u32(out, header->encrypted ? FLAG_ENCRYPTED : 0);
    bytes_put(out, header->id, sizeof header->id);
    bytes_put_u32(out, header->chunk_bytes);
    bytes_put_u32(out, header->slot_count);
    for (uint32_t i = 0; i < header->slot_count; i++) {
        bytes_put(out, header->slots[i].name, REPO_SLOT_NAME_BYTES);
        bytes_put(out, header->slots[i].nonce, REPO_NONCE_BYTES);
        bytes_put(out, header->slots[i].sealed, REPO_SEALED_KEY_BYTES);
    }
    bytes_put_u32(out, bytes_crc32c(0, out->data + from, out->size - from));
}

static int damaged(struct error *err, const char *what)
{
    return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the header of the store (drover-store) is damaged: %s", what);
}

int repo_header_decode(const void *data, size_t size, struct repo_header *ret_header, struct error *err)
{
    struct repo_header h = {0};
    struct bytes_reader r = bytes_reader(data, size);
    const void *magic = bytes_get(&r, 8);
    if (magic == NULL || memcmp(magic, MAGIC, 8) != 0)
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "drover-store is not the header of a backup store");
    uint32_t version = bytes_get_u32(&r), flags = bytes_get_u32(&r);
    if (version != REPO_VERSION)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "the store has format %u; this program knows format %d",
                         version, REPO_VERSION);
    const void *id = bytes_get(&r, sizeof h.id);
    h.chunk_bytes = bytes_get_u32(&r);
    h.slot_count = bytes_get_u32(&r);
    if (r.bad || h.slot_count == 0 || h.slot_count > REPO_SLOTS_MAX ||
        bytes_left(&r) != h.slot_count * SLOT_BYTES + 4)
        return damaged(err, "its length is wrong");
    memcpy(h.id, id, sizeof h.id);
    for (uint32_t i = 0; i < h.slot_count; i++) {
        memcpy(h.slots[i].name, bytes_get(&r, REPO_SLOT_NAME_BYTES), REPO_SLOT_NAME_BYTES);
        memcpy(h.slots[i].nonce, bytes_get(&r, REPO_NONCE_BYTES), REPO_NONCE_BYTES);
        memcpy(h.slots[i].sealed, bytes_get(&r, REPO_SEALED_KEY_BYTES), REPO_SEALED_KEY_BYTES);
        if (memchr(h.slots[i].name, '\0', REPO_SLOT_NAME_BYTES) == NULL)
            return damaged(err, "the name of a key is too long");
    }
    if (bytes_get_u32(&r) != bytes_crc32c(0, data, size - 4))
        return damaged(err, "its checksum is wrong");
    if (flags & ~FLAG_ENCRYPTED)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED,
                         "the store has features (%x) that this program does not know", flags);
    if (h.chunk_bytes < REPO_CHUNK_BYTES_MIN || h.chunk_bytes > REPO_CHUNK_BYTES_MAX ||
        (h.chunk_bytes & (h.chunk_bytes - 1)) != 0)
        return damaged(err, "the size of its chunks is out of bounds");
    h.encrypted = flags & FLAG_ENCRYPTED;
    *ret_header = h;
    return 0;
}

static bool slot_open(const struct repo_slot *slot, const uint8_t *key, uint8_t ret_master[CHUNK_KEY_BYTES])
{
    return crypto_secretbox_open_easy(ret_master, slot->sealed, REPO_SEALED_KEY_BYTES, slot->nonce, key) == 0;
}

static int master_open(const struct repo_header *header, const uint8_t *key, uint8_t ret_master[CHUNK_KEY_BYTES],
                       struct error *err)
{
    if (!header->encrypted) {
        memcpy(ret_master, header->slots[0].sealed, CHUNK_KEY_BYTES);
        return 0;
    }
    for (uint32_t i = 0; key != NULL && i < header->slot_count; i++)
        if (slot_open(&header->slots[i], key, ret_master))
            return 0;
    return error_set(err, -EACCES, ERROR_FORBIDDEN,
                     key == NULL ? "the store is encrypted: a key is needed" : "the key does not open this store");
}

int repo_header_open(const struct repo_header *header, const uint8_t *key, struct repo_keys *ret_keys,
                     struct error *err)
{
    uint8_t master[CHUNK_KEY_BYTES];
    ASSERT(sodium_init() >= 0); /* picks the fast code of this processor */
    if (header->encrypted && key == NULL) {
        memset(ret_keys, 0, sizeof *ret_keys);
        return 0;
    }
    int code = master_open(header, key, master, err);
    if (code == 0)
        keys_derive(master, ret_keys);
    sodium_memzero(master, sizeof master);
    return code;
}

int repo_header_add_key(struct repo_header *header, const uint8_t *key, const char *name, const uint8_t *add,
                        struct error *err)
{
    uint8_t master[CHUNK_KEY_BYTES];
    if (!header->encrypted)
        return error_set(err, -EINVAL, ERROR_INVALID, "the store is not encrypted: it has no keys");
    if (strlen(name) == 0 || strlen(name) >= REPO_SLOT_NAME_BYTES)
        return error_set(err, -EINVAL, ERROR_INVALID, "the name of a key has 1 to %d bytes",
                         REPO_SLOT_NAME_BYTES - 1);
    for (uint32_t i = 0; i < header->slot_count; i++)
        if (strcmp(header->slots[i].name, name) == 0)
            return error_set(err, -EEXIST, ERROR_EXISTS, "the store has a key named %s", name);
    if (header->slot_count == REPO_SLOTS_MAX)
        return error_set(err, -E2BIG, ERROR_CONFLICT, "a store has %d keys at most: remove one", REPO_SLOTS_MAX);
    int code = master_open(header, key, master, err);
    if (code == 0)
        slot_fill(&header->slots[header->slot_count++], name, master, add);
    sodium_memzero(master, sizeof master);
    return code;
}

int repo_header_remove_key(struct repo_header *header, const char *name, struct error *err)
{
    for (uint32_t i = 0; header->encrypted && i < header->slot_count; i++) {
        if (strcmp(header->slots[i].name, name) != 0)
            continue;
        if (header->slot_count == 1)
            return error_set(err, -EBUSY, ERROR_IN_USE, "%s is the only key of the store", name);
        header->slots[i] = header->slots[--header->slot_count];
        return 0;
    }
    return error_set(err, -ENOENT, ERROR_NOT_FOUND, "the store has no key named %s", name);
}

/* ---- keys as text ---- */

static const char letters[] = "abcdefghijklmnopqrstuvwxyz234567";

/* The 32 bytes and two and a half of their checksum are 56 times five bits. */
static void key_bits(const uint8_t key[CHUNK_KEY_BYTES], uint8_t ret_five[56])
{
    uint8_t all[CHUNK_KEY_BYTES + 3];
    uint32_t crc = bytes_crc32c(0, key, CHUNK_KEY_BYTES);
    memcpy(all, key, CHUNK_KEY_BYTES);
    all[CHUNK_KEY_BYTES] = (uint8_t)crc;
    all[CHUNK_KEY_BYTES + 1] = (uint8_t)(crc >> 8);
    all[CHUNK_KEY_BYTES + 2] = (uint8_t)(crc >> 16);
    for (unsigned i = 0; i < 56; i++) {
        unsigned bit = i * 5, byte = bit / 8;
        unsigned window = (unsigned)all[byte] << 8 | (byte + 1 < sizeof all ? all[byte + 1] : 0);
        ret_five[i] = (uint8_t)(window >> (11 - bit % 8) & 31);
    }
    sodium_memzero(all, sizeof all);
}

const char *repo_key_text(const uint8_t key[CHUNK_KEY_BYTES], char *ret_text)
{
    uint8_t five[56];
    char *out = ret_text + strlen(KEY_PREFIX);
    key_bits(key, five);
    memcpy(ret_text, KEY_PREFIX, strlen(KEY_PREFIX));
    for (unsigned i = 0; i < sizeof five; i++) {
        if (i % 4 == 0)
            *out++ = '-';
        *out++ = letters[five[i]];
    }
    *out = '\0';
    return ret_text;
}

int repo_key_parse(const char *text, uint8_t ret_key[CHUNK_KEY_BYTES], struct error *err)
{
    uint8_t five[56], again[56], key[CHUNK_KEY_BYTES] = {0};
    char word[64] = "";
    size_t n = 0;
    for (const char *c = text; *c != '\0'; c++) {
        if (isspace((unsigned char)*c) || *c == '-')
            continue;
        if (n + 1 >= sizeof word)
            return error_set(err, -EINVAL, ERROR_INVALID,
                             "a key is \"" KEY_PREFIX "\" and 56 letters and digits: this is longer");
        word[n++] = (char)tolower((unsigned char)*c);
    }
    if (strncmp(word, KEY_PREFIX, strlen(KEY_PREFIX)) != 0 || n != strlen(KEY_PREFIX) + sizeof five)
        return error_set(err, -EINVAL, ERROR_INVALID, "a key is \"" KEY_PREFIX "\" and 56 letters and digits");
    for (unsigned i = 0; i < sizeof five; i++) {
        const char *at = strchr(letters, word[strlen(KEY_PREFIX) + i]);
        if (at == NULL)
            return error_set(err, -EINVAL, ERROR_INVALID, "a key has no '%c'", word[strlen(KEY_PREFIX) + i]);
        five[i] = (uint8_t)(at - letters);
        for (unsigned b = 0; b < 5; b++)
            if ((i * 5 + b) / 8 < sizeof key && five[i] >> (4 - b) & 1)
                key[(i * 5 + b) / 8] |= (uint8_t)(0x80 >> (i * 5 + b) % 8);
    }
    key_bits(key, again);
    if (memcmp(five, again, sizeof five) != 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "the key is mistyped: its checksum is wrong");
    memcpy(ret_key, key, sizeof key);
    sodium_memzero(key, sizeof key);
    return 0;
}

/* ---- sealing ---- */

void repo_seal(const uint8_t key[CHUNK_KEY_BYTES], const void *about, size_t about_size, const void *data,
               size_t size, uint8_t *ret)
{
    repo_random(ret, REPO_NONCE_BYTES);
    ASSERT(crypto_aead_xchacha20poly1305_ietf_encrypt(ret + REPO_NONCE_BYTES, NULL, data, size, about, about_size,
                                                      NULL, ret, key) == 0);
}

int repo_unseal(const uint8_t key[CHUNK_KEY_BYTES], const void *about, size_t about_size, const uint8_t *sealed,
                size_t size, void *ret)
{
    if (size < REPO_SEAL_BYTES ||
        crypto_aead_xchacha20poly1305_ietf_decrypt(ret, NULL, NULL, sealed + REPO_NONCE_BYTES,
                                                   size - REPO_NONCE_BYTES, about, about_size, sealed, key) != 0)
        return -EBADMSG;
    return 0;
}
