/* Nothing that a guest does is lost or done twice when its vCPU is stopped at any moment, taken out of KVM and put back, as
 * a snapshot or migration does. THREADED. With KVM: skipped where there is none.
 *
 * The guest writes bytes that count to a port, in a loop without end, in two ways: by itself, and from user mode through a
 * system call by INT3, as the test guest of tests/guest does (its entry.S says why). */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "compute/vmm/vcpu.h"
#include "tests/unit/unit_seed.h"

enum { MEMORY_BYTES = 4 << 20, PORT = 0x3f8, ROUNDS = 250, BYTES_A_ROUND_MAX = 60 };
enum { TABLES = 0x1000, IDT = 0x8000, TASK = 0x9000, KERNEL_STACK = 0xc000, USER_STACK = 0xe000, KERNEL = 0x10000, USER = 0x11000 };
enum { KERNEL_CODE = 0x08, USER_CODE = 0x23, USER_DATA = 0x1b, TASK_SELECTOR = 0x28 };

/* mov $PORT, %edx; 1: inc %eax; out %al, %dx; jmp 1b */
static const uint8_t kernel_alone[] = {0xba, 0xf8, 0x03, 0x00, 0x00, 0xff, 0xc0, 0xee, 0xeb, 0xfb};
/* out %al, %dx; iretq */
static const uint8_t kernel_call[] = {0xee, 0x48, 0xcf};
/* jmp 1f; int3 (never run); 1: jmp 1b */
static const uint8_t kernel_hangs[] = {0xeb, 0x01, 0xcc, 0xeb, 0xfe};
/* mov $PORT, %edx; 1: inc %eax; int3; jmp 1b */
static const uint8_t user_loop[] = {0xba, 0xf8, 0x03, 0x00, 0x00, 0xff, 0xc0, 0xcc, 0xeb, 0xfb};

struct world {
    struct guest_memory memory;
    struct kvm kvm;
    struct bus ports, mmio;
    struct vcpu_set vcpus;
    /* The vCPU's thread writes them, the test reads them while it is parked. */
    uint64_t written, wrong;
    uint8_t last, wrong_after, wrong_byte;
};

static void on_byte(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
    struct world *w = arg;
    (void)offset;
    (void)size;
    if ((uint8_t)value != (uint8_t)(w->last + 1) && w->wrong++ == 0) {
        w->wrong_after = w->last;
        w->wrong_byte = (uint8_t)value;
    }
    w->last = (uint8_t)value;
    __atomic_fetch_add(&w->written, 1, __ATOMIC_RELEASE);
}

static void on_event(void *arg, enum vcpu_event event, const char *why)
{
    (void)arg;
    (void)event;
    print_error("%s\n", why);
    abort();
}

static void put(struct world *w, uint64_t at, const void *from, size_t size)
{
    assert_true(memory_write(&w->memory, at, from, size));
}

static void put64(struct world *w, uint64_t at, uint64_t value)
{
    put(w, at, &value, sizeof(value));
}

/* Tables of the first 4 MiB, one to one, for user mode too; INT3 leads to KERNEL. */
static void guest_write(struct world *w)
{
    put64(w, TABLES, TABLES + 0x1007);
    put64(w, TABLES + 0x1000, TABLES + 0x2007);
    put64(w, TABLES + 0x2000, 0x87);
    put64(w, TABLES + 0x2008, 0x200087);
    put64(w, IDT + 16 * 3, (uint64_t)(KERNEL & 0xffff) | KERNEL_CODE << 16 | 0xee00ull << 32 | (uint64_t)(KERNEL >> 16) << 48);
    put64(w, TASK + 4, KERNEL_STACK);
    /* 0x7000: descriptors */
    static const uint64_t gdt[] = {0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff,
                                   0x0000890000000067 | (uint64_t)TASK << 16, 0};
    put(w, 0x7000, gdt, sizeof(gdt));
}

