/* The transaction to the kernel; see firewall.h. */
#include "common/nft_run.h"
#include "compute/agent/firewall.h"

int firewall_apply(const void *text, size_t size, struct error *err)
{
    return nft_run(text, size, true, FIREWALL_DEADLINE_MS, err);
}
