/* Options to JSON by the tables of the schema. */
#include "cli/body.h"

#include <errno.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/output.h"
#include "common/file.h"

#define FILE_CHUNK_BYTES (1 << 20)
#define VALUE_BYTES_MAX 4096
#define PAIRS_HELP " Here the others stay as they are; KEY= takes one away, none all."
#define LIST_HELP " What is there and not named goes; that is asked first."

const char *body_option_name(const struct field_desc *f, char *buffer, size_t size)
{
    snprintf(buffer, size, "%s", f->name);
    size_t n = strlen(buffer);
    if (n > 6 && strcmp(buffer + n - 6, "_bytes") == 0)
        buffer[n - 6] = '\0';
    else if ((f->kind == KIND_LIST || f->kind == KIND_STRS || f->kind == KIND_MAP) && buffer[n - 1] == 's')
        buffer[n - 1] = '\0';
    for (char *c = buffer; *c != '\0'; c++)
        if (*c == '_')
            *c = '-';
    if (strcmp(buffer, "key") == 0) /* --key is the client's own, of its certificate */
        snprintf(buffer, size, "%s", "store-key");
    return buffer;
}

static const struct field_desc *field_of_option(const struct object_desc *desc, const char *option)
{
    char name[64];
    for (unsigned i = 0; i < desc->n_fields; i++)
        if (!(desc->fields[i].flags & READ_ONLY) && strcmp(body_option_name(&desc->fields[i], name, sizeof name), option) == 0)
            return &desc->fields[i];
    return NULL;
}

bool body_has_option(const struct object_desc *desc, const char *option)
{
    return field_of_option(desc, option) != NULL;
}

bool body_option_is_flag(const struct object_desc *desc, const char *option)
{
    const struct field_desc *f = field_of_option(desc, option);
    return f != NULL && f->kind == KIND_BOOL;
}

int size_parse(const char *text, uint64_t *ret_bytes)
{
    static const struct {
        const char *suffix;
        unsigned shift;
    } units[] = {{"", 0},    {"B", 0},    {"K", 10},   {"KiB", 10}, {"M", 20},   {"MiB", 20},
                 {"G", 30},  {"GiB", 30}, {"T", 40},   {"TiB", 40}};
    char *end;
    if (*text < '0' || *text > '9')
        return -EINVAL;
    errno = 0;
    uint64_t n = strtoull(text, &end, 10);
    if (errno != 0)
        return -ERANGE;
    for (size_t i = 0; i < ARRAY_SIZE(units); i++)
        if (strcmp(end, units[i].suffix) == 0) {
            if (n > (OBJECT_INTEGER_MAX >> units[i].shift))
                return -ERANGE;
            *ret_bytes = n << units[i].shift;
            return 0;
        }
    return -EINVAL;
}

static int file_digest(const char *path, char hex[65], uint64_t *ret_size, struct error *err)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    int rc = 0;
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return error_set(err, -errno, ERROR_INVALID, "cannot read %s: %s", path, strerror(errno));
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    char *chunk = xcalloc(1, FILE_CHUNK_BYTES);
    ASSERT(ctx != NULL && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1);
    *ret_size = 0;
    for (size_t got; (got = fread(chunk, 1, FILE_CHUNK_BYTES, f)) > 0; *ret_size += got)
        EVP_DigestUpdate(ctx, chunk, got);
    if (ferror(f))
        rc = error_set(err, -EIO, ERROR_INVALID, "cannot read %s: %s", path, strerror(errno));
    EVP_DigestFinal_ex(ctx, digest, &n);
    for (unsigned i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    EVP_MD_CTX_free(ctx);
    free(chunk);
    fclose(f);
    return rc;
}

/* A bare local path in place of an artifact's fields. */
static int artifact_from_path(const char *path, json_t **ret, struct error *err)
{
    char resolved[4096], hex[65];
    uint64_t size = 0;
    if (realpath(path, resolved) == NULL)
        return error_set(err, -errno, ERROR_INVALID, "cannot find %s: %s", path, strerror(errno));
    int rc = file_digest(resolved, hex, &size, err);
    if (rc < 0)
        return rc;
    char *url = xasprintf("file://%s", resolved);
    *ret = json_pack("{s:s, s:s, s:I}", "url", url, "sha256", hex, "size_bytes", (json_int_t)size);
    free(url);
    return 0;
}

