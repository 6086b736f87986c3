/* Foreign disk formats to raw, by qemu-img (Debian's qemu-utils) behind walls: what strangers made is read by a parser with
 * a long history of holes, so it gets nothing that is worth having.
 *
 *   user        a number of its own, no capabilities, no_new_privs
 *   files       a mount namespace with /usr (read-only), the source (read-only) and the target; nothing else
 *   network     a namespace of its own, with nothing in it
 *   calls       no processes, no sockets but Unix ones, no mounts, namespaces, tracing, keys, kernel modules, BPF (seccomp)
 *   limits      memory, processor time, size of what it writes, open files; and silence ends it
 *
 * Formats are named, never probed. What refers to other files is refused here, by the header and by what qemu-img info
 * says, before anything is converted; behind the walls it could open none. Blocking; root only; in a child of the agent
 * (task_child.h), with which it ends. */
#ifndef COMPUTE_AGENT_IMAGE_CONVERT_H
#define COMPUTE_AGENT_IMAGE_CONVERT_H

#include <sys/types.h>

#include "common/base.h"
#include "common/error.h"
#include "schema/objects.h"

#define IMAGE_CONVERT_PROGRAM "/usr/bin/qemu-img"
#define IMAGE_CONVERT_MEMORY_BYTES_MAX (UINT64_C(2) << 30) /* of address space */
#define IMAGE_CONVERT_CPU_S 14400u
#define IMAGE_CONVERT_SILENCE_S 600u                       /* without any progress */
#define IMAGE_CONVERT_SIZE_BYTES_MAX UINT64_C(70368744177664) /* of a disk, as in vm_disk */
#define IMAGE_CONVERT_HEADER_BYTES 1024u
#define IMAGE_CONVERT_INFO_BYTES_MAX (256u * 1024)

struct image_convert {
    enum image_format format; /* qcow2, vmdk, vhdx */
    const char *source;       /* absolute */
    uint64_t offset, size;    /* of the disk in it; size 0: all of it */
    const char *target;       /* absolute; made here */
    const char *root;         /* an empty directory, which the walls are built in */
    uid_t user;
    void (*progress)(unsigned permille, void *arg); /* may be NULL */
    void *arg;
};

/* Makes @target: the raw disk, with holes. The caller removes it after a failure.
 * -ENOTSUP: a feature that is refused; -EBADMSG: not of that format, or damaged; -ENOSPC; -ETIME; -ENOENT: no qemu-img. */
int image_convert_run(const struct image_convert *convert, uint64_t *ret_size_bytes, struct error *err);

/* The calls that are forbidden behind the walls, to the caller and all that it executes: qemu-img makes threads, and no processes.
 * -errno. */
int image_convert_forbid_calls(void);

/* Is @header (the first bytes of the disk, at most IMAGE_CONVERT_HEADER_BYTES) of @format, without anything that is
 * refused? Pure. */
int image_convert_check_header(enum image_format format, const uint8_t *header, size_t size, struct error *err);
/* The disk's size out of what `qemu-img info --output=json` said, unless that tells of anything that is refused. Pure. */
int image_convert_check_info(enum image_format format, const char *text, size_t size, uint64_t *ret_size_bytes,
                             struct error *err);

#endif
