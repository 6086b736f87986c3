/* The ioctls. A request that fails tells its name: the reader of a log has nothing else to go by. Every one goes through
 * ask_device, ask_vm or ask_vcpu: without KVM (kvm.none) accel_none.c answers there, and nothing above knows. */
#include "compute/vmm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "compute/vmm/accel_none.h"

/* Three pages for the task state and one for identity paging, which KVM wants on some processors: below the BIOS. */
#define IDENTITY_MAP_GPA KVM_RESERVED_GPA
#define TSS_GPA (KVM_RESERVED_GPA + 0x1000)
#define IOAPIC_PINS 24u

/* All three as ioctl(2). */
static int ask_device(const struct kvm *kvm, unsigned long request, void *argument)
{
    return kvm->none ? accel_none_ask(kvm->none, NULL, request, argument) : ioctl(kvm->device_fd, request, argument);
}

static int ask_vm(const struct kvm *kvm, unsigned long request, void *argument)
{
    return kvm->none ? accel_none_ask(kvm->none, NULL, request, argument) : ioctl(kvm->vm_fd, request, argument);
}

static int ask_vcpu(const struct kvm_vcpu *vcpu, unsigned long request, void *argument)
{
    return vcpu->kvm->none ? accel_none_ask(vcpu->kvm->none, vcpu, request, argument) : ioctl(vcpu->fd, request, argument);
}

static int refused(const char *name, struct error *err)
{
    return error_errno(err, -errno, "KVM refused %s", name);
}

/* One request, again where a signal came between; an error names it. */
#define CALL(ask, of, request, argument, err)                                                                        \
    __extension__({                                                                                                  \
        int result_;                                                                                                 \
        do {                                                                                                         \
            result_ = ask(of, request, (void *)(uintptr_t)(argument));                                               \
        } while (result_ < 0 && errno == EINTR);                                                                     \
        result_ < 0 ? refused(#request, err) : result_;                                                              \
    })
#define CALL_DEVICE(kvm, request, argument, err) CALL(ask_device, kvm, request, argument, err)
#define CALL_VM(kvm, request, argument, err) CALL(ask_vm, kvm, request, argument, err)
#define CALL_VCPU(vcpu, request, argument, err) CALL(ask_vcpu, vcpu, request, argument, err)

/* What KVM says of a capability; 0 where it has not heard of it. */
static int check(const struct kvm *kvm, int capability)
{
    return MAX(ask_device(kvm, KVM_CHECK_EXTENSION, (void *)(uintptr_t)capability), 0);
}

/* ---- the VM ---- */

static const struct {
    int number;
    const char *name;
} capabilities_needed[] = {
    {KVM_CAP_IRQCHIP, "IRQCHIP"},
    {KVM_CAP_IRQ_ROUTING, "IRQ_ROUTING"},
    {KVM_CAP_PIT2, "PIT2"},
    {KVM_CAP_USER_MEMORY, "USER_MEMORY"},
    {KVM_CAP_IRQFD, "IRQFD"},
    {KVM_CAP_IOEVENTFD, "IOEVENTFD"},
    {KVM_CAP_EXT_CPUID, "EXT_CPUID"},
    {KVM_CAP_IMMEDIATE_EXIT, "IMMEDIATE_EXIT"},
    {KVM_CAP_SIGNAL_MSI, "SIGNAL_MSI"},
};

static int device_open(struct kvm *kvm, struct error *err)
{
    if (!kvm->none)
        kvm->device_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (!kvm->none && kvm->device_fd < 0)
        return error_errno(err, -errno, "cannot open /dev/kvm (is KVM there, and may this user use it?)");
    if (ask_device(kvm, KVM_GET_API_VERSION, NULL) != KVM_API_VERSION)
        return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "/dev/kvm does not speak API version %d",
                         KVM_API_VERSION);
    for (size_t i = 0; i < ARRAY_SIZE(capabilities_needed); i++)
        if (check(kvm, capabilities_needed[i].number) <= 0)
            return error_set(err, -ENOTSUP, ERROR_NOT_SUPPORTED, "this host's KVM lacks KVM_CAP_%s",
                             capabilities_needed[i].name);
    int run_bytes = CALL_DEVICE(kvm, KVM_GET_VCPU_MMAP_SIZE, 0, err);
    if (run_bytes < 0)
        return run_bytes;
    kvm->run_bytes = (size_t)run_bytes;
    kvm->can_scale_tsc = check(kvm, KVM_CAP_TSC_CONTROL) > 0;
    return 0;
}

