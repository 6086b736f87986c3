/* One codec for every object that leaves a process: a table of fields drives decode, encode, validate, compare,
 * patch, OpenAPI and SQL. The tables are expanded from the .def rows of schema; this file knows no object by name.
 *
 * Every object struct begins with struct object_head. Strings, lists and maps are owned by the object:
 * object_clear() releases them and accepts a zeroed or half-decoded object. Numbers are integers only, at most
 * 2^63-1, so that every replica and every JSON reader sees the same value. Any thread; no shared state. */
#ifndef COMMON_OBJECT_H
#define COMMON_OBJECT_H

#include "common/base.h"
#include "common/bytes.h"
#include "common/error.h"

#define OBJECT_FIELDS_MAX 64u
#define OBJECT_DEPTH_MAX 8u
#define OBJECT_INTEGER_MAX UINT64_C(9223372036854775807)

struct object_head {
    uint64_t present; /* bit i: field i of the table was given */
    uint64_t cleared; /* OBJECT_PATCH only, bit i: field i was given as null, "take it away" */
};

enum field_kind { KIND_STR, KIND_BOOL, KIND_U32, KIND_U64, KIND_ENUM, KIND_OBJ, KIND_LIST, KIND_STRS, KIND_MAP };

/* What a string must look like (KIND_STR). */
enum text_format {
    FORMAT_any,     /* UTF-8 without control characters */
    FORMAT_text,    /* UTF-8, newlines and tabs allowed */
    FORMAT_name,    /* lower-case letters, digits, '-' and '.'; begins and ends with a letter or digit */
    FORMAT_id,      /* UUID in lower-case hexadecimal, 36 characters */
    FORMAT_time,    /* RFC 3339 UTC with milliseconds, "2026-01-31T12:00:00.000Z" */
    FORMAT_sha256,  /* 64 lower-case hexadecimal digits */
    FORMAT_mac,     /* six hexadecimal pairs with ':', unicast */
    FORMAT_url,     /* http://, https:// or file:///... */
    FORMAT_path,    /* absolute path without ".." */
    FORMAT_address, /* host:port, [IPv6]:port */
    FORMAT_ip,      /* IPv4 or IPv6 address */
    FORMAT_cidr,    /* IPv4 or IPv6 address, '/', bits; nothing set behind the bits */
    FORMAT_COUNT
};

enum field_flag {
    REQUIRED = 1 << 0,  /* must be given at create */
    READ_ONLY = 1 << 1, /* set by the cluster; refused from users */
    IMMUTABLE = 1 << 2, /* may be given at create, refused in a patch */
    SECRET = 1 << 3,    /* never shown */
    OPEN = 1 << 4,      /* of an enum: a word that we do not know, of a server that may be newer, is the number of those that we do
                         * (<enum>_COUNT, "unknown"), and for whoever reads it to deal with. Elsewhere it spoils all of the answer */
};

enum object_mode {
    OBJECT_STORED,  /* our own bytes: every field allowed; unknown ones are refused */
    OBJECT_CREATE,  /* from a user: READ_ONLY refused, REQUIRED needed */
    OBJECT_PATCH,   /* from a user, RFC 7396 at the top level: READ_ONLY and IMMUTABLE refused, null takes away */
    OBJECT_LENIENT, /* an answer of a server that may be newer: unknown fields are passed over */
};

struct object_list {
    void *items; /* count structs of the row's object, side by side */
    size_t count;
};
struct string_list {
    char **items;
    size_t count;
};
struct string_pair {
    char *key, *value;
};
struct string_map { /* sorted by key */
    struct string_pair *pairs;
    size_t count;
};

#define FIELD_TYPE_STR(_) char *
#define FIELD_TYPE_BOOL(_) bool
#define FIELD_TYPE_U32(_) uint32_t
#define FIELD_TYPE_U64(_) uint64_t
#define FIELD_TYPE_ENUM(e) uint32_t
#define FIELD_TYPE_OBJ(o) struct o
#define FIELD_TYPE_LIST(o) struct object_list
#define FIELD_TYPE_STRS(_) struct string_list
#define FIELD_TYPE_MAP(_) struct string_map
#define FIELD_REF_STR(f) {.format = FORMAT_##f}
#define FIELD_REF_BOOL(_) {.object = NULL}
#define FIELD_REF_U32(_) {.object = NULL}
#define FIELD_REF_U64(_) {.object = NULL}
#define FIELD_REF_ENUM(e) {.enums = &e##_desc}
#define FIELD_REF_OBJ(o) {.object = &o##_desc}
#define FIELD_REF_LIST(o) {.object = &o##_desc}
#define FIELD_REF_STRS(f) {.format = FORMAT_##f}
#define FIELD_REF_MAP(_) {.object = NULL}

