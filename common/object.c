/* The generic codec: see object.h. Parsing of JSON itself is jansson's. */
#include "common/object.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#define FIELD_PATH_MAX 128

static void *at(const void *object, const struct field_desc *f)
{
    return (char *)(uintptr_t)object + f->offset;
}
static void *item(const struct object_list *l, const struct object_desc *d, size_t i)
{
    return (char *)l->items + i * d->size;
}
static const struct object_head *head(const void *object)
{
    return object;
}
static bool given(const void *object, unsigned i)
{
    return head(object)->present >> i & 1;
}

/* ---- life of an object ---- */

static void clear_field(const struct field_desc *f, void *v)
{
    switch (f->kind) {
    case KIND_STR:
        free(*(char **)v);
        *(char **)v = NULL;
        break;
    case KIND_OBJ:
        object_clear(f->ref.object, v);
        break;
    case KIND_LIST: {
        struct object_list *l = v;
        for (size_t k = 0; k < l->count; k++)
            object_clear(f->ref.object, item(l, f->ref.object, k));
        free(l->items);
        *l = (struct object_list){0};
        break;
    }
    case KIND_STRS: {
        struct string_list *l = v;
        for (size_t k = 0; k < l->count; k++)
            free(l->items[k]);
        free(l->items);
        *l = (struct string_list){0};
        break;
    }
    case KIND_MAP: {
        struct string_map *m = v;
        for (size_t k = 0; k < m->count; k++) {
            free(m->pairs[k].key);
            free(m->pairs[k].value);
        }
        free(m->pairs);
        *m = (struct string_map){0};
        break;
    }
    case KIND_BOOL:
        *(bool *)v = false;
        break;
    case KIND_U32:
    case KIND_ENUM:
        *(uint32_t *)v = 0;
        break;
    case KIND_U64:
        *(uint64_t *)v = 0;
        break;
    }
}

void object_clear(const struct object_desc *desc, void *object)
{
    for (unsigned i = 0; i < desc->n_fields; i++)
        clear_field(&desc->fields[i], at(object, &desc->fields[i]));
    memset(object, 0, desc->size);
}

static void copy_field(const struct field_desc *f, void *to, const void *from)
{
    switch (f->kind) {
    case KIND_STR: {
        const char *s = *(char *const *)from;
        *(char **)to = s ? xstrdup(s) : NULL;
        break;
    }
    case KIND_OBJ:
        object_copy(f->ref.object, to, from);
        break;
    case KIND_LIST: {
        const struct object_list *l = from;
        struct object_list *m = to;
        m->count = l->count;
        m->items = xcalloc(l->count, f->ref.object->size);
        for (size_t k = 0; k < l->count; k++)
            object_copy(f->ref.object, item(m, f->ref.object, k), item(l, f->ref.object, k));
        break;
    }
    case KIND_STRS: {
        const struct string_list *l = from;
        struct string_list *m = to;
        m->count = l->count;
        m->items = xcalloc(l->count, sizeof *m->items);
        for (size_t k = 0; k < l->count; k++)
            m->items[k] = xstrdup(l->items[k]);
        break;
    }
    case KIND_MAP: {
        const struct string_map *l = from;
        struct string_map *m = to;
        m->count = l->count;
        m->pairs = xcalloc(l->count, sizeof *m->pairs);
        for (size_t k = 0; k < l->count; k++)
            m->pairs[k] = (struct string_pair){xstrdup(l->pairs[k].key), xstrdup(l->pairs[k].value)};
        break;
    }
    case KIND_BOOL:
        *(bool *)to = *(const bool *)from;
        break;
    case KIND_U32:
    case KIND_ENUM:
        *(uint32_t *)to = *(const uint32_t *)from;
        break;
    case KIND_U64:
        *(uint64_t *)to = *(const uint64_t *)from;
        break;
    }
}

void object_copy(const struct object_desc *desc, void *to, const void *from)
{
    struct object_head *h = to;
    memset(to, 0, desc->size);
    *h = *head(from);
    for (unsigned i = 0; i < desc->n_fields; i++)
        if (given(from, i))
            copy_field(&desc->fields[i], at(to, &desc->fields[i]), at(from, &desc->fields[i]));
}