static int manual_dirty_log_enable(struct kvm *kvm, struct error *err)
{
    /* INITIALLY_SET: switching the log on need not write-protect all of a big guest at once. */
    uint64_t wanted = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
    int offered = check(kvm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
    if (offered <= 0 || ((uint64_t)offered & wanted) != wanted)
        return 0;
    struct kvm_enable_cap cap = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = {wanted}};
    int code = CALL_VM(kvm, KVM_ENABLE_CAP, &cap, err);
    kvm->manual_dirty_log = code >= 0;
    return code;
}

static int vm_create(struct kvm *kvm, struct error *err)
{
    uint64_t identity = IDENTITY_MAP_GPA;
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY}; /* port 0x61 is answered by the kernel as well */
    int code = CALL_DEVICE(kvm, KVM_CREATE_VM, 0, err);
    if (code < 0)
        return code;
    if (!kvm->none)
        kvm->vm_fd = code;
    if ((code = CALL_VM(kvm, KVM_SET_IDENTITY_MAP_ADDR, &identity, err)) < 0 ||
        (code = CALL_VM(kvm, KVM_SET_TSS_ADDR, TSS_GPA, err)) < 0 ||
        (code = CALL_VM(kvm, KVM_CREATE_IRQCHIP, 0, err)) < 0 ||
        (code = CALL_VM(kvm, KVM_CREATE_PIT2, &pit, err)) < 0 || (code = manual_dirty_log_enable(kvm, err)) < 0)
        return code;
    int xsave = ask_vm(kvm, KVM_CHECK_EXTENSION, (void *)(uintptr_t)KVM_CAP_XSAVE2);
    kvm->xsave_bytes = (uint32_t)MAX(xsave, (int)sizeof(struct kvm_xsave));
    int nested = ask_vm(kvm, KVM_CHECK_EXTENSION, (void *)(uintptr_t)KVM_CAP_NESTED_STATE);
    kvm->nested_bytes = nested >= (int)sizeof(struct kvm_nested_state) ? (uint32_t)nested : 0;
    return 0;
}

static const struct irq_chip_ops kvm_irq_ops;

int kvm_init(struct kvm *kvm, struct accel_none *none, struct error *err)
{
    memset(kvm, 0, sizeof(*kvm));
    kvm->device_fd = kvm->vm_fd = -1;
    kvm->none = none;
    irq_chip_init(&kvm->irq, &kvm_irq_ops);
    pthread_mutex_init(&kvm->routes_lock, NULL);
    int code = device_open(kvm, err);
    if (code >= 0)
        code = vm_create(kvm, err);
    if (code < 0) {
        kvm_finish(kvm);
        return code;
    }
    return 0;
}

void kvm_finish(struct kvm *kvm)
{
    close_fd(&kvm->vm_fd);
    close_fd(&kvm->device_fd);
    kvm->vm_fd = kvm->device_fd = -1;
    accel_none_destroy(kvm->none);
    kvm->none = NULL;
    pthread_mutex_destroy(&kvm->routes_lock);
}

int kvm_memory_set(struct kvm *kvm, uint32_t slot, uint64_t gpa, uint64_t size, void *host, uint32_t flags,
                   struct error *err)
{
    struct kvm_userspace_memory_region region = {
        .slot = slot, .flags = flags, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (uintptr_t)host};
    return CALL_VM(kvm, KVM_SET_USER_MEMORY_REGION, &region, err);
}

int kvm_dirty_log_get(struct kvm *kvm, uint32_t slot, uint64_t *bitmap, struct error *err)
{
    struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = bitmap};
    int code = CALL_VM(kvm, KVM_GET_DIRTY_LOG, &log, err);
    return code < 0 ? code : 0;
}

int kvm_dirty_log_clear(struct kvm *kvm, uint32_t slot, uint64_t first, uint32_t pages, uint64_t *bitmap,
                        struct error *err)
{
    struct kvm_clear_dirty_log clear = {
        .slot = slot, .num_pages = pages, .first_page = first, .dirty_bitmap = bitmap};
    int code = CALL_VM(kvm, KVM_CLEAR_DIRTY_LOG, &clear, err);
    return code < 0 ? code : 0;
}

int kvm_cpuid_supported(struct kvm *kvm, struct kvm_cpuid2 *ret_cpuid, struct error *err)
{
    ret_cpuid->nent = KVM_CPUID_ENTRIES_MAX;
    return CALL_DEVICE(kvm, KVM_GET_SUPPORTED_CPUID, ret_cpuid, err);
}