static void state_make(struct vcpu_state *s, bool user)
{
    struct kvm_segment code = {.limit = 0xffffffff, .selector = user ? USER_CODE : KERNEL_CODE, .type = 11, .present = 1,
                               .s = 1, .g = 1, .l = 1, .dpl = user ? 3 : 0};
    struct kvm_segment data = {.limit = 0xffffffff, .selector = USER_DATA, .type = 3, .present = 1, .s = 1, .g = 1, .db = 1, .dpl = 3};
    s->sregs.cs = code;
    s->sregs.ds = s->sregs.es = s->sregs.fs = s->sregs.gs = s->sregs.ss = data;
    if (!user)
        s->sregs.ss = (struct kvm_segment){.limit = 0xffffffff, .selector = 0x10, .type = 3, .present = 1, .s = 1, .g = 1, .db = 1};
    s->sregs.tr = (struct kvm_segment){.base = TASK, .limit = 0x67, .selector = TASK_SELECTOR, .type = 11, .present = 1};
    s->sregs.gdt = (struct kvm_dtable){.base = 0x7000, .limit = 55};
    s->sregs.idt = (struct kvm_dtable){.base = IDT, .limit = 4095};
    s->sregs.cr0 = 0x80050033;
    s->sregs.cr3 = TABLES;
    s->sregs.cr4 = 0x6a0;
    s->sregs.efer = 0xd00;
    s->regs = (struct kvm_regs){.rip = user ? USER : KERNEL, .rsp = user ? USER_STACK : KERNEL_STACK, .rflags = 2};
    s->mp_state.mp_state = KVM_MP_STATE_RUNNABLE;
}

static void world_init(struct world *w, bool user)
{
    struct error err = {0};
    const struct cpu_model *model;
    struct vcpu_state state;
    const struct bus_range range = {.start = PORT, .size = 1, .write = on_byte, .arg = w};
    memset(w, 0, sizeof(*w));
    bus_init(&w->ports, NULL);
    bus_init(&w->mmio, NULL);
    if (bus_add(&w->ports, &range, &err) < 0 || cpu_model_find(NULL, &model, &err) < 0 ||
        memory_init(&w->memory, MEMORY_BYTES, &err) < 0 || kvm_init(&w->kvm, NULL, &err) < 0 ||
        kvm_memory_set(&w->kvm, 0, 0, MEMORY_BYTES, w->memory.host, 0, &err) < 0 ||
        vcpu_set_init(&w->vcpus, &w->kvm, 1, model, false, &w->ports, &w->mmio, on_event, w, &err) < 0)
        fail_msg("%s", err.text);
    guest_write(w);
    put(w, KERNEL, user ? kernel_call : kernel_alone, user ? sizeof(kernel_call) : sizeof(kernel_alone));
    put(w, USER, user_loop, sizeof(user_loop));
    struct kvm_vcpu *v = &w->vcpus.vcpus[0].kvm;
    if (vcpu_state_get(v, w->vcpus.msrs, &state, &err) < 0)
        fail_msg("%s", err.text);
    state_make(&state, user);
    if (vcpu_state_set(v, &state, &err) < 0 || vcpu_set_start(&w->vcpus, &err) < 0)
        fail_msg("%s", err.text);
    vcpu_state_finish(&state);
}

static void world_finish(struct world *w)
{
    vcpu_set_finish(&w->vcpus);
    kvm_finish(&w->kvm);
    memory_finish(&w->memory);
    bus_finish(&w->ports);
    bus_finish(&w->mmio);
}

/* Taken out and put back, which makes KVM forget all that it does not hand out. */
static void there_and_back(struct world *w)
{
    struct error err = {0};
    struct vcpu_state state;
    struct kvm_vcpu *v = &w->vcpus.vcpus[0].kvm;
    if (vcpu_state_get(v, w->vcpus.msrs, &state, &err) < 0 || vcpu_state_set(v, &state, &err) < 0)
        fail_msg("%s", err.text);
    vcpu_state_finish(&state);
}