struct enum_desc {
    const char *name;
    const char *const *names;
    const char *const *docs;
    unsigned count;
};
struct object_desc;
struct field_desc {
    const char *name, *doc;
    unsigned tag; /* permanent number of the field, for durable formats and reviews */
    enum field_kind kind;
    unsigned flags;
    uint64_t min, max; /* of a number, of a string's bytes, of a list's items */
    size_t offset;
    union {
        const struct enum_desc *enums;
        const struct object_desc *object;
        enum text_format format;
    } ref;
};
struct object_desc {
    const char *name, *doc;
    size_t size;
    const struct field_desc *fields;
    unsigned n_fields;
};

/* Read one JSON object of @size bytes (RFC 8259; duplicate keys refused). On failure the object is zeroed and
 * @err names the field as a JSON pointer, the limit and the cure. -EBADMSG: not JSON; -EINVAL: a field is
 * unknown, missing, of a wrong type, out of bounds or not settable here. */
int object_decode(const struct object_desc *desc, const char *text, size_t size, enum object_mode mode, void *object,
                  struct error *err);
/* Canonical JSON: fields in the order of the table, absent ones left out, no white space. */
void object_encode(const struct object_desc *desc, const void *object, struct bytes_writer *out);
/* The same without SECRET fields, for answers. */
void object_encode_public(const struct object_desc *desc, const void *object, struct bytes_writer *out);
/* Bounds and formats of an object filled by code; the same checks as decode. */
int object_validate(const struct object_desc *desc, const void *object, enum object_mode mode, struct error *err);

void object_clear(const struct object_desc *desc, void *object);
/* @to must be zeroed or cleared before. */
void object_copy(const struct object_desc *desc, void *to, const void *from);
bool object_equal(const struct object_desc *desc, const void *a, const void *b);
/* Lay @patch over @object: fields present in it replace, fields cleared in it go away. */
void object_merge(const struct object_desc *desc, void *object, const void *patch);

/* The row of @name, or NULL. */
const struct field_desc *object_field(const struct object_desc *desc, const char *name);
bool object_has(const struct object_desc *desc, const void *object, const struct field_desc *field);
/* Set a text field (copied); NULL takes it away. The other kinds: set the member, then object_mark(). */
void object_set_text(const struct object_desc *desc, void *object, const char *name, const char *value);
void object_mark(const struct object_desc *desc, void *object, const char *name);
/* Append one zeroed item to a list field and return it. Valid until the next append. */
void *object_list_add(const struct object_desc *desc, void *object, const char *name);
/* "unknown" behind the last one. */
const char *enum_name(const struct enum_desc *e, uint32_t value);
bool string_list_has(const struct string_list *list, const char *text);
const char *string_map_get(const struct string_map *map, const char *key);
/* One field as text for tables and filters ("-" where absent); returns @buffer. */
const char *object_field_text(const struct object_desc *desc, const void *object, const struct field_desc *field,
                              char *buffer, size_t size);

/* Is @text of the format? On failure @ret_rule says in words what the format asks for. */
bool text_format_ok(enum text_format format, const char *text, const char **ret_rule);
const char *text_format_name(enum text_format format);

/* JSON Schema (2020-12) of the object for OpenAPI 3.1, without the definitions of the objects it refers to. */
void object_schema(const struct object_desc *desc, struct bytes_writer *out);
/* CREATE TABLE for PostgreSQL: one column for each field, jsonb for lists, maps and objects. */
void object_sql(const struct object_desc *desc, struct bytes_writer *out);
/* @text as a JSON string with its quotes. */
void json_put_string(struct bytes_writer *out, const char *text);

#endif
