/* The routes of a VMM's control socket, expanded from vmm_routes.def; routes.h has what every table can do. */
#ifndef SCHEMA_VMM_ROUTES_H
#define SCHEMA_VMM_ROUTES_H

#include "schema/routes.h"

enum vmm_route_id {
#define ROUTE(symbol, method, path, body, answer, role, flags, doc) VMM_ROUTE_##symbol,
#include "schema/vmm_routes.def"
#undef ROUTE
    VMM_ROUTE_COUNT
};
extern const struct route_table vmm_route_table;

#endif
