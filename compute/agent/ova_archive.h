/* OVA files: a tar archive (POSIX.1 ustar, as DMTF DSP0243 asks for) whose OVF description names the disk. Nothing is
 * unpacked: the answer is where in the archive the one vmdk lies.
 *
 * Refused in words: what is no tar, entries with names that are too clever (links, directories in them), more or fewer than
 * one disk, disks that are not a file of the archive, compressed or cut in pieces. Every byte is a stranger's. */
#ifndef COMPUTE_AGENT_OVA_ARCHIVE_H
#define COMPUTE_AGENT_OVA_ARCHIVE_H

#include "common/base.h"
#include "common/error.h"

#define OVA_ENTRIES_MAX 256u
#define OVA_NAME_BYTES_MAX 100u
#define OVA_OVF_BYTES_MAX (1u << 20)

struct ova_entry {
    char name[OVA_NAME_BYTES_MAX + 1];
    uint64_t offset, size; /* of its content in the archive */
};

/* One header of 512 bytes. 1: an entry (a plain file), offset not set; 0: something to pass over, only size is set;
 * -ENODATA: the end of the archive; -EBADMSG: damage; -ENOTSUP. */
int ova_tar_header(const uint8_t header[512], struct ova_entry *ret_entry, struct error *err);
/* The file that @ovf says the one disk is. @ret_name: OVA_NAME_BYTES_MAX + 1 bytes. */
int ova_disk_name(const char *ovf, size_t size, char *ret_name, struct error *err);

/* The disk in an archive that @read reads: 0 when all @size bytes at @offset are in @data, else negative errno. Pure but
 * for that. */
typedef int (*ova_read)(void *data, size_t size, uint64_t offset, void *arg);
int ova_find_disk(ova_read read, void *arg, uint64_t archive_size, struct ova_entry *ret_disk, struct error *err);

#endif
