/* The structs and enums expanded from objects.def; objects.c holds their descriptors. */
#ifndef SCHEMA_OBJECTS_H
#define SCHEMA_OBJECTS_H

#include "common/object.h"

#define ENUM(e, doc) enum e {
#define VALUE(e, sym, text, doc) e##_##sym,
#define ENUM_END(e)                                                                                                  \
    e##_COUNT                                                                                                        \
    }                                                                                                                \
    ;                                                                                                                \
    extern const struct enum_desc e##_desc;
#define OBJECT(o, doc)                                                                                               \
    struct o {                                                                                                       \
        struct object_head head;
#define FIELD(o, tag, name, kind, arg, min, max, flags, doc) FIELD_TYPE_##kind(arg) name;
#define OBJECT_END(o)                                                                                                \
    }                                                                                                                \
    ;                                                                                                                \
    extern const struct object_desc o##_desc;
#include "schema/objects.def"
#undef ENUM
#undef VALUE
#undef ENUM_END
#undef OBJECT
#undef FIELD
#undef OBJECT_END

/* Every object of objects.def, in its order. */
extern const struct object_desc *const schema_objects[];
extern const unsigned schema_objects_count;

/* Typed short forms, so that a caller cannot pair a struct with another one's table. */
#define OBJECT_DECODE(o, text, size, mode, object, err)                                                              \
    object_decode(&o##_desc, text, size, mode, (1 ? (object) : (struct o *)NULL), err)
#define OBJECT_ENCODE(o, object, out) object_encode(&o##_desc, (1 ? (object) : (const struct o *)NULL), out)
#define OBJECT_CLEAR(o, object) object_clear(&o##_desc, (1 ? (object) : (struct o *)NULL))
#define OBJECT_COPY(o, to, from) object_copy(&o##_desc, (1 ? (to) : (struct o *)NULL), (1 ? (from) : (const struct o *)NULL))
/* Set a text or scalar field and mark it present. */
#define OBJECT_TEXT(o, object, field, value) object_set_text(&o##_desc, (1 ? (object) : (struct o *)NULL), #field, value)
#define OBJECT_SET(o, object, field, value)                                                                          \
    do {                                                                                                             \
        (object)->field = (value);                                                                                   \
        object_mark(&o##_desc, (1 ? (object) : (struct o *)NULL), #field);                                           \
    } while (0)
#define OBJECT_ADD(o, object, field) object_list_add(&o##_desc, (1 ? (object) : (struct o *)NULL), #field)
#define OBJECT_HAS(o, object, field) object_has(&o##_desc, object, object_field(&o##_desc, #field))

#endif
