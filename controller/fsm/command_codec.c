/* Bytes of Raft commands; the layout is in the header. */
#include "controller/fsm/command_codec.h"

#include <errno.h>
#include <string.h>

int command_encode(enum command number, const void *payload, struct bytes_writer *out, struct error *err)
{
    const struct command_desc *desc = command_find(number);
    struct bytes_writer json = {0};
    ASSERT(desc != NULL);
    object_encode(desc->payload, payload, &json);
    if (json.size > COMMAND_BYTES_MAX - COMMAND_HEADER_BYTES) {
        size_t size = json.size;
        bytes_writer_finish(&json);
        return error_set(err, -E2BIG, ERROR_TOO_LARGE, "the request makes a command of %zu bytes; at most %u can be agreed on",
                         size, COMMAND_BYTES_MAX - COMMAND_HEADER_BYTES);
    }
    bytes_put_u16(out, (uint16_t)number);
    bytes_put_u16(out, COMMAND_VERSION);
    bytes_put_u32(out, (uint32_t)json.size);
    bytes_put(out, json.data, json.size);
    bytes_writer_finish(&json);
    return 0;
}

/* The codec asks a stored object for nothing; a command's own required fields, its request's and those of list items
 * are what apply relies on. */
static int check_given(const struct object_desc *desc, const void *object, struct error *err)
{
    for (unsigned i = 0; i < desc->n_fields; i++) {
        const struct field_desc *field = &desc->fields[i];
        const char *value = (const char *)object + field->offset;
        bool given = object_has(desc, object, field);
        if ((field->flags & REQUIRED) && !given)
            return error_set_field(err, -EINVAL, ERROR_INVALID, field->name, "%s has no %s", desc->name, field->name);
        if (given && field->kind == KIND_OBJ && field->ref.object == &command_request_desc &&
            check_given(field->ref.object, value, err) < 0)
            return -EINVAL;
        const struct object_list *list = (const void *)value;
        for (size_t k = 0; field->kind == KIND_LIST && k < list->count; k++)
            if (check_given(field->ref.object, (const char *)list->items + k * field->ref.object->size, err) < 0)
                return -EINVAL;
    }
    return 0;
}

static int read_header(struct bytes_reader *in, const struct command_desc **ret_desc, struct error *err)
{
    unsigned number = bytes_get_u16(in), version = bytes_get_u16(in);
    uint32_t length = bytes_get_u32(in);
    if (in->bad || length > bytes_left(in))
        return error_set(err, -EBADMSG, ERROR_CHECKSUM, "the command ends early");
    if (version > COMMAND_VERSION)
        return error_set(err, -EPROTONOSUPPORT, ERROR_NOT_SUPPORTED,
                         "command %u has version %u, this program knows up to %u: upgrade it", number, version,
                         COMMAND_VERSION);
    const struct command_desc *desc = command_find(number);
    if (desc == NULL)
        return error_set(err, -EPROTONOSUPPORT, ERROR_NOT_SUPPORTED, "command %u is not known to this program: upgrade it",
                         number);
    in->end = in->at + length; /* what follows is padding */
    *ret_desc = desc;
    return 0;
}

int command_decode(const void *data, size_t size, struct command_message *ret_message, struct error *err)
{
    struct bytes_reader in = bytes_reader(data, size);
    const struct command_desc *desc = NULL;
    int rc = read_header(&in, &desc, err);
    if (rc < 0)
        return rc;
    CLEANUP_FREE void *payload = xcalloc(1, desc->payload->size);
    struct error why = {.code = 0};
    rc = object_decode(desc->payload, (const char *)in.at, bytes_left(&in), OBJECT_STORED, payload, &why);
    if (rc < 0 && why.kind == ERROR_UNKNOWN_FIELD)
        return error_set(err, -EPROTONOSUPPORT, ERROR_NOT_SUPPORTED,
                         "command %s has the field %s, which a newer version wrote: upgrade this program", desc->name, why.field);
    if (rc < 0 && err != NULL)
        *err = why;
    if (rc == 0 && (rc = check_given(desc->payload, payload, err)) < 0)
        object_clear(desc->payload, payload);
    if (rc < 0) {
        error_prefix(err, "command %s: ", desc->name);
        return rc;
    }
    *ret_message = (struct command_message){desc, TAKE_PTR(payload)};
    return 0;
}

void command_message_finish(struct command_message *message)
{
    if (message == NULL || message->payload == NULL)
        return;
    object_clear(message->desc->payload, message->payload);
    free(message->payload);
    *message = (struct command_message){0};
}
