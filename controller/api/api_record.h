/* Records of the state as answers: JSON with what is not stored filled in, lists with filter, fields, limit and
 * cursor, ETag. The caller holds the read lock of the state. */
#ifndef CONTROLLER_API_API_RECORD_H
#define CONTROLLER_API_API_RECORD_H

#include "controller/api/api_query.h"
#include "controller/fsm/state.h"

#define API_RECORD_CONDITIONS_MAX 16u

/* What a list is narrowed to. Borrows the query's text. */
struct api_record_filter {
    struct {
        const struct field_desc *field;
        bool unequal;
        char label[256]; /* of a condition on labels.<key> */
        char value[256];
    } conditions[API_RECORD_CONDITIONS_MAX];
    unsigned count;
    uint64_t mask; /* bits of the fields to show; 0 = all */
};

/* The kind whose objects @desc describes; false: none is stored. */
bool api_record_kind(const struct object_desc *desc, enum object_kind *ret_kind);
/* filter: field=value, field!=value or labels.key=value, joined by " and ": all must hold. fields: names separated
 * by commas. -EINVAL with the field or condition in words. */
int api_record_filter_parse(const struct object_desc *desc, const struct api_query *query,
                            struct api_record_filter *ret_filter, struct error *err);
/* One object as a user may see it. @leader_raft_id: for controllers; @mask: fields to show, 0 = all. */
void api_record_put(const struct state *state, const struct record *record, uint64_t leader_raft_id, uint64_t mask,
                    struct bytes_writer *out);
/* A JSON array. ret_cursor: the name to go on from, "" where the list ends here. */
void api_record_put_list(const struct state *state, enum object_kind kind, const struct api_query *query,
                         const struct api_record_filter *filter, uint64_t leader_raft_id, struct bytes_writer *out,
                         char ret_cursor[64]);

#endif
