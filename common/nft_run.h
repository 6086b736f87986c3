/* One run of `nft -f -`: a transaction of packet rules, which the kernel takes whole or not at all. Blocks until nft has ended. */
#ifndef COMMON_NFT_RUN_H
#define COMMON_NFT_RUN_H

#include "common/base.h"
#include "common/error.h"

/* @text: nft's own language, or its JSON. -ENOENT: there is no nft here; -ETIMEDOUT: it was killed after @deadline_ms; -EIO:
 * it refused, with its first line of words. Any thread. */
int nft_run(const void *text, size_t size, bool json, int deadline_ms, struct error *err);

#endif