/* Texts of several lines, and secrets: who types a secret as it is shows it to everybody on the machine. */
static bool may_be_file(const struct field_desc *f)
{
    return f->kind == KIND_STR && (f->ref.format == FORMAT_text || (f->flags & SECRET));
}

/* The content of the file @path; of one line without its end. */
static int text_from_file(const struct field_desc *f, const char *path, json_t **ret, struct error *err)
{
    char *text = NULL;
    size_t size;
    int rc = file_read(path, f->max + 1, &text, &size, err);
    if (rc < 0)
        return rc;
    if (f->ref.format != FORMAT_text && size > 0 && text[size - 1] == '\n')
        size--;
    *ret = json_stringn(text, size);
    free(text);
    return *ret != NULL ? 0 : error_set(err, -EINVAL, ERROR_INVALID, "%s is not UTF-8", path);
}

static const char *number_example(const char *field)
{
    size_t n = strlen(field);
    if (strstr(field, "bytes") != NULL)
        return "a number such as 512MiB or 1073741824 (K, M, G, T stand for KiB, MiB, GiB, TiB)";
    return n > 2 && strcmp(field + n - 2, "_s") == 0    ? "seconds such as 3600"
           : n > 3 && strcmp(field + n - 3, "_ms") == 0 ? "milliseconds such as 500"
                                                        : "a number such as 2";
}

static int scalar(const struct field_desc *f, const char *option, const char *value, json_t **ret, struct error *err)
{
    uint64_t n;
    switch (f->kind) {
    case KIND_STR:
    case KIND_STRS: /* one of them */
    case KIND_ENUM:
        if (may_be_file(f) && value[0] == '@')
            return text_from_file(f, value + 1, ret, err);
        *ret = f->kind == KIND_STR && value[0] == '\0' && f->min > 0 ? json_null() : json_string(value); /* none: the field is taken away */
        return *ret ? 0 : error_set(err, -EINVAL, ERROR_INVALID, "--%s is not UTF-8", option);
    case KIND_BOOL:
        if (strcmp(value, "") != 0 && strcmp(value, "true") != 0 && strcmp(value, "false") != 0)
            return error_set(err, -EINVAL, ERROR_INVALID, "--%s takes true or false, not '%s'", option, value);
        *ret = json_boolean(strcmp(value, "false") != 0);
        return 0;
    case KIND_U32:
    case KIND_U64:
        if (size_parse(value, &n) < 0)
            return error_set(err, -EINVAL, ERROR_INVALID, "--%s takes %s, not '%s'", option, number_example(f->name), value);
        *ret = json_integer((json_int_t)n);
        return 0;
    default:
        return error_set(err, -EINVAL, ERROR_INVALID, "--%s cannot be given here", option);
    }
}

/* A field that has many values takes one more of them. */
static void put_value(json_t *o, const struct field_desc *f, json_t *v)
{
    json_t *list = json_object_get(o, f->name);
    if (f->kind != KIND_LIST && f->kind != KIND_STRS) {
        json_object_set_new(o, f->name, v);
        return;
    }
    if (list == NULL)
        json_object_set_new(o, f->name, list = json_array());
    json_array_append_new(list, v);
}

/* "--nic takes mac=, bridge=": what its parts are, and for an artifact what else it may be. */
static int unknown_part(const struct object_desc *desc, const char *option, const char *value, struct error *err)
{
    char parts[200] = "", name[64];
    size_t n = 0;
    bool artifact = strcmp(desc->name, "artifact") == 0;
    for (unsigned i = 0; i < desc->n_fields && n < sizeof parts; i++)
        if (!(desc->fields[i].flags & READ_ONLY) && desc->fields[i].kind != KIND_OBJ)
            n += (size_t)snprintf(parts + n, sizeof parts - n, "%s%s=", n > 0 ? ", " : "",
                                  body_option_name(&desc->fields[i], name, sizeof name));
    return error_set(err, -EINVAL, ERROR_INVALID, "--%s takes %s%s with commas between them, not '%s'", option,
                     artifact ? "a local path, or " : "", parts, value);
}

