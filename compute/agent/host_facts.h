/* What a host is: processors, memory, room for disks, which boot, what its /dev/kvm can do. Blocking but short. */
#ifndef COMPUTE_AGENT_HOST_FACTS_H
#define COMPUTE_AGENT_HOST_FACTS_H

#include "common/base.h"
#include "common/error.h"

struct host_facts {
    uint32_t cpus;         /* online */
    uint64_t memory_bytes; /* MemTotal */
    uint64_t disk_bytes;   /* size of the file system that holds the data directory: does not change as it fills */
    uint64_t disk_free_bytes;
    char boot_id[40]; /* /proc/sys/kernel/random/boot_id */
    char kvm[8];      /* "vmx", "svm", "other", or "none": /dev/kvm cannot be opened */
};

int host_facts_boot_id(char ret_boot_id[40]);
/* <0: not even the boot id can be read; what else cannot be found out is 0 or "none". */
int host_facts_read(const char *data_dir, struct host_facts *ret_facts, struct error *err);

#endif
