/* KVM's ioctls as far as kvm.c makes them (Documentation/virt/kvm/api.rst), and the processor of a guest in C. */
#include "compute/vmm/accel_none.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "compute/vmm/kvm.h"
#include "compute/vmm/memory.h"
#include "compute/vmm/script_guest.h"

enum { SLOTS = 32, ATTACHED_MAX = 256, BELLS_MAX = 256, LINES = 24, VECTORS = 256 };
enum { RUN_BYTES = 8192, RUN_DATA = 4096, TSC_KHZ = 1000000, WAIT_MS = 10 };
enum { ADDRESS_BITS = 40, NS_PER_MS = 1000000 };

struct slot {
    uint64_t gpa, size;
    uint8_t *host;
    bool logging;
    uint64_t *dirty;   /* one bit for each page, since the log was fetched */
    uint64_t *written; /* the same, of the step under way: it may write to them until it ends */
};
struct attached {
    uint32_t gsi;
    int fd;
};
struct bell {
    uint64_t address;
    bool ports;
    int fd;
};

/* What is kept as it was given: by the request that gives it back. */
struct kept {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_xcrs xcrs;
    struct kvm_debugregs debugregs;
    struct kvm_lapic_state lapic;
    struct kvm_mp_state mp_state;
    struct kvm_vcpu_events events;
    uint64_t tsc;
    struct kvm_xsave xsave; /* last: there may be more of it, here there is not */
};

enum turn { TURN_IDLE, TURN_STEP, TURN_EXIT };

/* vCPU 0's processor. `turn` and what follows are guarded by lock; the thread has it while it waits. */
struct script {
    struct accel_none *accel;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum turn turn;
    bool ending, tick;
    struct kvm_run exit; /* in TURN_EXIT: what to return from KVM_RUN */
    uint64_t value;      /* of the access; of a read, once it is done */
    uint64_t tick_at_ns; /* 0: not known yet */
    bool pending[VECTORS];
    uint8_t nowhere[MEMORY_PAGE_BYTES];
};

