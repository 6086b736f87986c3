/* What cloud-init is told of a VM (NoCloud: meta-data, user-data, network-config version 2), as the files of a seed disk.
 * Text of the user goes into quoted strings only, so that it cannot become other keys. Pure. */
#ifndef COMPUTE_AGENT_SEED_FILES_H
#define COMPUTE_AGENT_SEED_FILES_H

#include "common/bytes.h"
#include "common/error.h"
#include "schema/objects.h"

#define SEED_FILE "seed.img" /* in the VM's directory */

/* Does the VM ask for a seed disk: hostname, ssh_keys or user_data? */
bool seed_files_wanted(const struct vm_order *order);
/* @networks: that of each NIC, NULL for a plain bridge. */
void seed_files_meta_data(const struct vm_order *order, struct bytes_writer *out);
void seed_files_user_data(const struct vm_order *order, struct bytes_writer *out);
/* Addresses of the cluster are told as fixed ones: they hold without anybody's answer. A NIC without any asks by DHCP. */
void seed_files_network_config(const struct vm_order *order, const struct network *const *networks, struct bytes_writer *out);
/* The whole disk. -EFBIG: too much for it. */
int seed_files_image(const struct vm_order *order, const struct network *const *networks, struct bytes_writer *out, struct error *err);

#endif