/* "name=data,size=10GiB" by the fields of @desc. */
int body_object(const struct object_desc *desc, const char *option, const char *value, json_t **ret, struct error *err)
{
    char text[VALUE_BYTES_MAX], *rest = NULL;
    if (strcmp(desc->name, "artifact") == 0 && strchr(value, '=') == NULL && strstr(value, "://") == NULL)
        return artifact_from_path(value, ret, err);
    if (strlen(value) >= sizeof text)
        return error_set(err, -EINVAL, ERROR_INVALID, "--%s is longer than %d bytes", option, VALUE_BYTES_MAX);
    snprintf(text, sizeof text, "%s", value);
    json_t *o = json_object();
    for (char *word = strtok_r(text, ",", &rest); word != NULL; word = strtok_r(NULL, ",", &rest)) {
        char *equals = strchr(word, '=');
        json_t *v = NULL;
        const char *name = word, *content = equals ? equals + 1 : "";
        if (equals != NULL)
            *equals = '\0';
        const struct field_desc *f = field_of_option(desc, name);
        if (f == NULL)
            f = object_field(desc, name);
        int rc = f ? scalar(f, option, content, &v, err) : unknown_part(desc, option, value, err);
        if (rc < 0) {
            json_decref(o);
            return rc;
        }
        put_value(o, f, v);
    }
    *ret = o;
    return 0;
}

/* Either none, which makes the list an empty one, or some. */
static int list_check(json_t *o, const struct field_desc *f, const char *option, bool is_none, struct error *err)
{
    const json_t *there = json_object_get(o, f->name);
    if (there != NULL && (is_none || json_array_size(there) == 0))
        return error_set(err, -EINVAL, ERROR_INVALID, "--%s none and another --%s do not go together", option, option);
    if (is_none)
        json_object_set_new(o, f->name, json_array());
    return 0;
}

/* One more of a map. That of a change is the one that @held has with this laid over it, for the API takes it as a whole:
 * "key=" takes one away, "none" all. @held is NULL where an object is made. */
static int add_pair(const struct field_desc *f, const struct option_given *given, const json_t *held, json_t *body, struct error *err)
{
    const char *value = given->value ? given->value : "", *equals = strchr(value, '=');
    const json_t *before = json_object_get(held, f->name);
    json_t *map = json_object_get(body, f->name);
    bool all = held != NULL && strcmp(value, "none") == 0;
    if (!all && (equals == NULL || equals == value))
        return error_set(err, -EINVAL, ERROR_INVALID, "--%s takes key=value, not '%s'", given->name, value);
    if (map == NULL)
        json_object_set_new(body, f->name, map = json_is_object(before) ? json_deep_copy(before) : json_object());
    if (all) {
        json_object_clear(map);
        return 0;
    }
    size_t length = (size_t)(equals - value);
    if (held != NULL && equals[1] == '\0') {
        json_object_deln(map, value, length); /* it is not there: as well */
        return 0;
    }
    if (json_object_setn_new(map, value, length, json_string(equals + 1)) < 0)
        return error_set(err, -EINVAL, ERROR_INVALID, "--%s is not UTF-8", given->name);
    return 0;
}

static int add_option(const struct field_desc *f, const struct option_given *given, const json_t *held, json_t *body, struct error *err)
{
    const char *value = given->value ? given->value : "";
    json_t *v = NULL;
    int rc;
    if (f->kind == KIND_MAP)
        return add_pair(f, given, held, body, err);
    if (f->kind == KIND_LIST) {
        bool is_none = strcmp(value, "none") == 0; /* which is something else than not to say anything */
        rc = list_check(body, f, given->name, is_none, err);
        if (rc < 0 || is_none)
            return rc;
    }
    if (f->kind == KIND_OBJ || f->kind == KIND_LIST)
        rc = body_object(f->ref.object, given->name, value, &v, err);
    else if (given->value == NULL && f->kind != KIND_BOOL)
        rc = error_set(err, -EINVAL, ERROR_INVALID, "--%s needs a value", given->name);
    else
        rc = scalar(f, given->name, value, &v, err);
    if (rc < 0)
        return rc;
    put_value(body, f, v);
    return 0;
}

/* On failure the body is gone. */
static int add_options(const struct invocation *call, const struct object_desc *desc, const json_t *held, json_t *body, struct error *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < call->n_options; i++) {
        const struct field_desc *f = field_of_option(desc, call->options[i].name);
        rc = f ? add_option(f, &call->options[i], held, body, err) : 0;
    }
    if (rc < 0)
        json_decref(body);
    return rc;
}

