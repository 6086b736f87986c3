/* The route table, its lookup, and the OpenAPI document made from it. */
#include "schema/routes.h"

#include <string.h>

#define LEADER ROUTE_LEADER
#define LOCAL ROUTE_LOCAL
#define WAIT ROUTE_WAIT
#define DRY ROUTE_DRY
#define LIST ROUTE_LIST
/* "none" is a row's word for no object: give it a table that stands for that. */
static const struct object_desc none_desc = {.name = NULL};
const struct route_desc schema_routes[ROUTE_COUNT] = {
#define ROUTE(symbol, method, path, body, answer, role, flags, doc)                                                  \
    [ROUTE_ID_##symbol] = {ROUTE_ID_##symbol, #symbol, ROUTE_##method, path, &body##_desc, &answer##_desc, ROUTE_##role, flags, doc},
#include "schema/routes.def"
#undef ROUTE
};

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

const struct route_desc *route_find(enum route_method method, const char *path, const char **ret_id, size_t *ret_id_length,
                                    bool *ret_path_known)
{
    bool known = false;
    for (size_t i = 0; i < ROUTE_COUNT; i++) {
        const char *id = NULL;
        size_t length = 0;
        if (!path_matches(schema_routes[i].path, path, &id, &length))
            continue;
        known = true;
        if (schema_routes[i].method != method)
            continue;
        *ret_id = id;
        *ret_id_length = length;
        *ret_path_known = true;
        return &schema_routes[i];
    }
    *ret_path_known = known;
    return NULL;
}

static void put_parameter(struct bytes_writer *out, const char *where, const char *name, const char *doc)
{
    bytes_put_format(out, "%s{\"name\":\"%s\",\"in\":\"%s\",\"required\":%s,\"schema\":{\"type\":\"string\"},\"description\":",
                     out->data[out->size - 1] == '[' ? "" : ",", name, where, strcmp(where, "path") == 0 ? "true" : "false");
    json_put_string(out, doc);
    bytes_put_text(out, "}");
}

static void put_operation(const struct route_desc *r, struct bytes_writer *out)
{
    bytes_put_format(out, "\"operationId\":\"%s\",\"summary\":", r->symbol);
    json_put_string(out, r->doc);
    bytes_put_text(out, ",\"parameters\":[");
    if (strstr(r->path, "{id}") != NULL)
        put_parameter(out, "path", "id", "Id or name.");
    if (r->flags & ROUTE_LIST) {
        put_parameter(out, "query", "filter", "Conditions joined by ' and ': field=value, field!=value, labels.key=value.");
        put_parameter(out, "query", "fields", "Names of the fields to show, by comma.");
        put_parameter(out, "query", "limit", "At most so many (1 to 20000).");
        put_parameter(out, "query", "cursor", "Go on from the X-Drover-Cursor of the last answer.");
    }
    if (r->flags & ROUTE_WAIT)
        put_parameter(out, "query", "wait", "Wait for the end, such as 30s (at most 300s).");
    if (r->flags & ROUTE_DRY)
        put_parameter(out, "query", "dry_run", "true: check and place, but change nothing.");
    if (r->method == ROUTE_GET)
        put_parameter(out, "query", "consistency", "stale: answered at once from what this controller holds.");
    if (r->method == ROUTE_POST)
        put_parameter(out, "header", "Idempotency-Key", "A repeat with the same key gets the first answer.");
    if (r->method == ROUTE_PATCH || r->method == ROUTE_DELETE)
        put_parameter(out, "header", "If-Match", "Only if the object still has this revision (its ETag).");
    bytes_put_text(out, "]");
    if (r->body->name != NULL)
        bytes_put_format(out, ",\"requestBody\":{\"required\":true,\"content\":{\"application/json\":{\"schema\":{\"$ref\":\"#/components/schemas/%s\"}}}}",
                         r->body->name);
    bytes_put_format(out, ",\"responses\":{\"%s\":{\"description\":\"Done or accepted.\"", r->answer == &operation_desc && r->method != ROUTE_GET ? "202" : "2XX");
    if (r->answer->name != NULL && (r->flags & ROUTE_LIST))
        bytes_put_format(out, ",\"content\":{\"application/json\":{\"schema\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/components/schemas/%s\"}}}}",
                         r->answer->name);
    else if (r->answer->name != NULL)
        bytes_put_format(out, ",\"content\":{\"application/json\":{\"schema\":{\"$ref\":\"#/components/schemas/%s\"}}}", r->answer->name);
    bytes_put_text(out, "},\"default\":{\"description\":\"An error.\",\"content\":{\"application/problem+json\":{\"schema\":"
                        "{\"$ref\":\"#/components/schemas/problem\"}}}}}");
}

void schema_openapi(struct bytes_writer *out)
{
    static const char *const methods[] = {"get", "post", "put", "patch", "delete"};
    bool done[ROUTE_COUNT] = {false};
    bytes_put_text(out, "{\"openapi\":\"3.1.0\",\"info\":{\"title\":\"Drover\",\"version\":\"1\",\"license\":{\"name\":\"Apache-2.0\","
                        "\"identifier\":\"Apache-2.0\"}},\"servers\":[{\"url\":\"/\"}],\"security\":[{\"certificate\":[]}],\"paths\":{");
    for (size_t i = 0, paths = 0; i < ROUTE_COUNT; i++) {
        if (done[i])
            continue;
        bytes_put_format(out, "%s\"%s\":{", paths++ ? "," : "", schema_routes[i].path);
        for (size_t k = i, n = 0; k < ROUTE_COUNT; k++) {
            if (strcmp(schema_routes[k].path, schema_routes[i].path) != 0)
                continue;
            done[k] = true;
            bytes_put_format(out, "%s\"%s\":{", n++ ? "," : "", methods[schema_routes[k].method]);
            put_operation(&schema_routes[k], out);
            bytes_put_text(out, "}");
        }
        bytes_put_text(out, "}");
    }
    bytes_put_text(out, "},\"components\":{\"securitySchemes\":{\"certificate\":{\"type\":\"mutualTLS\"}},\"schemas\":{");
    for (unsigned i = 0; i < schema_objects_count; i++) {
        bytes_put_format(out, "%s\"%s\":", i ? "," : "", schema_objects[i]->name);
        object_schema(schema_objects[i], out);
    }
    bytes_put_text(out, "}}}\n");
}

void schema_sql(struct bytes_writer *out)
{
    for (unsigned i = 0; i < schema_objects_count; i++)
        if (object_field(schema_objects[i], "id") != NULL && object_field(schema_objects[i], "revision") != NULL)
            object_sql(schema_objects[i], out);
}
