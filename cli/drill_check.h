/* May a drill be made now? Pure: looks at the lists that the API gave, and says of each condition whether it holds. */
#ifndef CLI_DRILL_CHECK_H
#define CLI_DRILL_CHECK_H

#include <jansson.h>

#include "common/base.h"

/* Lists as of the API, borrowed; @host NULL: the drill concerns no host. */
struct drill_check_input {
    const json_t *cluster, *controllers, *hosts, *vms, *operations;
    const char *host;
    const json_t *loss; /* of @host: what the controllers would do (`drover host loss`); NULL: there is none */
    bool calm;        /* nothing is to fail: one controller is enough, and ha may be disarmed */
    bool needs_ha_vm; /* there must be a VM with ha to watch: on @host, or anywhere */
};

/* An array of {"check", "ok", "detail"}; the caller decrefs. *ret_ok: all hold. */
json_t *drill_check(const struct drill_check_input *input, bool *ret_ok);
/* VMs with ha that run: on @host, or anywhere (NULL). An array of the list's objects; the caller decrefs. */
json_t *drill_check_ha_vms(const json_t *vms, const char *host);
/* The host that is up and runs the fewest VMs with ha, but one; NULL: none runs any. Borrowed from @hosts. */
const char *drill_check_choose_host(const json_t *hosts, const json_t *vms);

#endif
