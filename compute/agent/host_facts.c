/* Facts about this host; see host_facts.h. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "common/file.h"
#include "compute/agent/host_facts.h"

#define PROC_BYTES_MAX (64 * 1024)

static uint64_t memory_total(void)
{
    CLEANUP_FREE char *text = NULL;
    size_t size;
    uint64_t kib = 0;
    if (file_read("/proc/meminfo", PROC_BYTES_MAX, &text, &size, NULL) < 0)
        return 0;
    const char *at = strstr(text, "MemTotal:");
    return at != NULL && sscanf(at, "MemTotal: %" SCNu64 " kB", &kib) == 1 ? kib * 1024 : 0;
}

/* CPUID leaf 1 ECX bit 5 is VMX (Intel SDM vol. 2A), leaf 0x80000001 ECX bit 2 is SVM (AMD APM vol. 3). */
static const char *kvm_kind(void)
{
    CLEANUP_FD int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return "none";
#if defined(__x86_64__)
    unsigned eax, ebx, ecx, edx;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & (1u << 5)) != 0)
        return "vmx";
    if (__get_cpuid(0x80000001u, &eax, &ebx, &ecx, &edx) && (ecx & (1u << 2)) != 0)
        return "svm";
#endif
    return "other";
}

static int boot_id_read(char ret_boot_id[40], struct error *err)
{
    CLEANUP_FREE char *boot_id = NULL;
    size_t size;
    int r = file_read("/proc/sys/kernel/random/boot_id", PROC_BYTES_MAX, &boot_id, &size, err);
    if (r < 0)
        return r;
    boot_id[strcspn(boot_id, "\n")] = '\0';
    snprintf(ret_boot_id, 40, "%s", boot_id);
    return 0;
}

int host_facts_boot_id(char ret_boot_id[40])
{
    return boot_id_read(ret_boot_id, NULL);
}

int host_facts_read(const char *data_dir, struct host_facts *ret_facts, struct error *err)
{
    struct host_facts facts = {.cpus = 0};
    struct statvfs fs;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    int r = boot_id_read(facts.boot_id, err);
    if (r < 0)
        return r;
    facts.cpus = cpus > 0 ? (uint32_t)cpus : 1;
    facts.memory_bytes = memory_total();
    if (statvfs(data_dir, &fs) == 0) {
        facts.disk_bytes = (uint64_t)fs.f_blocks * fs.f_frsize;
        facts.disk_free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    }
    snprintf(facts.kvm, sizeof(facts.kvm), "%s", kvm_kind());
    *ret_facts = facts;
    return 0;
}