int kvm_msr_list(struct kvm *kvm, struct kvm_msr_list *ret_list, struct error *err)
{
    ret_list->nmsrs = KVM_MSRS_MAX;
    return CALL_DEVICE(kvm, KVM_GET_MSR_INDEX_LIST, ret_list, err);
}

unsigned kvm_address_bits(struct kvm *kvm)
{
    CLEANUP_FREE struct kvm_cpuid2 *cpuid =
        xcalloc(1, sizeof(*cpuid) + KVM_CPUID_ENTRIES_MAX * sizeof(cpuid->entries[0]));
    if (kvm_cpuid_supported(kvm, cpuid, NULL) >= 0)
        for (uint32_t i = 0; i < cpuid->nent; i++)
            if (cpuid->entries[i].function == 0x80000008)
                return MIN(cpuid->entries[i].eax & 0xff, 52u);
    return 36; /* what a processor without that leaf has */
}

bool kvm_has_tsc_deadline(struct kvm *kvm)
{
    return check(kvm, KVM_CAP_TSC_DEADLINE_TIMER) > 0;
}

/* ---- interrupts ---- */

static struct kvm *kvm_of(struct irq_chip *chip)
{
    return CONTAINER_OF(chip, struct kvm, irq);
}

/* Pins 0-15 go to a PIC and to the IOAPIC, where pin 2 has line 0 (the timer); pins 16-23 to the IOAPIC alone. */
static void routes_add_pins(struct kvm_irq_routing *table)
{
    for (uint32_t gsi = 0; gsi < IOAPIC_PINS; gsi++) {
        struct kvm_irq_routing_entry *e = &table->entries[table->nr];
        if (gsi < 16 && gsi != 2) {
            *e = (struct kvm_irq_routing_entry){
                .gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = {gsi / 8, gsi % 8}};
            table->nr++;
            e++;
        }
        if (gsi == 2)
            continue;
        *e = (struct kvm_irq_routing_entry){
            .gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = {KVM_IRQCHIP_IOAPIC, gsi == 0 ? 2 : gsi}};
        table->nr++;
    }
}

static int routes_write(struct kvm *kvm, struct error *err)
{
    CLEANUP_FREE struct kvm_irq_routing *table =
        xcalloc(1, sizeof(*table) + (IRQ_GSI_MAX + 2 * IOAPIC_PINS) * sizeof(table->entries[0]));
    routes_add_pins(table);
    for (uint32_t gsi = IRQ_GSI_FIRST; gsi < IRQ_GSI_MAX; gsi++) {
        const struct kvm_route *r = &kvm->routes[gsi];
        if (!r->used)
            continue;
        struct kvm_irq_routing_entry *e = &table->entries[table->nr++];
        *e = (struct kvm_irq_routing_entry){.gsi = gsi, .type = KVM_IRQ_ROUTING_MSI};
        e->u.msi.address_lo = (uint32_t)r->address;
        e->u.msi.address_hi = (uint32_t)(r->address >> 32);
        e->u.msi.data = r->data;
    }
    int code = CALL_VM(kvm, KVM_SET_GSI_ROUTING, table, err);
    return code < 0 ? code : 0;
}

static int route_change(struct kvm *kvm, uint32_t gsi, struct kvm_route route, struct error *err)
{
    int code = 0;
    ASSERT(gsi >= IRQ_GSI_FIRST && gsi < IRQ_GSI_MAX);
    pthread_mutex_lock(&kvm->routes_lock);
    struct kvm_route old = kvm->routes[gsi];
    /* Writing the table waits for all vCPUs to have seen it: a mask and unmask of the same message costs nothing. */
    if (old.used != route.used || old.address != route.address || old.data != route.data) {
        kvm->routes[gsi] = route;
        code = routes_write(kvm, err);
        if (code < 0)
            kvm->routes[gsi] = old;
    }
    pthread_mutex_unlock(&kvm->routes_lock);
    return code;
}

static int kvm_route_msi(struct irq_chip *chip, uint32_t gsi, uint64_t address, uint32_t data, struct error *err)
{
    return route_change(kvm_of(chip), gsi, (struct kvm_route){true, address, data}, err);
}

static int kvm_unroute(struct irq_chip *chip, uint32_t gsi, struct error *err)
{
    return route_change(kvm_of(chip), gsi, (struct kvm_route){0}, err);
}

