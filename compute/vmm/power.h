/* How a device tells the machine that the guest wants to be off or to begin anew. */
#ifndef COMPUTE_VMM_POWER_H
#define COMPUTE_VMM_POWER_H

enum power_request { POWER_OFF, POWER_RESET };
/* From a vCPU thread with the device lock held; returns at once. The vCPUs are told to stop, and the machine acts. */
typedef void (*power_fn)(void *arg, enum power_request request);

#endif
