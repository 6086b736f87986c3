/* Which CPU models the processors of this host can be: only the VMM knows, so it is asked. */
#ifndef COMPUTE_AGENT_CPU_BASELINE_H
#define COMPUTE_AGENT_CPU_BASELINE_H

#include "common/base.h"
#include "schema/objects.h"

#define CPU_BASELINE_ASK_MS 3000 /* for the VMM to answer */

/* The highest named model, by `@vmm_path --cpu-baseline`; cpu_kind_HOST (and a line in the log) where it does not say.
 * Blocks for CPU_BASELINE_ASK_MS at most. */
enum cpu_kind cpu_baseline_ask(const char *vmm_path);

#endif