static int kvm_irqfd(struct kvm *kvm, uint32_t gsi, int fd, uint32_t flags, struct error *err)
{
    struct kvm_irqfd irqfd = {.fd = (uint32_t)fd, .gsi = gsi, .flags = flags};
    return CALL_VM(kvm, KVM_IRQFD, &irqfd, err);
}

static int kvm_attach(struct irq_chip *chip, uint32_t gsi, int fd, struct error *err)
{
    return kvm_irqfd(kvm_of(chip), gsi, fd, 0, err);
}

static int kvm_detach(struct irq_chip *chip, uint32_t gsi, int fd, struct error *err)
{
    return kvm_irqfd(kvm_of(chip), gsi, fd, KVM_IRQFD_FLAG_DEASSIGN, err);
}

static int kvm_line_set(struct irq_chip *chip, uint32_t gsi, bool high)
{
    struct kvm_irq_level level = {.irq = gsi, .level = high};
    return ask_vm(kvm_of(chip), KVM_IRQ_LINE, &level) < 0 ? -errno : 0;
}

static int kvm_msi_send(struct irq_chip *chip, uint64_t address, uint32_t data)
{
    struct kvm_msi msi = {.address_lo = (uint32_t)address, .address_hi = (uint32_t)(address >> 32), .data = data};
    return ask_vm(kvm_of(chip), KVM_SIGNAL_MSI, &msi) < 0 ? -errno : 0;
}

static int kvm_doorbell(struct irq_chip *chip, uint64_t address, unsigned size, bool ports, int fd, uint32_t flags,
                        struct error *err)
{
    struct kvm_ioeventfd bell = {
        .addr = address, .len = size, .fd = fd, .flags = flags | (ports ? KVM_IOEVENTFD_FLAG_PIO : 0)};
    return CALL_VM(kvm_of(chip), KVM_IOEVENTFD, &bell, err);
}

static int kvm_doorbell_attach(struct irq_chip *chip, uint64_t address, unsigned size, bool ports, int fd,
                               struct error *err)
{
    return kvm_doorbell(chip, address, size, ports, fd, 0, err);
}

static int kvm_doorbell_detach(struct irq_chip *chip, uint64_t address, unsigned size, bool ports, int fd,
                               struct error *err)
{
    return kvm_doorbell(chip, address, size, ports, fd, KVM_IOEVENTFD_FLAG_DEASSIGN, err);
}

static const struct irq_chip_ops kvm_irq_ops = {
    .route_msi = kvm_route_msi,
    .unroute = kvm_unroute,
    .attach = kvm_attach,
    .detach = kvm_detach,
    .line_set = kvm_line_set,
    .msi_send = kvm_msi_send,
    .doorbell_attach = kvm_doorbell_attach,
    .doorbell_detach = kvm_doorbell_detach,
};

/* ---- vCPUs ---- */

/* Documentation/virt/kvm/api.rst, 4.133: a header, descriptors with names, and the data, all by offsets in one file. */
static void faults_find(struct kvm_vcpu *vcpu)
{
    static const char *const names[ARRAY_SIZE(vcpu->faults_offset)] = {"pf_fixed", "pf_fast"};
    struct kvm_stats_header head;
    uint8_t one[sizeof(struct kvm_stats_desc) + 256];
    vcpu->stats_fd = ioctl(vcpu->fd, KVM_GET_STATS_FD, NULL);
    bool found = vcpu->stats_fd >= 0 && pread(vcpu->stats_fd, &head, sizeof(head), 0) == (ssize_t)sizeof(head) &&
                 head.name_size > 0 && head.name_size < sizeof(one) - sizeof(struct kvm_stats_desc);
    size_t step = found ? sizeof(struct kvm_stats_desc) + head.name_size : 0;
    for (uint32_t i = 0; found && i < head.num_desc; i++) {
        struct kvm_stats_desc desc;
        memset(one, 0, sizeof(one)); /* its name ends */
        found = pread(vcpu->stats_fd, one, step, (off_t)(head.desc_offset + i * step)) == (ssize_t)step;
        memcpy(&desc, one, sizeof(desc));
        for (size_t n = 0; found && n < ARRAY_SIZE(names); n++)
            if (strcmp((const char *)one + sizeof(desc), names[n]) == 0)
                vcpu->faults_offset[n] = head.data_offset + desc.offset;
    }
    if (!found)
        close_fd(&vcpu->stats_fd);
    vcpu->stats_fd = found ? vcpu->stats_fd : -1;
}