void object_merge(const struct object_desc *desc, void *object, const void *patch)
{
    struct object_head *h = object;
    for (unsigned i = 0; i < desc->n_fields; i++) {
        const struct field_desc *f = &desc->fields[i];
        uint64_t bit = UINT64_C(1) << i;
        if (!((head(patch)->present | head(patch)->cleared) & bit))
            continue;
        clear_field(f, at(object, f));
        h->present &= ~bit;
        if (head(patch)->present & bit) {
            copy_field(f, at(object, f), at(patch, f));
            h->present |= bit;
        }
    }
}

static bool equal_field(const struct field_desc *f, const void *x, const void *y)
{
    switch (f->kind) {
    case KIND_STR:
        return strcmp(*(char *const *)x, *(char *const *)y) == 0;
    case KIND_BOOL:
        return *(const bool *)x == *(const bool *)y;
    case KIND_U32:
    case KIND_ENUM:
        return *(const uint32_t *)x == *(const uint32_t *)y;
    case KIND_U64:
        return *(const uint64_t *)x == *(const uint64_t *)y;
    case KIND_OBJ:
        return object_equal(f->ref.object, x, y);
    case KIND_LIST: {
        const struct object_list *l = x, *m = y;
        bool same = l->count == m->count;
        for (size_t k = 0; same && k < l->count; k++)
            same = object_equal(f->ref.object, item(l, f->ref.object, k), item(m, f->ref.object, k));
        return same;
    }
    case KIND_STRS: {
        const struct string_list *l = x, *m = y;
        bool same = l->count == m->count;
        for (size_t k = 0; same && k < l->count; k++)
            same = strcmp(l->items[k], m->items[k]) == 0;
        return same;
    }
    case KIND_MAP: {
        const struct string_map *l = x, *m = y;
        bool same = l->count == m->count;
        for (size_t k = 0; same && k < l->count; k++)
            same = strcmp(l->pairs[k].key, m->pairs[k].key) == 0 && strcmp(l->pairs[k].value, m->pairs[k].value) == 0;
        return same;
    }
    }
    return false;
}

bool object_equal(const struct object_desc *desc, const void *a, const void *b)
{
    if (head(a)->present != head(b)->present)
        return false;
    for (unsigned i = 0; i < desc->n_fields; i++)
        if (given(a, i) && !equal_field(&desc->fields[i], at(a, &desc->fields[i]), at(b, &desc->fields[i])))
            return false;
    return true;
}

/* ---- small access ---- */

const struct field_desc *object_field(const struct object_desc *desc, const char *name)
{
    for (unsigned i = 0; i < desc->n_fields; i++)
        if (strcmp(desc->fields[i].name, name) == 0)
            return &desc->fields[i];
    return NULL;
}

bool object_has(const struct object_desc *desc, const void *object, const struct field_desc *field)
{
    return given(object, (unsigned)(field - desc->fields));
}

static const struct field_desc *must_find(const struct object_desc *desc, const char *name)
{
    const struct field_desc *f = object_field(desc, name);
    ASSERT(f != NULL);
    return f;
}

void object_mark(const struct object_desc *desc, void *object, const char *name)
{
    ((struct object_head *)object)->present |= UINT64_C(1) << (must_find(desc, name) - desc->fields);
}

void object_set_text(const struct object_desc *desc, void *object, const char *name, const char *value)
{
    const struct field_desc *f = must_find(desc, name);
    struct object_head *h = object;
    char **slot = at(object, f);
    ASSERT(f->kind == KIND_STR);
    char *copy = value ? xstrdup(value) : NULL; /* before the free: value may be the old text */
    free(*slot);
    *slot = copy;
    if (value != NULL)
        h->present |= UINT64_C(1) << (f - desc->fields);
    else
        h->present &= ~(UINT64_C(1) << (f - desc->fields));
}

void *object_list_add(const struct object_desc *desc, void *object, const char *name)
{
    const struct field_desc *f = must_find(desc, name);
    struct object_list *l = at(object, f);
    ASSERT(f->kind == KIND_LIST);
    l->items = xrealloc(l->items, (l->count + 1) * f->ref.object->size);
    memset(item(l, f->ref.object, l->count), 0, f->ref.object->size);
    object_mark(desc, object, name);
    return item(l, f->ref.object, l->count++);
}