struct accel_none {
    pthread_mutex_t lock; /* guards what is set from several threads: all but `kept` and `script` */
    struct slot slots[SLOTS];
    struct kvm_route routes[IRQ_GSI_MAX];
    struct attached attached[ATTACHED_MAX];
    unsigned attached_count;
    struct bell bells[BELLS_MAX];
    unsigned bell_count;
    bool lines[LINES];
    bool sent[VECTORS]; /* messages that came by KVM_SIGNAL_MSI */
    struct kvm_irqchip chips[3];
    struct kvm_pit_state2 pit;
    int64_t clock_offset_ns;
    struct kept *kept[KVM_VCPUS_MAX];
    struct script script;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int no(int error)
{
    errno = error;
    return -1;
}

/* ---- memory ---- */

static int memory_set(struct accel_none *a, const struct kvm_userspace_memory_region *r)
{
    if (r->slot >= SLOTS)
        return no(EINVAL);
    struct slot *slot = &a->slots[r->slot];
    bool logging = r->memory_size != 0 && (r->flags & KVM_MEM_LOG_DIRTY_PAGES) != 0;
    if (slot->dirty == NULL || slot->size != r->memory_size) {
        free(slot->dirty);
        free(slot->written);
        slot->dirty = xcalloc(r->memory_size / MEMORY_PAGE_BYTES / 64 + 1, sizeof(uint64_t));
        slot->written = xcalloc(r->memory_size / MEMORY_PAGE_BYTES / 64 + 1, sizeof(uint64_t));
    }
    slot->gpa = r->guest_phys_addr;
    slot->size = r->memory_size;
    slot->host = (uint8_t *)(uintptr_t)r->userspace_addr; /* NOLINT: KVM's interface */
    slot->logging = logging;
    return 0;
}

static int dirty_get(struct accel_none *a, const struct kvm_dirty_log *log)
{
    if (log->slot >= SLOTS || !a->slots[log->slot].logging)
        return no(ENOENT);
    struct slot *slot = &a->slots[log->slot];
    size_t words = (slot->size / MEMORY_PAGE_BYTES + 63) / 64;
    for (size_t i = 0; i < words; i++) {
        ((uint64_t *)log->dirty_bitmap)[i] = slot->dirty[i] | slot->written[i];
        slot->dirty[i] = 0;
    }
    return 0;
}

/* A page counts as written after the write, not before: else one that is fetched in between would be sent as it was. */
static void written_settle(struct accel_none *a)
{
    pthread_mutex_lock(&a->lock);
    for (unsigned i = 0; i < SLOTS; i++) {
        struct slot *slot = &a->slots[i];
        for (size_t n = 0; slot->size != 0 && n < (slot->size / MEMORY_PAGE_BYTES + 63) / 64; n++) {
            slot->dirty[n] |= slot->logging ? slot->written[n] : 0;
            slot->written[n] = 0;
        }
    }
    pthread_mutex_unlock(&a->lock);
}

void *script_memory(struct script *s, uint64_t gpa, uint64_t size, bool write)
{
    struct accel_none *a = s->accel;
    uint8_t *found = NULL;
    pthread_mutex_lock(&a->lock);
    for (unsigned i = 0; i < SLOTS && found == NULL; i++) {
        struct slot *slot = &a->slots[i];
        if (gpa < slot->gpa || gpa - slot->gpa >= slot->size || slot->size - (gpa - slot->gpa) < size)
            continue;
        found = slot->host + (gpa - slot->gpa);
        for (uint64_t page = (gpa - slot->gpa) / MEMORY_PAGE_BYTES;
             write && page <= (gpa - slot->gpa + size - 1) / MEMORY_PAGE_BYTES; page++)
            slot->written[page / 64] |= 1ull << (page % 64);
    }
    pthread_mutex_unlock(&a->lock);
    if (found != NULL)
        return found;
    ASSERT(size <= sizeof(s->nowhere)); /* the program's own numbers */
    script_triple_fault(s);
    return s->nowhere;
}

/* ---- interrupts and doorbells ---- */

static int routes_set(struct accel_none *a, const struct kvm_irq_routing *table)
{
    memset(a->routes, 0, sizeof(a->routes));
    for (uint32_t i = 0; i < table->nr; i++) {
        const struct kvm_irq_routing_entry *e = &table->entries[i];
        if (e->type == KVM_IRQ_ROUTING_MSI && e->gsi < IRQ_GSI_MAX)
            a->routes[e->gsi] = (struct kvm_route){true, e->u.msi.address_lo, e->u.msi.data};
    }
    return 0;
}

static int irqfd_set(struct accel_none *a, const struct kvm_irqfd *irqfd)
{
    if (!(irqfd->flags & KVM_IRQFD_FLAG_DEASSIGN)) {
        if (a->attached_count == ATTACHED_MAX)
            return no(ENOSPC);
        a->attached[a->attached_count++] = (struct attached){irqfd->gsi, (int)irqfd->fd};
        return 0;
    }
    for (unsigned i = 0; i < a->attached_count; i++)
        if (a->attached[i].gsi == irqfd->gsi && a->attached[i].fd == (int)irqfd->fd) {
            a->attached[i] = a->attached[--a->attached_count];
            return 0;
        }
    return no(ENOENT);
}

static int bell_set(struct accel_none *a, const struct kvm_ioeventfd *bell)
{
    bool ports = (bell->flags & KVM_IOEVENTFD_FLAG_PIO) != 0;
    if (!(bell->flags & KVM_IOEVENTFD_FLAG_DEASSIGN)) {
        if (a->bell_count == BELLS_MAX)
            return no(ENOSPC);
        a->bells[a->bell_count++] = (struct bell){bell->addr, ports, bell->fd};
        return 0;
    }
    for (unsigned i = 0; i < a->bell_count; i++)
        if (a->bells[i].address == bell->addr && a->bells[i].fd == bell->fd && a->bells[i].ports == ports) {
            a->bells[i] = a->bells[--a->bell_count];
            return 0;
        }
    return no(ENOENT);
}

static bool bell_ring(struct accel_none *a, uint64_t address, bool ports)
{
    uint64_t one = 1;
    int fd = -1;
    pthread_mutex_lock(&a->lock);
    for (unsigned i = 0; i < a->bell_count; i++)
        if (a->bells[i].address == address && a->bells[i].ports == ports)
            fd = a->bells[i].fd;
    if (fd >= 0) {
        ssize_t n UNUSED = write(fd, &one, sizeof(one)); /* with the lock: it is not detached meanwhile */
    }
    pthread_mutex_unlock(&a->lock);
    return fd >= 0;
}

/* What has come since the last time, to script.pending. True if there is anything to do. */
static bool interrupts_gather(struct accel_none *a)
{
    struct script *s = &a->script;
    bool any = false;
    pthread_mutex_lock(&a->lock);
    for (unsigned i = 0; i < a->attached_count; i++) {
        const struct kvm_route *route = &a->routes[a->attached[i].gsi % IRQ_GSI_MAX];
        uint64_t count;
        if (read(a->attached[i].fd, &count, sizeof(count)) != sizeof(count)) /* they do not block */
            continue;
        if (route->used)
            s->pending[route->data % VECTORS] = any = true;
    }
    for (unsigned i = 0; i < VECTORS; i++)
        if (a->sent[i]) {
            a->sent[i] = false;
            s->pending[i] = any = true;
        }
    for (unsigned i = 0; i < LINES; i++)
        any = any || (a->lines[i] && i == 9); /* the SCI; the program polls the rest */
    pthread_mutex_unlock(&a->lock);
    return any;
}

/* Until an irqfd is written, a signal comes, or @ms have passed. -EINTR. */
static int interrupts_wait(struct accel_none *a, unsigned ms)
{
    struct pollfd fds[ATTACHED_MAX];
    unsigned count = 0;
    pthread_mutex_lock(&a->lock);
    for (; count < a->attached_count; count++)
        fds[count] = (struct pollfd){.fd = a->attached[count].fd, .events = POLLIN};
    pthread_mutex_unlock(&a->lock);
    return poll(fds, count, (int)ms) < 0 ? -errno : 0;
}

bool script_take_interrupt(struct script *s, uint8_t *ret_vector)
{
    for (unsigned i = 0; i < VECTORS; i++)
        if (s->pending[i]) {
            s->pending[i] = false;
            *ret_vector = (uint8_t)i;
            return true;
        }
    return false;
}

bool script_line_is_high(struct script *s, unsigned line)
{
    pthread_mutex_lock(&s->accel->lock);
    bool high = line < LINES && s->accel->lines[line];
    pthread_mutex_unlock(&s->accel->lock);
    return high;
}

/* ---- the processor: the guest's side ---- */

/* Leave the guest with s->exit, and come back when it has been dealt with. */
static void exit_and_wait(struct script *s)
{
    pthread_mutex_lock(&s->lock);
    s->turn = TURN_EXIT;
    pthread_cond_broadcast(&s->changed);
    while (s->turn == TURN_EXIT && !s->ending)
        pthread_cond_wait(&s->changed, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

static uint64_t port(struct script *s, uint16_t number, unsigned size, bool out, uint64_t value)
{
    if (out && bell_ring(s->accel, number, true))
        return 0;
    s->value = value;
    s->exit = (struct kvm_run){.exit_reason = KVM_EXIT_IO};
    s->exit.io.direction = out ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
    s->exit.io.size = (uint8_t)size;
    s->exit.io.port = number;
    s->exit.io.count = 1;
    s->exit.io.data_offset = RUN_DATA;
    exit_and_wait(s);
    return s->value;
}

static uint64_t touch(struct script *s, uint64_t address, unsigned size, bool write, uint64_t value)
{
    if (write && bell_ring(s->accel, address, false))
        return 0;
    s->exit = (struct kvm_run){.exit_reason = KVM_EXIT_MMIO};
    s->exit.mmio.phys_addr = address;
    s->exit.mmio.len = size;
    s->exit.mmio.is_write = write;
    memcpy(s->exit.mmio.data, &value, sizeof(value));
    exit_and_wait(s);
    return s->value;
}

uint64_t script_in(struct script *s, uint16_t number, unsigned size)
{
    return port(s, number, size, false, 0);
}

void script_out(struct script *s, uint16_t number, unsigned size, uint64_t value)
{
    port(s, number, size, true, value);
}

uint64_t script_load(struct script *s, uint64_t address, unsigned size)
{
    return touch(s, address, size, false, 0);
}

void script_store(struct script *s, uint64_t address, unsigned size, uint64_t value)
{
    touch(s, address, size, true, value);
}

void script_triple_fault(struct script *s)
{
    s->exit = (struct kvm_run){.exit_reason = KVM_EXIT_SHUTDOWN};
    exit_and_wait(s);
}

static void *script_main(void *arg)
{
    struct script *s = arg;
    struct kvm_regs *regs = &s->accel->kept[0]->regs;
    pthread_mutex_lock(&s->lock);
    while (!s->ending) {
        if (s->turn != TURN_STEP) {
            pthread_cond_wait(&s->changed, &s->lock);
            continue;
        }
        bool tick = s->tick;
        pthread_mutex_unlock(&s->lock);
        if (regs->rip != SCRIPT_RIP) {
            regs->rip = SCRIPT_RIP;
            script_guest_boot(s, regs->rbx);
        } else {
            script_guest_step(s, tick);
        }
        written_settle(s->accel);
        pthread_mutex_lock(&s->lock);
        s->turn = TURN_IDLE;
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* ---- the processor: KVM_RUN's side ---- */

/* What the exit asked for is in @run now. */
static void exit_take_back(struct script *s, const struct kvm_run *run)
{
    s->value = 0;
    if (s->exit.exit_reason == KVM_EXIT_IO)
        memcpy(&s->value, (const uint8_t *)run + RUN_DATA, s->exit.io.size);
    else if (s->exit.exit_reason == KVM_EXIT_MMIO)
        memcpy(&s->value, run->mmio.data, s->exit.mmio.len);
}

static void exit_hand_out(const struct script *s, struct kvm_run *run)
{
    run->exit_reason = s->exit.exit_reason;
    if (run->exit_reason == KVM_EXIT_IO) {
        run->io = s->exit.io;
        memcpy((uint8_t *)run + RUN_DATA, &s->value, sizeof(s->value));
    } else if (run->exit_reason == KVM_EXIT_MMIO) {
        run->mmio = s->exit.mmio;
    }
}

/* The next step, if there is a reason for one. With the lock held. */
static bool step_begin(struct accel_none *a)
{
    struct script *s = &a->script;
    uint64_t now = now_ns(), period = (uint64_t)SCRIPT_TICK_MS * NS_PER_MS;
    bool begun = a->kept[0]->regs.rip == SCRIPT_RIP;
    if (!begun || s->tick_at_ns == 0 || now > s->tick_at_ns + period) /* it stood still: its time does not run on */
        s->tick_at_ns = now + period;
    s->tick = begun && now >= s->tick_at_ns;
    if (!interrupts_gather(a) && begun && !s->tick)
        return false;
    if (s->tick)
        s->tick_at_ns += period;
    s->turn = TURN_STEP;
    pthread_cond_broadcast(&s->changed);
    return true;
}

static int run_script(struct accel_none *a, struct kvm_run *run)
{
    struct script *s = &a->script;
    int code = 1; /* not yet */
    pthread_mutex_lock(&s->lock);
    if (s->turn == TURN_EXIT) {
        exit_take_back(s, run);
        s->turn = TURN_STEP;
        pthread_cond_broadcast(&s->changed);
    }
    while (code == 1) {
        if (s->turn == TURN_EXIT) {
            exit_hand_out(s, run);
            code = 0;
        } else if (s->turn == TURN_STEP) {
            pthread_cond_wait(&s->changed, &s->lock);
        } else if (__atomic_load_n(&run->immediate_exit, __ATOMIC_ACQUIRE)) {
            code = -EINTR;
        } else if (!step_begin(a)) {
            pthread_mutex_unlock(&s->lock);
            interrupts_wait(a, WAIT_MS); /* a signal shows in immediate_exit */
            pthread_mutex_lock(&s->lock);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return code < 0 ? no(-code) : 0;
}

static int run_vcpu(struct accel_none *a, const struct kvm_vcpu *vcpu)
{
    if (vcpu->id == 0)
        return run_script(a, vcpu->run);
    while (!__atomic_load_n(&vcpu->run->immediate_exit, __ATOMIC_ACQUIRE))
        poll(NULL, 0, WAIT_MS);
    return no(EINTR);
}

/* ---- what is asked of a vCPU ---- */

static int vcpu_make(struct accel_none *a, uint32_t id)
{
    struct script *s = &a->script;
    if (id >= KVM_VCPUS_MAX || a->kept[id] != NULL)
        return no(EEXIST);
    a->kept[id] = NEW(struct kept);
    a->kept[id]->mp_state.mp_state = id == 0 ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_UNINITIALIZED;
    if (id != 0)
        return 0;
    int code = pthread_create(&s->thread, NULL, script_main, s);
    if (code != 0)
        return no(code);
    s->started = true;
    pthread_setname_np(s->thread, "guest");
    return 0;
}

void accel_none_vcpu_finish(struct accel_none *a, const struct kvm_vcpu *vcpu)
{
    struct script *s = &a->script;
    if (vcpu->id == 0 && s->started) {
        pthread_mutex_lock(&s->lock);
        s->ending = true;
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
        s->started = false;
    }
    free(TAKE_PTR(a->kept[vcpu->id]));
}

static int msrs(struct kept *kept, struct kvm_msrs *list, bool set)
{
    uint32_t done = 0;
    for (; done < list->nmsrs && list->entries[done].index == 0x10; done++)
        if (set)
            kept->tsc = list->entries[done].data;
        else
            list->entries[done].data = kept->tsc;
    return (int)done;
}

static int ask_vcpu(struct accel_none *a, const struct kvm_vcpu *vcpu, unsigned long request, void *argument)
{
    struct kept *k = a->kept[vcpu->id];
    const struct {
        unsigned long get, set;
        void *at;
        size_t size;
    } plain[] = {
        {KVM_GET_REGS, KVM_SET_REGS, &k->regs, sizeof(k->regs)},
        {KVM_GET_SREGS, KVM_SET_SREGS, &k->sregs, sizeof(k->sregs)},
        {KVM_GET_XCRS, KVM_SET_XCRS, &k->xcrs, sizeof(k->xcrs)},
        {KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, &k->debugregs, sizeof(k->debugregs)},
        {KVM_GET_LAPIC, KVM_SET_LAPIC, &k->lapic, sizeof(k->lapic)},
        {KVM_GET_MP_STATE, KVM_SET_MP_STATE, &k->mp_state, sizeof(k->mp_state)},
        {KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, &k->events, sizeof(k->events)},
        {KVM_GET_XSAVE, KVM_SET_XSAVE, &k->xsave, sizeof(k->xsave)},
    };
    if (request == KVM_RUN)
        return run_vcpu(a, vcpu);
    for (size_t i = 0; i < ARRAY_SIZE(plain); i++)
        if (request == plain[i].get || request == plain[i].set) {
            bool get = request == plain[i].get;
            memcpy(get ? argument : plain[i].at, get ? plain[i].at : argument, plain[i].size);
            return 0;
        }
    switch (request) {
    case KVM_SET_CPUID2:
    case KVM_KVMCLOCK_CTRL:
        return 0;
    case KVM_GET_TSC_KHZ:
        return TSC_KHZ;
    case KVM_GET_MSRS:
    case KVM_SET_MSRS:
        return msrs(k, argument, request == KVM_SET_MSRS);
    default:
        return no(ENXIO);
    }
}

/* ---- what is asked of KVM and of the VM ---- */

static int check(int capability)
{
    static const int have[] = {KVM_CAP_IRQCHIP,   KVM_CAP_IRQ_ROUTING, KVM_CAP_PIT2,           KVM_CAP_USER_MEMORY, KVM_CAP_IRQFD,
                               KVM_CAP_IOEVENTFD, KVM_CAP_EXT_CPUID,   KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_SIGNAL_MSI};
    for (size_t i = 0; i < ARRAY_SIZE(have); i++)
        if (have[i] == capability)
            return 1;
    return 0;
}

static int cpuid_get(struct kvm_cpuid2 *cpuid)
{
    static const struct kvm_cpuid_entry2 leaves[] = {
        {.function = 0, .eax = 1, .ebx = 0x766f7244, .edx = 0x6e207265, .ecx = 0x20656e6f}, /* "Drover none " */
        {.function = 1},
        {.function = 0x80000000, .eax = 0x80000008},
        {.function = 0x80000008, .eax = ADDRESS_BITS},
    };
    if (cpuid->nent < ARRAY_SIZE(leaves))
        return no(E2BIG);
    memcpy(cpuid->entries, leaves, sizeof(leaves));
    cpuid->nent = ARRAY_SIZE(leaves);
    return 0;
}

static int msr_list_get(struct kvm_msr_list *list)
{
    list->nmsrs = 1;
    list->indices[0] = 0x10; /* the TSC */
    return 0;
}

static int chip(struct accel_none *a, struct kvm_irqchip *argument, bool set)
{
    if (argument->chip_id >= ARRAY_SIZE(a->chips))
        return no(EINVAL);
    struct kvm_irqchip *at = &a->chips[argument->chip_id];
    at->chip_id = argument->chip_id;
    *(set ? at : argument) = *(set ? argument : at);
    return 0;
}

static int clock_data(struct accel_none *a, struct kvm_clock_data *argument, bool set)
{
    if (set)
        a->clock_offset_ns = (int64_t)(argument->clock - now_ns());
    else
        *argument = (struct kvm_clock_data){.clock = now_ns() + (uint64_t)a->clock_offset_ns};
    return 0;
}

static int ask_vm(struct accel_none *a, unsigned long request, void *argument)
{
    switch (request) {
    case KVM_GET_API_VERSION:
        return KVM_API_VERSION;
    case KVM_CHECK_EXTENSION:
        return check((int)(uintptr_t)argument);
    case KVM_GET_VCPU_MMAP_SIZE:
        return RUN_BYTES;
    case KVM_CREATE_VM:
    case KVM_SET_IDENTITY_MAP_ADDR:
    case KVM_SET_TSS_ADDR:
    case KVM_CREATE_IRQCHIP:
    case KVM_CREATE_PIT2:
        return 0;
    case KVM_CREATE_VCPU:
        return vcpu_make(a, (uint32_t)(uintptr_t)argument);
    case KVM_GET_SUPPORTED_CPUID:
        return cpuid_get(argument);
    case KVM_GET_MSR_INDEX_LIST:
        return msr_list_get(argument);
    case KVM_SET_USER_MEMORY_REGION:
        return memory_set(a, argument);
    case KVM_GET_DIRTY_LOG:
        return dirty_get(a, argument);
    case KVM_SET_GSI_ROUTING:
        return routes_set(a, argument);
    case KVM_IRQFD:
        return irqfd_set(a, argument);
    case KVM_IOEVENTFD:
        return bell_set(a, argument);
    case KVM_IRQ_LINE:
        a->lines[((const struct kvm_irq_level *)argument)->irq % LINES] =
            ((const struct kvm_irq_level *)argument)->level != 0;
        return 0;
    case KVM_SIGNAL_MSI:
        a->sent[((const struct kvm_msi *)argument)->data % VECTORS] = true;
        return 1;
    case KVM_GET_IRQCHIP:
    case KVM_SET_IRQCHIP:
        return chip(a, argument, request == KVM_SET_IRQCHIP);
    case KVM_GET_PIT2:
        *(struct kvm_pit_state2 *)argument = a->pit;
        return 0;
    case KVM_SET_PIT2:
        a->pit = *(const struct kvm_pit_state2 *)argument;
        return 0;
    case KVM_GET_CLOCK:
    case KVM_SET_CLOCK:
        return clock_data(a, argument, request == KVM_SET_CLOCK);
    default:
        return no(ENOTTY);
    }
}

int accel_none_ask(struct accel_none *a, const struct kvm_vcpu *vcpu, unsigned long request, void *argument)
{
    if (vcpu != NULL)
        return ask_vcpu(a, vcpu, request, argument);
    pthread_mutex_lock(&a->lock);
    int result = ask_vm(a, request, argument);
    int error = errno;
    pthread_mutex_unlock(&a->lock);
    errno = error;
    return result;
}

struct accel_none *accel_none_create(void)
{
    struct accel_none *a = NEW(struct accel_none);
    pthread_mutex_init(&a->lock, NULL);
    a->script.accel = a;
    pthread_mutex_init(&a->script.lock, NULL);
    pthread_cond_init(&a->script.changed, NULL);
    return a;
}

void accel_none_destroy(struct accel_none *a)
{
    if (a == NULL)
        return;
    for (unsigned i = 0; i < SLOTS; i++) {
        free(a->slots[i].dirty);
        free(a->slots[i].written);
    }
    pthread_mutex_destroy(&a->lock);
    pthread_mutex_destroy(&a->script.lock);
    pthread_cond_destroy(&a->script.changed);
    free(a);
}
