/* The keys of a store, and its header ("drover-store"), which holds them.
 *
 * One random master key; from it a key for each use by BLAKE3's derivation: names of chunks, sealing, signing of
 * manifests. In a store without encryption the header holds the master key as it is: names are keyed all the same, so
 * that a guest that chooses its blocks cannot steer what they are called. In an encrypted one the header holds it
 * sealed (XSalsa20-Poly1305, libsodium's secretbox) once for each slot: the recovery key, printed once at init, and
 * any further key that may open the store and can be taken away again without touching the data.
 *
 * A key as text: "drbk1-" and 52 letters and digits (base 32, RFC 4648 §6 in lower case) in groups of four, then four
 * that are a checksum. Spaces, dashes and upper case do not matter.
 *
 * What a sealed store hides: the content of disks and the definition of VMs. What it does not, so that a server
 * without the key can list, prune, collect and verify every stored byte: names and sizes of VMs and disks, times, and
 * which chunks are equal or zeroes.
 *
 * header  0 magic "DRVBSTOR" | 8 u32 version | 12 u32 flags (1 encrypted) | 16 id[16] | 32 u32 chunk bytes | 36 u32
 * slots then for each slot: name[16], ends with zero | nonce[24] | sealed master key[48] (not encrypted: one slot,
 * its name "plain", nonce zero, the key in the first 32 of the 48) last  u32 CRC32C of all before */
#ifndef BACKUP_REPO_KEY_H
#define BACKUP_REPO_KEY_H

#include "backup/chunk_hash.h"
#include "common/bytes.h"
#include "common/error.h"

enum {
    REPO_VERSION = 1,
    REPO_SLOTS_MAX = 8,
    REPO_SLOT_NAME_BYTES = 16,
    REPO_NONCE_BYTES = 24,
    REPO_SEALED_KEY_BYTES = 48,
    REPO_HEADER_BYTES_MAX = 4096,
    REPO_KEY_TEXT_BYTES = 96,
    REPO_CHUNK_BYTES_MIN = 64 << 10,
    REPO_CHUNK_BYTES_DEFAULT = 128 << 10,
    REPO_CHUNK_BYTES_MAX = 1 << 20,
    REPO_SEAL_BYTES = 40, /* what sealing adds: a nonce and a tag */
};

struct repo_slot {
    char name[REPO_SLOT_NAME_BYTES];
    uint8_t nonce[REPO_NONCE_BYTES];
    uint8_t sealed[REPO_SEALED_KEY_BYTES];
};

struct repo_header {
    uint8_t id[16]; /* of the store, random */
    bool encrypted;
    uint32_t chunk_bytes; /* power of two */
    uint32_t slot_count;
    struct repo_slot slots[REPO_SLOTS_MAX];
};

/* The keys in use. */
struct repo_keys {
    uint8_t names[CHUNK_KEY_BYTES]; /* of chunks */
    uint8_t seal[CHUNK_KEY_BYTES];  /* of frames and definitions */
    uint8_t sign[CHUNK_KEY_BYTES];  /* of manifests */
    bool present;                   /* false: an encrypted store without its key; listing, verify and prune work */
};

/* A new header with random keys. @encrypted: @ret_key is the recovery key, in the slot "recovery". */
int repo_header_make(bool encrypted, uint32_t chunk_bytes, struct repo_header *ret_header,
                     uint8_t ret_key[CHUNK_KEY_BYTES], struct error *err);
void repo_header_encode(const struct repo_header *header, struct bytes_writer *out);
/* -EBADMSG: damaged or no store; -ENOTSUP: of a newer version; in words. */
int repo_header_decode(const void *data, size_t size, struct repo_header *ret_header, struct error *err);
/* The keys, opened with @key (NULL: only of a store that is not encrypted; else present is false and 0 comes back).
 * -EACCES (FORBIDDEN) in words: no slot opens with it. */
int repo_header_open(const struct repo_header *header, const uint8_t *key, struct repo_keys *ret_keys,
                     struct error *err);
/* Let @add open it, too, under @name; @key opens it already. -EEXIST, -E2BIG, -EACCES in words. */
int repo_header_add_key(struct repo_header *header, const uint8_t *key, const char *name, const uint8_t *add,
                        struct error *err);
int repo_header_remove_key(struct repo_header *header, const char *name, struct error *err);

/* Into REPO_KEY_TEXT_BYTES; returns it. */
const char *repo_key_text(const uint8_t key[CHUNK_KEY_BYTES], char *ret_text);
/* -EINVAL in words: a mistyped one is told from a wrong one by its checksum. */
int repo_key_parse(const char *text, uint8_t ret_key[CHUNK_KEY_BYTES], struct error *err);

/* XChaCha20-Poly1305 with a random nonce before it; @ret holds @size + REPO_SEAL_BYTES. @about is bound, not stored.
 */
void repo_seal(const uint8_t key[CHUNK_KEY_BYTES], const void *about, size_t about_size, const void *data,
               size_t size, uint8_t *ret);
/* -EBADMSG: not sealed with this key, or changed. @ret holds @size - REPO_SEAL_BYTES. */
int repo_unseal(const uint8_t key[CHUNK_KEY_BYTES], const void *about, size_t about_size, const uint8_t *sealed,
                size_t size, void *ret);
void repo_random(void *ret, size_t size);
void repo_keys_wipe(struct repo_keys *keys);

#endif
