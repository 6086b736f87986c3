/* The route table, its lookup, and the OpenAPI document made from it. */
#include "schema/routes.h"

#include <string.h>

#define LEADER ROUTE_LEADER
#define LOCAL ROUTE_LOCAL
#define WAIT ROUTE_WAIT
#define DRY ROUTE_DRY
#define FORCE ROUTE_FORCE
#define BARE ROUTE_BARE
#define LIST ROUTE_LIST
/* "none" is a row's word for no object: give it a table that stands for that. */
const struct object_desc none_desc = {.name = NULL};
const struct route_desc schema_routes[ROUTE_COUNT] = {
#define ROUTE(symbol, method, path, body, answer, role, flags, doc)                                                  \
    [ROUTE_ID_##symbol] = {ROUTE_ID_##symbol, #symbol, ROUTE_##method, path, &body##_desc, &answer##_desc, ROUTE_##role, flags, doc},
#include "schema/routes.def"
#undef ROUTE
};
const struct route_table schema_route_table = {"Drover", schema_routes, ROUTE_COUNT, true};

const char *route_method_name(enum route_method method)
{
    static const char *const names[] = {
        [ROUTE_GET] = "GET", [ROUTE_POST] = "POST", [ROUTE_PUT] = "PUT", [ROUTE_PATCH] = "PATCH", [ROUTE_DELETE] = "DELETE"};
    return names[method];
}

static bool path_matches(const char *pattern, const char *path, const char **ret_id, size_t *ret_id_length)
{
    while (*pattern != '\0') {
        if (strncmp(pattern, "{id}", 4) == 0) {
            size_t n = strcspn(path, "/");
            if (n == 0)
                return false;
            *ret_id = path;
            *ret_id_length = n;
            path += n;
            pattern += 4;
        } else if (*pattern++ != *path++) {
            return false;
        }
    }
    return *path == '\0';
}

const struct route_desc *route_table_find(const struct route_table *table, enum route_method method, const char *path,
                                          const char **ret_id, size_t *ret_id_length, bool *ret_path_known)
{
    bool known = false;
    for (size_t i = 0; i < table->count; i++) {
        const char *id = NULL;
        size_t length = 0;
        if (!path_matches(table->routes[i].path, path, &id, &length))
            continue;
        known = true;
        if (table->routes[i].method != method)
            continue;
        *ret_id = id;
        *ret_id_length = length;
        *ret_path_known = true;
        return &table->routes[i];
    }
    *ret_path_known = known;
    return NULL;
}

const struct route_desc *route_find(enum route_method method, const char *path, const char **ret_id, size_t *ret_id_length,
                                    bool *ret_path_known)
{
    return route_table_find(&schema_route_table, method, path, ret_id, ret_id_length, ret_path_known);
}

static void put_parameter(struct bytes_writer *out, const char *where, const char *name, const char *doc)
{
    bytes_put_format(out, "%s{\"name\":\"%s\",\"in\":\"%s\",\"required\":%s,\"schema\":{\"type\":\"string\"},\"description\":",
                     out->data[out->size - 1] == '[' ? "" : ",", name, where, strcmp(where, "path") == 0 ? "true" : "false");
    json_put_string(out, doc);
    bytes_put_text(out, "}");
}

static void put_operation(const struct route_table *table, const struct route_desc *r, struct bytes_writer *out)
{
    bytes_put_format(out, "\"operationId\":\"%s\",\"summary\":", r->symbol);
    json_put_string(out, r->doc);
    bytes_put_text(out, ",\"parameters\":[");
    if (strstr(r->path, "{id}") != NULL)
        put_parameter(out, "path", "id", "Id or name.");
    if (table->is_cluster && (r->flags & ROUTE_LIST)) {
        put_parameter(out, "query", "filter", "Conditions joined by ' and ': field=value, field!=value, labels.key=value.");
        put_parameter(out, "query", "fields", "Names of the fields to show, by comma.");
        put_parameter(out, "query", "limit", "At most so many (1 to 20000).");
        put_parameter(out, "query", "cursor", "Go on from the X-Drover-Cursor of the last answer.");
    }
    if (r->flags & ROUTE_WAIT)
        put_parameter(out, "query", "wait", "Wait for the end, such as 30s (at most 300s).");
    if (r->flags & ROUTE_DRY)
        put_parameter(out, "query", "dry_run", "true: check and place, but change nothing.");
    if (table->is_cluster && r->method == ROUTE_GET)
        put_parameter(out, "query", "consistency", "stale: answered at once from what this controller holds.");
    if (table->is_cluster && r->method == ROUTE_POST)
        put_parameter(out, "header", "Idempotency-Key", "A repeat with the same key gets the first answer.");
    if (table->is_cluster && (r->method == ROUTE_PATCH || r->method == ROUTE_DELETE))
        put_parameter(out, "header", "If-Match", "Only if the object still has this revision (its ETag).");
    if (r->flags & ROUTE_FORCE)
        put_parameter(out, "query", "force", "true: without waiting for the guest, or as said above.");
    bytes_put_text(out, "]");
    if (r->body->name != NULL)
        bytes_put_format(out, ",\"requestBody\":{\"required\":%s,\"content\":{\"application/json\":{\"schema\":{\"$ref\":\"#/components/schemas/%s\"}}}}",
                         r->flags & ROUTE_BARE ? "false" : "true", r->body->name);
    bytes_put_format(out, ",\"responses\":{\"%s\":{\"description\":\"Done or accepted.\"", r->answer == &operation_desc && r->method != ROUTE_GET ? "202" : "2XX");
    if (r->answer->name != NULL && (r->flags & ROUTE_LIST))
        bytes_put_format(out, ",\"content\":{\"application/json\":{\"schema\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/components/schemas/%s\"}}}}",
                         r->answer->name);
    else if (r->answer->name != NULL)
        bytes_put_format(out, ",\"content\":{\"application/json\":{\"schema\":{\"$ref\":\"#/components/schemas/%s\"}}}", r->answer->name);
    bytes_put_text(out, "},\"default\":{\"description\":\"An error.\",\"content\":{\"application/problem+json\":{\"schema\":"
                        "{\"$ref\":\"#/components/schemas/problem\"}}}}}");
}

/* Mark in @wanted what @desc is and what it holds. The schema has no circles: an object comes after its parts. */
static void mark_object(const struct object_desc *desc, bool *wanted)
{
    for (unsigned i = 0; i < schema_objects_count; i++) {
        if (schema_objects[i] != desc || wanted[i])
            continue;
        wanted[i] = true;
        for (unsigned k = 0; k < desc->n_fields; k++)
            if (desc->fields[k].kind == KIND_OBJ || desc->fields[k].kind == KIND_LIST)
                mark_object(desc->fields[k].ref.object, wanted);
    }
}

static void put_schemas(const struct route_table *table, struct bytes_writer *out)
{
    CLEANUP_FREE bool *wanted = xcalloc(schema_objects_count, sizeof(*wanted));
    mark_object(&problem_desc, wanted);
    for (size_t i = 0; i < table->count; i++) {
        mark_object(table->routes[i].body, wanted);
        mark_object(table->routes[i].answer, wanted);
    }
    for (unsigned i = 0, n = 0; i < schema_objects_count; i++) {
        if (!wanted[i] && !table->is_cluster)
            continue;
        bytes_put_format(out, "%s\"%s\":", n++ ? "," : "", schema_objects[i]->name);
        object_schema(schema_objects[i], out);
    }
}

void route_table_openapi(const struct route_table *table, struct bytes_writer *out)
{
    static const char *const methods[] = {"get", "post", "put", "patch", "delete"};
    const struct route_desc *routes = table->routes;
    CLEANUP_FREE bool *done = xcalloc(table->count, sizeof(*done));
    bytes_put_format(out, "{\"openapi\":\"3.1.0\",\"info\":{\"title\":\"%s\",\"version\":\"1\",\"license\":{\"name\":\"Apache-2.0\","
                          "\"identifier\":\"Apache-2.0\"}},\"servers\":[{\"url\":\"/\"}],\"security\":[%s],\"paths\":{",
                     table->title, table->is_cluster ? "{\"certificate\":[]}" : "");
    for (size_t i = 0, paths = 0; i < table->count; i++) {
        if (done[i])
            continue;
        bytes_put_format(out, "%s\"%s\":{", paths++ ? "," : "", routes[i].path);
        for (size_t k = i, n = 0; k < table->count; k++) {
            if (strcmp(routes[k].path, routes[i].path) != 0)
                continue;
            done[k] = true;
            bytes_put_format(out, "%s\"%s\":{", n++ ? "," : "", methods[routes[k].method]);
            put_operation(table, &routes[k], out);
            bytes_put_text(out, "}");
        }
        bytes_put_text(out, "}");
    }
    bytes_put_format(out, "},\"components\":{%s\"schemas\":{",
                     table->is_cluster ? "\"securitySchemes\":{\"certificate\":{\"type\":\"mutualTLS\"}}," : "");
    put_schemas(table, out);
    bytes_put_text(out, "}}}\n");
}

void schema_openapi(struct bytes_writer *out)
{
    route_table_openapi(&schema_route_table, out);
}

void schema_sql(struct bytes_writer *out)
{
    for (unsigned i = 0; i < schema_objects_count; i++)
        if (object_field(schema_objects[i], "id") != NULL && object_field(schema_objects[i], "revision") != NULL)
            object_sql(schema_objects[i], out);
}
