/* Descriptor tables expanded from objects.def. */
#include "schema/objects.h"

/* A tag given twice is a duplicate case label, a tag of 0 a negative array: neither compiles. */
#define ENUM(e, doc)
#define VALUE(e, sym, text, doc)
#define ENUM_END(e)
#define OBJECT(o, doc)                                                                                               \
    static inline UNUSED void o##_tags_are_distinct(unsigned tag)                                                    \
    {                                                                                                                \
        switch (tag) {
#define FIELD(o, tag, name, kind, arg, min, max, flags, doc)                                                         \
    case tag:                                                                                                        \
        (void)sizeof(char[(tag) > 0 ? 1 : -1]);                                                                      \
        return;
#define OBJECT_END(o)                                                                                                \
    default:                                                                                                         \
        break;                                                                                                       \
        }                                                                                                            \
        }
#include "schema/objects.def"
#undef ENUM
#undef VALUE
#undef ENUM_END
#undef OBJECT
#undef FIELD
#undef OBJECT_END

#define ENUM(e, doc) static const char *const e##_names[] = {
#define VALUE(e, sym, text, doc) [e##_##sym] = text,
#define ENUM_END(e)                                                                                                  \
    }                                                                                                                \
    ;
#define OBJECT(o, doc)
#define FIELD(o, tag, name, kind, arg, min, max, flags, doc)
#define OBJECT_END(o)
#include "schema/objects.def"
#undef ENUM
#undef VALUE
#undef ENUM_END

#define ENUM(e, doc) static const char *const e##_docs[] = {
#define VALUE(e, sym, text, doc) [e##_##sym] = doc,
#define ENUM_END(e)                                                                                                  \
    }                                                                                                                \
    ;                                                                                                                \
    const struct enum_desc e##_desc = {#e, e##_names, e##_docs, e##_COUNT};
#include "schema/objects.def"
#undef ENUM
#undef VALUE
#undef ENUM_END
#undef OBJECT
#undef FIELD
#undef OBJECT_END

#define ENUM(e, doc)
#define VALUE(e, sym, text, doc)
#define ENUM_END(e)
#define OBJECT(o, text) static const struct field_desc o##_fields[] = {
#define FIELD(o, tag, name, kind, arg, min, max, flags, text)                                                        \
    {#name, text, tag, KIND_##kind, flags, min, max, offsetof(struct o, name), FIELD_REF_##kind(arg)},
#define OBJECT_END(o)                                                                                                \
    }                                                                                                                \
    ;                                                                                                                \
    STATIC_ASSERT(ARRAY_SIZE(o##_fields) <= OBJECT_FIELDS_MAX, "more fields than the bitmap has bits");
#include "schema/objects.def"
#undef OBJECT
#undef FIELD
#undef OBJECT_END

#define OBJECT(o, text)                                                                                              \
    const struct object_desc o##_desc = {#o, text, sizeof(struct o), o##_fields, ARRAY_SIZE(o##_fields)};
#define FIELD(o, tag, name, kind, arg, min, max, flags, text)
#define OBJECT_END(o)
#include "schema/objects.def"
#undef OBJECT

#define OBJECT(o, text) &o##_desc,
const struct object_desc *const schema_objects[] = {
#include "schema/objects.def"
};
const unsigned schema_objects_count = ARRAY_SIZE(schema_objects);