const char *enum_name(const struct enum_desc *e, uint32_t value)
{
    return value < e->count ? e->names[value] : "unknown";
}

bool string_list_has(const struct string_list *list, const char *text)
{
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->items[i], text) == 0)
            return true;
    return false;
}

const char *string_map_get(const struct string_map *map, const char *key)
{
    for (size_t k = 0; k < map->count; k++)
        if (strcmp(map->pairs[k].key, key) == 0)
            return map->pairs[k].value;
    return NULL;
}

const char *object_field_text(const struct object_desc *desc, const void *object, const struct field_desc *f,
                              char *buffer, size_t size)
{
    const void *v = at(object, f);
    if (!object_has(desc, object, f)) {
        snprintf(buffer, size, "-");
        return buffer;
    }
    switch (f->kind) {
    case KIND_STR:
        snprintf(buffer, size, "%s", *(char *const *)v);
        break;
    case KIND_BOOL:
        snprintf(buffer, size, "%s", *(const bool *)v ? "true" : "false");
        break;
    case KIND_U32:
        snprintf(buffer, size, "%" PRIu32, *(const uint32_t *)v);
        break;
    case KIND_U64:
        snprintf(buffer, size, "%" PRIu64, *(const uint64_t *)v);
        break;
    case KIND_ENUM:
        snprintf(buffer, size, "%s", enum_name(f->ref.enums, *(const uint32_t *)v));
        break;
    case KIND_OBJ:
    case KIND_LIST:
    case KIND_STRS:
    case KIND_MAP: {
        size_t count = f->kind == KIND_LIST   ? ((const struct object_list *)v)->count
                       : f->kind == KIND_STRS ? ((const struct string_list *)v)->count
                       : f->kind == KIND_MAP  ? ((const struct string_map *)v)->count
                                              : 1;
        snprintf(buffer, size, "%zu", count);
        break;
    }
    }
    return buffer;
}

/* ---- encode ---- */

void json_put_string(struct bytes_writer *out, const char *text)
{
    bytes_put_u8(out, '"');
    const char *run = text;
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        bytes_put(out, run, (size_t)(text - run));
        run = text + 1;
        if (c == '"' || c == '\\')
            bytes_put(out, (char[]){'\\', (char)c}, 2);
        else if (c == '\n')
            bytes_put(out, "\\n", 2);
        else if (c == '\t')
            bytes_put(out, "\\t", 2);
        else
            bytes_put_format(out, "\\u%04x", c);
    }
    bytes_put(out, run, (size_t)(text - run));
    bytes_put_u8(out, '"');
}

static void put_number(struct bytes_writer *out, uint64_t v)
{
    char digits[24], *p = digits + sizeof digits;
    do
        *--p = (char)('0' + v % 10);
    while ((v /= 10) != 0);
    bytes_put(out, p, (size_t)(digits + sizeof digits - p));
}

static void encode_object(const struct object_desc *desc, const void *object, bool with_secrets, struct bytes_writer *out);

static void encode_field(const struct field_desc *f, const void *v, bool with_secrets, struct bytes_writer *out)
{
    switch (f->kind) {
    case KIND_STR:
        json_put_string(out, *(char *const *)v);
        break;
    case KIND_BOOL:
        bytes_put_text(out, *(const bool *)v ? "true" : "false");
        break;
    case KIND_U32:
        put_number(out, *(const uint32_t *)v);
        break;
    case KIND_U64:
        put_number(out, *(const uint64_t *)v);
        break;
    case KIND_ENUM:
        ASSERT(*(const uint32_t *)v < f->ref.enums->count || ((f->flags & OPEN) && *(const uint32_t *)v == f->ref.enums->count));
        json_put_string(out, enum_name(f->ref.enums, *(const uint32_t *)v));
        break;
    case KIND_OBJ:
        encode_object(f->ref.object, v, with_secrets, out);
        break;
    case KIND_LIST: {
        const struct object_list *l = v;
        bytes_put_u8(out, '[');
        for (size_t k = 0; k < l->count; k++) {
            if (k > 0)
                bytes_put_u8(out, ',');
            encode_object(f->ref.object, item(l, f->ref.object, k), with_secrets, out);
        }
        bytes_put_u8(out, ']');
        break;
    }
    case KIND_STRS: {
        const struct string_list *l = v;
        bytes_put_u8(out, '[');
        for (size_t k = 0; k < l->count; k++) {
            if (k > 0)
                bytes_put_u8(out, ',');
            json_put_string(out, l->items[k]);
        }
        bytes_put_u8(out, ']');
        break;
    }
    case KIND_MAP: {
        const struct string_map *m = v;
        bytes_put_u8(out, '{');
        for (size_t k = 0; k < m->count; k++) {
            if (k > 0)
                bytes_put_u8(out, ',');
            json_put_string(out, m->pairs[k].key);
            bytes_put_u8(out, ':');
            json_put_string(out, m->pairs[k].value);
        }
        bytes_put_u8(out, '}');
        break;
    }
    }
}

