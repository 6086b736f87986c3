/* The REST routes expanded from routes.def: one table for the server, the CLI, OpenAPI and the tests; and what is the
 * same for every such table (vmm_routes.h has another one). */
#ifndef SCHEMA_ROUTES_H
#define SCHEMA_ROUTES_H

#include "schema/objects.h"

enum route_method { ROUTE_GET, ROUTE_POST, ROUTE_PUT, ROUTE_PATCH, ROUTE_DELETE };
enum route_role { ROUTE_ANY, ROUTE_USER, ROUTE_HOST, ROUTE_CONTROLLER };
enum route_flag { ROUTE_LEADER = 1, ROUTE_LOCAL = 2, ROUTE_WAIT = 4, ROUTE_DRY = 8, ROUTE_LIST = 16, ROUTE_FORCE = 32, ROUTE_BARE = 64 };

enum route_id {
#define ROUTE(symbol, method, path, body, answer, role, flags, doc) ROUTE_ID_##symbol,
#include "schema/routes.def"
#undef ROUTE
    ROUTE_COUNT
};

struct route_desc {
    unsigned id; /* enum route_id, or that of its own table */
    const char *symbol;
    enum route_method method;
    const char *path; /* {id} stands for one segment */
    const struct object_desc *body, *answer;
    enum route_role role;
    unsigned flags;
    const char *doc;
};
extern const struct route_desc schema_routes[ROUTE_COUNT];

/* Routes of one server. */
struct route_table {
    const char *title; /* of its OpenAPI document */
    const struct route_desc *routes;
    size_t count;
    bool is_cluster; /* certificates, idempotency keys and revisions: the parameters that all its routes share */
};
extern const struct route_table schema_route_table;

/* "none" in a row: no body, no answer. Its name is NULL. */
extern const struct object_desc none_desc;

const char *route_method_name(enum route_method method);
/* The route of @method and @path (without query; not yet percent-decoded). NULL: none; *ret_path_known then says
 * whether the path exists under another method. *ret_id and *ret_id_length: the segment at {id}, inside @path. */
const struct route_desc *route_find(enum route_method method, const char *path, const char **ret_id, size_t *ret_id_length,
                                    bool *ret_path_known);
/* The same in any table. */
const struct route_desc *route_table_find(const struct route_table *table, enum route_method method, const char *path,
                                          const char **ret_id, size_t *ret_id_length, bool *ret_path_known);
/* The OpenAPI 3.1 document of a table: its routes, and the objects that they lead to. */
void route_table_openapi(const struct route_table *table, struct bytes_writer *out);
/* The whole OpenAPI 3.1 document of the cluster's API. */
void schema_openapi(struct bytes_writer *out);
/* CREATE TABLE of every object with an id, for the history database. */
void schema_sql(struct bytes_writer *out);

#endif
