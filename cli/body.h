/* Options to JSON, driven by the schema's tables: every field that a user may set is an option.
 *
 *   memory_bytes  --memory 512MiB        labels  --label tier=web (repeat)
 *   ha            --ha, --ha=false        disks   --disk name=data,size=10GiB (repeat)
 *   kernel        --kernel /srv/vmlinuz   (a local path: its file:// URL and SHA-256 are filled in) */
#ifndef CLI_BODY_H
#define CLI_BODY_H

#include <jansson.h>

#include "cli/invocation.h"

/* The body for a new object of @desc; the caller decrefs. -EINVAL names the option and the cure. */
int body_build(const struct invocation *call, const struct object_desc *desc, json_t **ret, struct error *err);
/* The body for a change of @held, an object of @desc as the cluster shows it: what is said of its labels is laid over those
 * that it has; a list is what is given. An empty object serves where body_change_needs_held() says no: neither labels nor a list
 * are given. The caller decrefs. -EINVAL: as above, or there is nothing to change. */
int body_build_change(const struct invocation *call, const struct object_desc *desc, const json_t *held, json_t **ret,
                      struct error *err);
bool body_change_needs_held(const struct invocation *call, const struct object_desc *desc);
/* One item of a list, "network=lan,queues=2", by the fields of @desc; the caller decrefs. */
int body_object(const struct object_desc *desc, const char *option, const char *value, json_t **ret, struct error *err);
/* Is @option one of the fields' (for the parser)? */
bool body_has_option(const struct object_desc *desc, const char *option);
bool body_option_is_flag(const struct object_desc *desc, const char *option);
/* Name of the option of a field, without "--"; returns @buffer. */
const char *body_option_name(const struct field_desc *field, char *buffer, size_t size);
void body_help(const struct object_desc *desc, bool patch);
/* "512MiB", "2G", "1048576" to bytes. */
int size_parse(const char *text, uint64_t *ret_bytes);

#endif
