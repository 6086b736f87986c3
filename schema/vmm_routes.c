/* The route table of a VMM's control socket. */
#include "schema/vmm_routes.h"

#define LOCAL ROUTE_LOCAL
#define LIST ROUTE_LIST
#define FORCE ROUTE_FORCE
static const struct route_desc routes[VMM_ROUTE_COUNT] = {
#define ROUTE(symbol, method, path, body, answer, role, flags, doc)                                                  \
    [VMM_ROUTE_##symbol] = {VMM_ROUTE_##symbol, #symbol,      ROUTE_##method, path, &body##_desc,                    \
                            &answer##_desc,     ROUTE_##role, flags,          doc},
#include "schema/vmm_routes.def"
#undef ROUTE
};
const struct route_table vmm_route_table = {"Drover VMM", routes, VMM_ROUTE_COUNT, false};
