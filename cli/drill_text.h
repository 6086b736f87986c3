/* Fields of JSON objects, for the files of drills: never NULL, never an error. */
#ifndef CLI_DRILL_TEXT_H
#define CLI_DRILL_TEXT_H

#include <jansson.h>

#include "common/base.h"

/* "" where there is none. */
static inline const char *json_text(const json_t *object, const char *field)
{
    const char *text = json_string_value(json_object_get(object, field));
    return text != NULL ? text : "";
}

/* 0 where there is none. */
static inline int64_t json_number(const json_t *object, const char *field)
{
    return (int64_t)json_integer_value(json_object_get(object, field));
}

#endif
