/* Orders as agents of older versions can read them: a word that such a one does not know makes it read nothing of all that it is to do. */
#ifndef CONTROLLER_NODES_ORDERS_OLDER_H
#define CONTROLLER_NODES_ORDERS_OLDER_H

#include "schema/objects.h"

/* For an agent that does not know pools of kind rbd. It gets no VM or volume there by itself; this is about one that went back to an older
 * version and had some: of such a VM's order the pool is left out, so that it refuses to start it ("which the order does not describe"), and
 * volumes there wait for a newer one. */
void orders_without_rbd(struct node_orders *orders);

#endif