int body_build(const struct invocation *call, const struct object_desc *desc, json_t **ret, struct error *err)
{
    json_t *body = json_object();
    const char *name = call->verb->argument == ARGUMENT_VM_AND_NEW_NAME ? call->new_name : call->name;
    if (name != NULL && object_field(desc, "name") != NULL)
        json_object_set_new(body, "name", json_string(name));
    int rc = add_options(call, desc, NULL, body, err);
    if (rc == 0)
        *ret = body;
    return rc;
}

bool body_change_needs_held(const struct invocation *call, const struct object_desc *desc)
{
    for (size_t i = 0; i < call->n_options; i++) {
        const struct field_desc *f = field_of_option(desc, call->options[i].name);
        if (f != NULL && (f->kind == KIND_MAP || f->kind == KIND_LIST || f->kind == KIND_STRS))
            return true;
    }
    return false;
}

int body_build_change(const struct invocation *call, const struct object_desc *desc, const json_t *held, json_t **ret,
                      struct error *err)
{
    json_t *body = json_object();
    int rc = add_options(call, desc, held, body, err);
    if (rc < 0)
        return rc;
    if (json_object_size(body) == 0) {
        json_decref(body);
        return error_set(err, -EINVAL, ERROR_INVALID, "nothing to change is given; `drover %s %s --help` lists what can be",
                         call->verb->noun, call->verb->verb);
    }
    *ret = body;
    return 0;
}

/* What becomes of those that are there. */
static const char *change_help(const struct field_desc *f)
{
    bool disks = f->kind == KIND_LIST && f->ref.object == &vm_disk_desc; /* neither come nor go so */
    return f->kind == KIND_MAP ? PAIRS_HELP : (f->kind == KIND_LIST && !disks) || f->kind == KIND_STRS ? LIST_HELP : "";
}

#define HELP_INDENT 25

/* Words of an enum, or parts of an object that can be typed. */
static void help_parts(const struct field_desc *f)
{
    char name[64], left[96];
    if (f->kind == KIND_ENUM)
        for (unsigned k = 0; k < f->ref.enums->count; k++) {
            snprintf(left, sizeof left, "%*s%-12s ", HELP_INDENT + 2, "", f->ref.enums->names[k]);
            output_wrapped(left, HELP_INDENT + 15, f->ref.enums->docs[k]);
        }
    if (f->kind != KIND_LIST && f->kind != KIND_OBJ)
        return;
    for (unsigned k = 0; k < f->ref.object->n_fields; k++) {
        const struct field_desc *part = &f->ref.object->fields[k];
        if ((part->flags & READ_ONLY) || part->kind == KIND_OBJ)
            continue;
        snprintf(left, sizeof left, "%*s%s= ", HELP_INDENT + 2, "", body_option_name(part, name, sizeof name));
        output_wrapped(left, HELP_INDENT + 19, part->doc);
    }
}

void body_help(const struct object_desc *desc, bool patch)
{
    char name[64], left[96];
    for (unsigned i = 0; i < desc->n_fields; i++) {
        const struct field_desc *f = &desc->fields[i];
        if ((f->flags & READ_ONLY) || (patch && (f->flags & IMMUTABLE)) || (!patch && strcmp(f->name, "name") == 0))
            continue;
        const char *value = f->kind == KIND_BOOL                                       ? "[=false]"
                            : f->kind == KIND_MAP                                      ? " KEY=VALUE"
                            : f->kind == KIND_OBJ                                      ? " PATH"
                            : f->kind == KIND_LIST                                     ? " KEY=VALUE,..."
                            : may_be_file(f)                                           ? " TEXT|@FILE"
                            : f->kind == KIND_STR || f->kind == KIND_STRS              ? " TEXT"
                            : strstr(f->name, "_bytes") != NULL                        ? " SIZE"
                            : f->kind == KIND_ENUM                                     ? " WORD"
                                                                                       : " N";
        snprintf(left, sizeof left, "  --%s%s ", body_option_name(f, name, sizeof name), value);
        CLEANUP_FREE char *doc =
            xasprintf("%s%s", f->doc, (f->flags & REQUIRED) && !patch ? " (needed)" : patch ? change_help(f) : "");
        output_wrapped(left, HELP_INDENT, doc);
        help_parts(f);
    }
}