static void encode_object(const struct object_desc *desc, const void *object, bool with_secrets, struct bytes_writer *out)
{
    bool first = true;
    bytes_put_u8(out, '{');
    for (unsigned i = 0; i < desc->n_fields; i++) {
        const struct field_desc *f = &desc->fields[i];
        if (!given(object, i) || ((f->flags & SECRET) && !with_secrets))
            continue;
        if (!first)
            bytes_put_u8(out, ',');
        first = false;
        bytes_put_u8(out, '"');
        bytes_put_text(out, f->name);
        bytes_put(out, "\":", 2);
        encode_field(f, at(object, f), with_secrets, out);
    }
    bytes_put_u8(out, '}');
}

void object_encode(const struct object_desc *desc, const void *object, struct bytes_writer *out)
{
    encode_object(desc, object, true, out);
}

void object_encode_public(const struct object_desc *desc, const void *object, struct bytes_writer *out)
{
    encode_object(desc, object, false, out);
}

/* ---- decode and validate ---- */

/* Where a value stands. Only its text, in an error, costs anything: every field of every object has one. */
struct path {
    const struct path *up; /* NULL: the object itself, "" */
    const char *name;      /* NULL: an element of a list */
    size_t index;
};
#define PATH_TEXT(p) path_text(p, (char[FIELD_PATH_MAX]){""})

static size_t path_put(const struct path *p, char *text)
{
    size_t n = p->up != NULL ? path_put(p->up, text) : 0;
    if (p->up == NULL || n >= FIELD_PATH_MAX)
        return n;
    int more = p->name != NULL ? snprintf(text + n, FIELD_PATH_MAX - n, "/%s", p->name)
                               : snprintf(text + n, FIELD_PATH_MAX - n, "/%zu", p->index);
    return n + (size_t)more;
}

