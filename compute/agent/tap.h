/* Tap interfaces: the host's ends of VMs' network cards, put on bridges. Persistent, so that a VMM that does not run
 * as root can open its own by name, and that an agent's restart changes nothing. Short system calls; any thread. */
#ifndef COMPUTE_AGENT_TAP_H
#define COMPUTE_AGENT_TAP_H

#include <sys/types.h>

#include "common/base.h"
#include "common/error.h"

#define TAP_NAME_SIZE 16 /* IFNAMSIZ, linux/if.h */
#define TAP_INDEX_MAX 7u /* cards of one VM: 0 to 7 */

/* "dv0f8fad5bd9n0": of the VM's id (the first 10 digits) and the card's index, so that no list of them has to be
 * kept. */
void tap_name(const char *vm_id, unsigned index, char buffer[TAP_NAME_SIZE]);
/* Make the tap where it is missing, give it to user @owner, put it on @bridge and up. An existing one is brought into
 * that state, also while a VMM has it open (but for the owner), and also from another bridge: numbers of cards come back. @queues: it has several queues (IFF_MULTI_QUEUE), as whoever opens it has to know. @make_bridge: make a
 * missing bridge too. -ENODEV: there is no such bridge (and words that say the
 * cure); -EPERM: not allowed here. */
int tap_create(const char *name, uid_t owner, const char *bridge, bool queues, bool make_bridge, struct error *err);
/* Remove it; a missing one is fine. -EBUSY: somebody has it open. */
int tap_destroy(const char *name, struct error *err);
bool tap_exists(const char *name);

#endif