static void stop_it_again_and_again(bool user)
{
    struct world w;
    srand((unsigned)unit_seed());
    world_init(&w, user);
    w.vcpus.rest_ms = 60000; /* on a slow machine, too */
    vcpu_set_release(&w.vcpus, VCPU_HOLD_START);
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint64_t until = __atomic_load_n(&w.written, __ATOMIC_ACQUIRE) + (uint64_t)(rand() % BYTES_A_ROUND_MAX);
        while (__atomic_load_n(&w.written, __ATOMIC_ACQUIRE) < until)
            usleep(10);
        if (round % 3 == 0) /* the throttle stops it first, without waiting */
            vcpu_set_slow(&w.vcpus, 1);
        vcpu_set_hold_at_rest(&w.vcpus, VCPU_HOLD_MIGRATE, &w.memory);
        there_and_back(&w);
        if (round % 3 == 0)
            vcpu_set_slow(&w.vcpus, 0);
        if (w.wrong)
            fail_msg("round %u: after %u came %u", round, w.wrong_after, w.wrong_byte);
        vcpu_set_release(&w.vcpus, VCPU_HOLD_MIGRATE);
    }
    print_message("%llu bytes\n", (unsigned long long)w.written);
    world_finish(&w);
}

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static bool may_lack_now(struct world *w)
{
    vcpu_set_hold(&w->vcpus, VCPU_HOLD_MIGRATE, true);
    bool lacks = vcpu_state_may_lack_breakpoint(&w->vcpus.vcpus[0].kvm, &w->memory);
    vcpu_set_release(&w->vcpus, VCPU_HOLD_MIGRATE);
    return lacks;
}

static uint64_t hold_takes_ms(struct world *w, unsigned rest_ms)
{
    w->vcpus.rest_ms = rest_ms;
    uint64_t begun_ms = now_ms();
    vcpu_set_hold_at_rest(&w->vcpus, VCPU_HOLD_MIGRATE, &w->memory);
    uint64_t took_ms = now_ms() - begun_ms;
    assert_int_equal(vcpu_set_holds(&w->vcpus), VCPU_HOLD_MIGRATE);
    assert_true(w->vcpus.vcpus[0].parked);
    vcpu_set_release(&w->vcpus, VCPU_HOLD_MIGRATE);
    return took_ms;
}

/* What is looked at is KVM's doing, and when the guest stops: builds with sanitizers would only make it slower. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { WITH_SANITIZER = 1 };
#else
enum { WITH_SANITIZER = 0 };
#endif

static bool kvm_is_here(void)
{
    if (WITH_SANITIZER) {
        print_message("skipped: a build with sanitizers; it is about KVM\n");
        return false;
    }
    if (access("/dev/kvm", R_OK | W_OK) == 0)
        return true;
    print_message("skipped: no /dev/kvm that may be used\n");
    return false;
}

static void no_byte_is_lost(void **state)
{
    (void)state;
    if (!kvm_is_here())
        skip();
    stop_it_again_and_again(false);
}

static void no_call_by_breakpoint_is_lost(void **state)
{
    (void)state;
    if (!kvm_is_here())
        skip();
    stop_it_again_and_again(true);
}

/* It came by a breakpoint and goes round behind something that looks like one for good. */
static void who_never_comes_to_rest_is_held_after_a_limit(void **state)
{
    struct world w;
    (void)state;
    if (!kvm_is_here())
        skip();
    world_init(&w, true);
    put(&w, KERNEL, kernel_hangs, sizeof(kernel_hangs));
    assert_int_equal(w.vcpus.rest_ms, VCPU_REST_MS);
    vcpu_set_release(&w.vcpus, VCPU_HOLD_START);
    bool lacks = false;
    for (unsigned looks = 0; looks < 2000 && !lacks; looks++) {
        usleep(1000);
        lacks = may_lack_now(&w);
    }
    if (!lacks) {
        print_message("skipped: a KVM that never sees the guest's breakpoints\n");
        world_finish(&w);
        skip();
    }
    uint64_t at_once_ms = hold_takes_ms(&w, 0), longer_ms = hold_takes_ms(&w, 700);
    print_message("%llu ms, %llu ms\n", (unsigned long long)at_once_ms, (unsigned long long)longer_ms);
    assert_true(longer_ms >= 700 && longer_ms < 15000); /* how busy the machine is comes on top */
    world_finish(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_byte_is_lost),
        cmocka_unit_test(no_call_by_breakpoint_is_lost),
        cmocka_unit_test(who_never_comes_to_rest_is_held_after_a_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