uint64_t kvm_vcpu_faults(const struct kvm_vcpu *vcpu)
{
    uint64_t sum = 0, value;
    for (size_t i = 0; vcpu->stats_fd >= 0 && i < ARRAY_SIZE(vcpu->faults_offset); i++)
        if (vcpu->faults_offset[i] &&
            pread(vcpu->stats_fd, &value, sizeof(value), (off_t)vcpu->faults_offset[i]) == (ssize_t)sizeof(value))
            sum += value;
    return sum;
}

int kvm_vcpu_init(struct kvm_vcpu *vcpu, struct kvm *kvm, uint32_t id, struct error *err)
{
    *vcpu = (struct kvm_vcpu){.kvm = kvm, .fd = -1, .id = id, .stats_fd = -1};
    int fd = CALL_VM(kvm, KVM_CREATE_VCPU, id, err);
    if (fd < 0)
        return fd;
    if (kvm->none) {
        vcpu->run = xcalloc(1, kvm->run_bytes);
        return 0;
    }
    vcpu->fd = fd;
    void *run = mmap(NULL, kvm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (run == MAP_FAILED) {
        int code = error_errno(err, -errno, "cannot map vCPU %u", id);
        kvm_vcpu_finish(vcpu);
        return code;
    }
    vcpu->run = run;
    faults_find(vcpu);
    return 0;
}

void kvm_vcpu_finish(struct kvm_vcpu *vcpu)
{
    if (vcpu->run && vcpu->kvm->none) {
        accel_none_vcpu_finish(vcpu->kvm->none, vcpu);
        free(vcpu->run);
    } else if (vcpu->run) {
        munmap(vcpu->run, vcpu->kvm->run_bytes);
    }
    if (vcpu->stats_fd >= 0)
        close_fd(&vcpu->stats_fd);
    vcpu->stats_fd = -1;
    close_fd(&vcpu->fd);
    vcpu->run = NULL;
    vcpu->fd = -1;
}

int kvm_vcpu_run(struct kvm_vcpu *vcpu)
{
    return ask_vcpu(vcpu, KVM_RUN, NULL) < 0 ? -errno : 0;
}

#define X(name, type, request)                                                                                       \
    int kvm_vcpu_get_##name(struct kvm_vcpu *vcpu, type *ret_##name, struct error *err)                              \
    {                                                                                                                \
        return CALL_VCPU(vcpu, KVM_GET_##request, ret_##name, err);                                                   \
    }                                                                                                                \
    int kvm_vcpu_set_##name(struct kvm_vcpu *vcpu, const type *name, struct error *err)                              \
    {                                                                                                                \
        return CALL_VCPU(vcpu, KVM_SET_##request, name, err);                                                         \
    }
KVM_VCPU_STATE(X)
#undef X

int kvm_vcpu_get_xsave(struct kvm_vcpu *vcpu, void *xsave, struct error *err)
{
    if (vcpu->kvm->xsave_bytes > sizeof(struct kvm_xsave))
        return CALL_VCPU(vcpu, KVM_GET_XSAVE2, xsave, err);
    return CALL_VCPU(vcpu, KVM_GET_XSAVE, xsave, err);
}

int kvm_vcpu_set_xsave(struct kvm_vcpu *vcpu, const void *xsave, struct error *err)
{
    return CALL_VCPU(vcpu, KVM_SET_XSAVE, xsave, err);
}

int kvm_vcpu_set_cpuid(struct kvm_vcpu *vcpu, const struct kvm_cpuid2 *cpuid, struct error *err)
{
    return CALL_VCPU(vcpu, KVM_SET_CPUID2, cpuid, err);
}

/* GET and SET_MSRS stop at the first that is refused and return how many went well. */
static int msrs_result(int done, const struct kvm_msrs *msrs, const char *what, struct error *err)
{
    if (done < 0 || (uint32_t)done == msrs->nmsrs)
        return MIN(done, 0);
    return error_set(err, -EIO, ERROR_INTERNAL, "KVM refused to %s MSR %#x", what, msrs->entries[done].index);
}

int kvm_vcpu_get_msrs(struct kvm_vcpu *vcpu, struct kvm_msrs *msrs, struct error *err)
{
    return msrs_result(CALL_VCPU(vcpu, KVM_GET_MSRS, msrs, err), msrs, "read", err);
}

int kvm_vcpu_set_msrs(struct kvm_vcpu *vcpu, const struct kvm_msrs *msrs, struct error *err)
{
    return msrs_result(CALL_VCPU(vcpu, KVM_SET_MSRS, msrs, err), msrs, "write", err);
}

int kvm_vcpu_get_tsc_khz(struct kvm_vcpu *vcpu, uint32_t *ret_khz, struct error *err)
{
    int khz = CALL_VCPU(vcpu, KVM_GET_TSC_KHZ, 0, err);
    if (khz < 0)
        return khz;
    *ret_khz = (uint32_t)khz;
    return 0;
}

int kvm_vcpu_set_tsc_khz(struct kvm_vcpu *vcpu, uint32_t khz, struct error *err)
{
    return CALL_VCPU(vcpu, KVM_SET_TSC_KHZ, khz, err);
}

int kvm_vcpu_translate(struct kvm_vcpu *vcpu, uint64_t address, uint64_t *ret_gpa, struct error *err)
{
    struct kvm_translation translation = {.linear_address = address};
    int code = CALL_VCPU(vcpu, KVM_TRANSLATE, &translation, err);
    if (code < 0)
        return code;
    if (!translation.valid)
        return -ENOENT;
    *ret_gpa = translation.physical_address;
    return 0;
}

int kvm_vcpu_clock_paused(struct kvm_vcpu *vcpu, struct error *err)
{
    if (ask_vcpu(vcpu, KVM_KVMCLOCK_CTRL, NULL) < 0 && errno != EINVAL)
        return error_errno(err, -errno, "KVM refused KVM_KVMCLOCK_CTRL");
    return 0;
}

static int tsc_offset_call(struct kvm_vcpu *vcpu, unsigned long request, const char *name, uint64_t *offset,
                           struct error *err)
{
    struct kvm_device_attr attr = {
        .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)offset};
    if (ask_vcpu(vcpu, KVM_HAS_DEVICE_ATTR, &attr) < 0)
        return -ENOTSUP;
    int code = ask_vcpu(vcpu, request, &attr);
    return code < 0 ? refused(name, err) : code;
}

int kvm_vcpu_get_tsc_offset(struct kvm_vcpu *vcpu, uint64_t *ret_offset, struct error *err)
{
    return tsc_offset_call(vcpu, KVM_GET_DEVICE_ATTR, "KVM_GET_DEVICE_ATTR of the TSC's offset", ret_offset, err);
}

int kvm_vcpu_set_tsc_offset(struct kvm_vcpu *vcpu, uint64_t offset, struct error *err)
{
    return tsc_offset_call(vcpu, KVM_SET_DEVICE_ATTR, "KVM_SET_DEVICE_ATTR of the TSC's offset", &offset, err);
}

int kvm_vcpu_get_nested(struct kvm_vcpu *vcpu, void *nested, struct error *err)
{
    ((struct kvm_nested_state *)nested)->size = vcpu->kvm->nested_bytes;
    return CALL_VCPU(vcpu, KVM_GET_NESTED_STATE, nested, err);
}

int kvm_vcpu_set_nested(struct kvm_vcpu *vcpu, const void *nested, struct error *err)
{
    return CALL_VCPU(vcpu, KVM_SET_NESTED_STATE, nested, err);
}

/* ---- state of the VM ---- */

int kvm_get_irqchip(struct kvm *kvm, uint32_t chip_id, struct kvm_irqchip *ret_chip, struct error *err)
{
    memset(ret_chip, 0, sizeof(*ret_chip));
    ret_chip->chip_id = chip_id;
    return CALL_VM(kvm, KVM_GET_IRQCHIP, ret_chip, err);
}

int kvm_set_irqchip(struct kvm *kvm, const struct kvm_irqchip *chip, struct error *err)
{
    return CALL_VM(kvm, KVM_SET_IRQCHIP, chip, err);
}

int kvm_get_pit(struct kvm *kvm, struct kvm_pit_state2 *ret_pit, struct error *err)
{
    return CALL_VM(kvm, KVM_GET_PIT2, ret_pit, err);
}

int kvm_set_pit(struct kvm *kvm, const struct kvm_pit_state2 *pit, struct error *err)
{
    return CALL_VM(kvm, KVM_SET_PIT2, pit, err);
}

int kvm_get_clock(struct kvm *kvm, struct kvm_clock_data *ret_clock, struct error *err)
{
    memset(ret_clock, 0, sizeof(*ret_clock));
    return CALL_VM(kvm, KVM_GET_CLOCK, ret_clock, err);
}

int kvm_set_clock(struct kvm *kvm, const struct kvm_clock_data *clock, struct error *err)
{
    return CALL_VM(kvm, KVM_SET_CLOCK, clock, err);
}