static const char *path_text(const struct path *p, char text[FIELD_PATH_MAX])
{
    if (path_put(p, text) >= FIELD_PATH_MAX)
        memcpy(text + FIELD_PATH_MAX - 4, "...", 4);
    for (char *c = text; *c != '\0'; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    return text;
}

static struct path path_add(const struct path *base, const char *name)
{
    return (struct path){base, name, 0};
}

static struct path path_index(const struct path *base, size_t i)
{
    return (struct path){base, NULL, i};
}

static int check_text(const struct field_desc *f, const char *s, size_t n, const struct path *p, struct error *err)
{
    const char *rule;
    if (n < f->min)
        return error_set_field(err, -EINVAL, ERROR_INVALID, PATH_TEXT(p), "is %zu bytes long, at least %" PRIu64 " are needed", n,
                               f->min);
    if (n > f->max)
        return error_set_field(err, -EINVAL, ERROR_INVALID, PATH_TEXT(p), "is %zu bytes long, at most %" PRIu64 " are allowed", n,
                               f->max);
    if (!text_format_ok(f->ref.format, s, &rule))
        return error_set_field(err, -EINVAL, ERROR_INVALID, PATH_TEXT(p), "must be %s", rule);
    return 0;
}

static int check_number(const struct field_desc *f, uint64_t v, const struct path *p, struct error *err)
{
    if (v < f->min || v > f->max)
        return error_set_field(err, -EINVAL, ERROR_INVALID, PATH_TEXT(p), "is %" PRIu64 ", it must be from %" PRIu64 " to %" PRIu64,
                               v, f->min, f->max);
    return 0;
}

static int check_count(const struct field_desc *f, size_t n, const struct path *p, struct error *err)
{
    if (n < f->min || n > f->max)
        return error_set_field(err, -EINVAL, ERROR_INVALID, PATH_TEXT(p),
                               "has %zu items, it must have from %" PRIu64 " to %" PRIu64, n, f->min, f->max);
    return 0;
}

static const char *json_kind_name(const json_t *j)
{
    switch (json_typeof(j)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number with a fraction";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "unknown";
}

static int wrong_type(const json_t *j, const char *want, const struct path *p, struct error *err)
{
    return error_set_field(err, -EINVAL, ERROR_INVALID, PATH_TEXT(p), "is %s, it must be %s", json_kind_name(j), want);
}

static int read_object(const struct object_desc *desc, const json_t *j, enum object_mode mode, unsigned depth,
                       const struct path *p, void *object, struct error *err);

static int read_text(const struct field_desc *f, const json_t *j, const struct path *p, char **ret, struct error *err)
{
    if (!json_is_string(j))
        return wrong_type(j, "a string", p, err);
    const char *s = json_string_value(j);
    int rc = check_text(f, s, json_string_length(j), p, err);
    if (rc == 0)
        *ret = xstrdup(s);
    return rc;
}

static int read_enum(const struct field_desc *f, const json_t *j, enum object_mode mode, const struct path *p, uint32_t *ret,
                     struct error *err)
{
    const struct enum_desc *e = f->ref.enums;
    char words[256] = "";
    if (!json_is_string(j))
        return wrong_type(j, "a string", p, err);
    for (unsigned i = 0; i < e->count; i++)
        if (strcmp(e->names[i], json_string_value(j)) == 0) {
            *ret = i;
            return 0;
        }
    if ((f->flags & OPEN) && mode == OBJECT_LENIENT) {
        *ret = e->count;
        return 0;
    }
    for (unsigned i = 0, n = 0; i < e->count && n < sizeof words; i++)
        n += (unsigned)snprintf(words + n, sizeof words - n, "%s%s", i ? ", " : "", e->names[i]);
    return error_set_field(err, -EINVAL, ERROR_INVALID, PATH_TEXT(p), "must be one of: %s", words);
}

static int read_list(const struct field_desc *f, const json_t *j, enum object_mode mode, unsigned depth, const struct path *p,
                     struct object_list *l, struct error *err)
{
    if (!json_is_array(j))
        return wrong_type(j, "a list", p, err);
    size_t n = json_array_size(j);
    int rc = check_count(f, n, p, err);
    if (rc < 0)
        return rc;
    l->items = xcalloc(n, f->ref.object->size);
    for (size_t k = 0; k < n; k++) {
        struct path q = path_index(p, k);
        l->count = k + 1;
        rc = read_object(f->ref.object, json_array_get(j, k), mode, depth + 1, &q, item(l, f->ref.object, k), err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int read_strings(const struct field_desc *f, const json_t *j, const struct path *p, struct string_list *l,
                        struct error *err)
{
    static const uint64_t text_bytes_max = 256;
    if (!json_is_array(j))
        return wrong_type(j, "a list of strings", p, err);
    size_t n = json_array_size(j);
    int rc = check_count(f, n, p, err);
    if (rc < 0)
        return rc;
    struct field_desc one = {.kind = KIND_STR, .min = 0, .max = text_bytes_max, .ref.format = f->ref.format};
    l->items = xcalloc(n, sizeof *l->items);
    for (size_t k = 0; k < n; k++) {
        struct path q = path_index(p, k);
        rc = read_text(&one, json_array_get(j, k), &q, &l->items[k], err);
        if (rc < 0)
            return rc;
        l->count = k + 1;
    }
    return 0;
}

static int compare_pairs(const void *a, const void *b)
{
    return strcmp(((const struct string_pair *)a)->key, ((const struct string_pair *)b)->key);
}

/* Labels: keys like names, with '/' and '_' besides; values short text. */
static int read_map(const struct field_desc *f, const json_t *j, const struct path *p, struct string_map *m, struct error *err)
{
    const char *key;
    json_t *value;
    if (!json_is_object(j))
        return wrong_type(j, "an object of strings", p, err);
    int rc = check_count(f, json_object_size(j), p, err);
    if (rc < 0)
        return rc;
    m->pairs = xcalloc(json_object_size(j), sizeof *m->pairs);
    json_object_foreach((json_t *)(uintptr_t)j, key, value)
    {
        struct field_desc one = {.kind = KIND_STR, .min = 0, .max = 255, .ref.format = FORMAT_any};
        struct path q = path_add(p, key);
        size_t n = strlen(key);
        if (n == 0 || n > 63 || strspn(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./") != n)
            return error_set_field(err, -EINVAL, ERROR_INVALID, PATH_TEXT(&q),
                                   "a key must be 1 to 63 letters, digits or any of - _ . /");
        char *text = NULL;
        rc = read_text(&one, value, &q, &text, err);
        if (rc < 0)
            return rc;
        m->pairs[m->count++] = (struct string_pair){xstrdup(key), text};
    }
    qsort(m->pairs, m->count, sizeof *m->pairs, compare_pairs);
    return 0;
}

static int read_value(const struct field_desc *f, const json_t *j, enum object_mode mode, unsigned depth,
                      const struct path *p, void *v, struct error *err)
{
    switch (f->kind) {
    case KIND_STR:
        return read_text(f, j, p, v, err);
    case KIND_BOOL:
        if (!json_is_boolean(j))
            return wrong_type(j, "true or false", p, err);
        *(bool *)v = json_is_true(j);
        return 0;
    case KIND_U32:
    case KIND_U64: {
        if (!json_is_integer(j))
            return wrong_type(j, "an integer", p, err);
        if (json_integer_value(j) < 0)
            return error_set_field(err, -EINVAL, ERROR_INVALID, PATH_TEXT(p), "is negative, it must be from %" PRIu64 " to %" PRIu64,
                                   f->min, f->max);
        uint64_t n = (uint64_t)json_integer_value(j);
        int rc = check_number(f, n, p, err);
        if (rc < 0)
            return rc;
        if (f->kind == KIND_U32)
            *(uint32_t *)v = (uint32_t)n;
        else
            *(uint64_t *)v = n;
        return 0;
    }
    case KIND_ENUM:
        return read_enum(f, j, mode, p, v, err);
    case KIND_OBJ:
        return read_object(f->ref.object, j, mode, depth + 1, p, v, err);
    case KIND_LIST:
        return read_list(f, j, mode, depth, p, v, err);
    case KIND_STRS:
        return read_strings(f, j, p, v, err);
    case KIND_MAP:
        return read_map(f, j, p, v, err);
    }
    return -EINVAL;
}

static int check_settable(const struct field_desc *f, enum object_mode mode, unsigned depth, const struct path *p,
                          struct error *err)
{
    if ((mode == OBJECT_CREATE || mode == OBJECT_PATCH) && (f->flags & READ_ONLY))
        return error_set_field(err, -EINVAL, ERROR_INVALID, PATH_TEXT(p), "is set by the cluster; leave it out");
    if (mode == OBJECT_PATCH && depth == 0 && (f->flags & IMMUTABLE))
        return error_set_field(err, -EINVAL, ERROR_INVALID, PATH_TEXT(p), "cannot be changed after create; leave it out");
    return 0;
}

static int unknown_field(const struct object_desc *desc, const char *key, const struct path *p, struct error *err)
{
    char names[300] = "";
    size_t n = 0;
    for (unsigned i = 0; i < desc->n_fields && n < sizeof names; i++)
        if (!(desc->fields[i].flags & READ_ONLY))
            n += (size_t)snprintf(names + n, sizeof names - n, "%s%s", n ? ", " : "", desc->fields[i].name);
    struct path q = path_add(p, key);
    return error_set_field(err, -EINVAL, ERROR_UNKNOWN_FIELD, PATH_TEXT(&q), "is not a field of %s; its fields are: %s", desc->name,
                           names);
}

static int check_required(const struct object_desc *desc, const void *object, enum object_mode mode, unsigned depth,
                          const struct path *p, struct error *err)
{
    if (mode != OBJECT_CREATE && !(mode == OBJECT_PATCH && depth > 0))
        return 0;
    for (unsigned i = 0; i < desc->n_fields; i++)
        if ((desc->fields[i].flags & REQUIRED) && !given(object, i)) {
            struct path q = path_add(p, desc->fields[i].name);
            return error_set_field(err, -EINVAL, ERROR_INVALID, PATH_TEXT(&q), "is missing: %s", desc->fields[i].doc);
        }
    return 0;
}

static int read_object(const struct object_desc *desc, const json_t *j, enum object_mode mode, unsigned depth,
                       const struct path *p, void *object, struct error *err)
{
    struct object_head *h = object;
    const char *key;
    json_t *value;
    ASSERT(desc->n_fields <= OBJECT_FIELDS_MAX && depth <= OBJECT_DEPTH_MAX);
    if (!json_is_object(j))
        return wrong_type(j, "an object", p, err);
    json_object_foreach((json_t *)(uintptr_t)j, key, value)
    {
        const struct field_desc *f = object_field(desc, key);
        if (f == NULL) {
            if (mode == OBJECT_LENIENT)
                continue;
            return unknown_field(desc, key, p, err);
        }
        struct path q = path_add(p, key);
        uint64_t bit = UINT64_C(1) << (f - desc->fields);
        int rc = check_settable(f, mode, depth, &q, err);
        if (rc < 0)
            return rc;
        if (json_is_null(value) && mode == OBJECT_PATCH && depth == 0) {
            if (f->flags & REQUIRED)
                return error_set_field(err, -EINVAL, ERROR_INVALID, PATH_TEXT(&q), "is needed and cannot be taken away");
            h->cleared |= bit;
            continue;
        }
        h->present |= bit; /* before the value: a half-read value is released by object_clear */
        rc = read_value(f, value, mode, depth, &q, at(object, f), err);
        if (rc < 0)
            return rc;
    }
    return check_required(desc, object, mode, depth, p, err);
}

int object_decode(const struct object_desc *desc, const char *text, size_t size, enum object_mode mode, void *object,
                  struct error *err)
{
    json_error_t je;
    struct path root = {0};
    memset(object, 0, desc->size);
    json_t *j = json_loadb(text, size, JSON_REJECT_DUPLICATES, &je);
    if (j == NULL) {
        error_set(err, -EBADMSG, ERROR_MALFORMED, "the body is not a well-formed JSON object: %s (line %d, column %d)", je.text,
                  je.line, je.column);
        return -EBADMSG;
    }
    int rc = read_object(desc, j, mode, 0, &root, object, err);
    json_decref(j);
    if (rc < 0)
        object_clear(desc, object);
    return rc;
}

static int validate_object(const struct object_desc *desc, const void *object, enum object_mode mode, unsigned depth,
                           const struct path *p, struct error *err)
{
    for (unsigned i = 0; i < desc->n_fields; i++) {
        const struct field_desc *f = &desc->fields[i];
        const void *v = at(object, f);
        int rc = 0;
        if (!given(object, i))
            continue;
        struct path q = path_add(p, f->name);
        rc = check_settable(f, mode, depth, &q, err);
        if (rc == 0 && f->kind == KIND_STR)
            rc = check_text(f, *(char *const *)v, strlen(*(char *const *)v), &q, err);
        else if (rc == 0 && f->kind == KIND_U32)
            rc = check_number(f, *(const uint32_t *)v, &q, err);
        else if (rc == 0 && f->kind == KIND_U64)
            rc = check_number(f, *(const uint64_t *)v, &q, err);
        else if (rc == 0 && f->kind == KIND_OBJ)
            rc = validate_object(f->ref.object, v, mode, depth + 1, &q, err);
        else if (rc == 0 && f->kind == KIND_LIST) {
            const struct object_list *l = v;
            rc = check_count(f, l->count, &q, err);
            for (size_t k = 0; rc == 0 && k < l->count; k++) {
                struct path r = path_index(&q, k);
                rc = validate_object(f->ref.object, item(l, f->ref.object, k), mode, depth + 1, &r, err);
            }
        }
        if (rc < 0)
            return rc;
    }
    return check_required(desc, object, mode, depth, p, err);
}

int object_validate(const struct object_desc *desc, const void *object, enum object_mode mode, struct error *err)
{
    struct path root = {0};
    return validate_object(desc, object, mode, 0, &root, err);
}

/* ---- descriptions ---- */

static void put_bounds(struct bytes_writer *out, const struct field_desc *f, const char *min_name, const char *max_name)
{
    bytes_put_format(out, ",\"%s\":%" PRIu64 ",\"%s\":%" PRIu64, min_name, f->min, max_name, f->max);
}

static void schema_field(const struct field_desc *f, struct bytes_writer *out)
{
    switch (f->kind) {
    case KIND_STR:
        bytes_put_text(out, "{\"type\":\"string\"");
        put_bounds(out, f, "minLength", "maxLength");
        if (f->ref.format == FORMAT_time)
            bytes_put_text(out, ",\"format\":\"date-time\"");
        else if (f->ref.format == FORMAT_id)
            bytes_put_text(out, ",\"format\":\"uuid\"");
        else if (f->ref.format == FORMAT_sha256)
            bytes_put_text(out, ",\"pattern\":\"^[0-9a-f]{64}$\"");
        else if (f->ref.format == FORMAT_name)
            bytes_put_text(out, ",\"pattern\":\"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$\"");
        break;
    case KIND_BOOL:
        bytes_put_text(out, "{\"type\":\"boolean\"");
        break;
    case KIND_U32:
    case KIND_U64:
        bytes_put_text(out, "{\"type\":\"integer\"");
        put_bounds(out, f, "minimum", "maximum");
        break;
    case KIND_ENUM:
        bytes_put_text(out, "{\"type\":\"string\",\"enum\":[");
        for (unsigned k = 0; k < f->ref.enums->count; k++) {
            bytes_put_text(out, k ? "," : "");
            json_put_string(out, f->ref.enums->names[k]);
        }
        bytes_put_text(out, "]");
        break;
    case KIND_OBJ:
        bytes_put_format(out, "{\"allOf\":[{\"$ref\":\"#/components/schemas/%s\"}]", f->ref.object->name);
        break;
    case KIND_LIST:
        bytes_put_format(out, "{\"type\":\"array\",\"items\":{\"$ref\":\"#/components/schemas/%s\"}", f->ref.object->name);
        put_bounds(out, f, "minItems", "maxItems");
        break;
    case KIND_STRS:
        bytes_put_text(out, "{\"type\":\"array\",\"items\":{\"type\":\"string\"}");
        put_bounds(out, f, "minItems", "maxItems");
        break;
    case KIND_MAP:
        bytes_put_text(out, "{\"type\":\"object\",\"additionalProperties\":{\"type\":\"string\"}");
        put_bounds(out, f, "minProperties", "maxProperties");
        break;
    }
    bytes_put_text(out, ",\"description\":");
    json_put_string(out, f->doc);
    if (f->flags & READ_ONLY)
        bytes_put_text(out, ",\"readOnly\":true");
    if (f->flags & SECRET)
        bytes_put_text(out, ",\"writeOnly\":true");
    bytes_put_text(out, "}");
}

void object_schema(const struct object_desc *desc, struct bytes_writer *out)
{
    bool first = true;
    bytes_put_text(out, "{\"type\":\"object\",\"description\":");
    json_put_string(out, desc->doc);
    bytes_put_text(out, ",\"additionalProperties\":false,\"properties\":{");
    for (unsigned i = 0; i < desc->n_fields; i++) {
        bytes_put_text(out, i ? "," : "");
        json_put_string(out, desc->fields[i].name);
        bytes_put_text(out, ":");
        schema_field(&desc->fields[i], out);
    }
    bytes_put_text(out, "}");
    for (unsigned i = 0; i < desc->n_fields; i++)
        if (desc->fields[i].flags & REQUIRED) {
            bytes_put_text(out, first ? ",\"required\":[" : ",");
            json_put_string(out, desc->fields[i].name);
            first = false;
        }
    bytes_put_text(out, first ? "}" : "]}");
}

void object_sql(const struct object_desc *desc, struct bytes_writer *out)
{
    static const char *const types[] = {[KIND_STR] = "text",   [KIND_BOOL] = "boolean", [KIND_U32] = "bigint",
                                        [KIND_U64] = "bigint", [KIND_ENUM] = "text",    [KIND_OBJ] = "jsonb",
                                        [KIND_LIST] = "jsonb", [KIND_STRS] = "jsonb",   [KIND_MAP] = "jsonb"};
    bytes_put_format(out, "CREATE TABLE %s (", desc->name);
    for (unsigned i = 0; i < desc->n_fields; i++)
        bytes_put_format(out, "%s\n    \"%s\" %s", i ? "," : "", desc->fields[i].name, types[desc->fields[i].kind]);
    bytes_put_text(out, "\n);\n");
}
