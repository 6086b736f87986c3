/*
 * kvm-probe: can this machine's KVM run a stock kernel?
 *
 *     kvm-probe [-q]     exit status 0: yes; 1: no, and the words say why; 2: there is no usable /dev/kvm
 *
 * Having /dev/kvm is not enough. Some of them (KVM inside a cloud guest without nested virtualization, such as PVM)
 * run user code natively and emulate kernel code instruction by instruction; a stock kernel stops there at the first
 * instruction that the emulator lacks, or takes minutes. So the probe runs what a kernel uses early, each in a small
 * VM of its own, in 64-bit mode at privilege level 0: a 16-byte compare-and-exchange, saving and restoring the FPU,
 * a trap and its return, an interrupt from the local APIC, a plain loop against the clock.
 *
 * A guest is one page table, GDT, IDT and the code below at fixed addresses in 2 MiB of memory. It reports success
 * by writing to PORT_DONE; anything else (another exit, an error, the alarm) is the failure of that step.
 */
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define MEMORY_SIZE (2u << 20)
#define GDT_AT 0x1000u
#define IDT_AT 0x2000u
#define PML4_AT 0x3000u
#define PDPT_AT 0x4000u
#define LOW_PD_AT 0x5000u  /* the first GiB */
#define HIGH_PD_AT 0x6000u /* the fourth GiB: the local APIC */
#define STACK_TOP 0x9000u
#define CODE_AT 0x10000u
#define TSS_AT 0xfffbd000u
#define PORT_DONE 0xf4
#define TRAP_VECTOR 3
#define TIMER_VECTOR 0x40
#define CPUID_ENTRIES_MAX 256
#define STEP_LIMIT_S 3
#define LOOP_TURNS 100000
#define LOOP_TURN_NS_MAX 1000 /* native below 1, in the emulated lab 160, instruction by instruction 4000 */

/* The guest's steps. Memory from 0xa000 on is scratch. */
__asm__(".pushsection .rodata\n"
        ".global guest_code, guest_end, guest_start, guest_exchange, guest_fpu, guest_trap, guest_interrupt\n"
        ".global guest_loop, trap_handler, timer_handler\n"
        "guest_code:\n"
        "guest_start:\n"
        "    jmp done\n"
        "guest_exchange:\n"
        "    mov $0xa000, %edi\n"
        "    xor %eax, %eax\n"
        "    xor %edx, %edx\n"
        "    mov $1, %ebx\n"
        "    mov $2, %ecx\n"
        "    lock cmpxchg16b (%rdi)\n"
        "    jne failed\n"
        "    cmpq $2, 8(%rdi)\n"
        "    jne failed\n"
        "    jmp done\n"
        "guest_fpu:\n"
        "    xor %ecx, %ecx\n"
        "    xor %edx, %edx\n"
        "    mov $3, %eax\n" /* x87 and SSE */
        "    xsetbv\n"
        "    mov $0xb000, %edi\n"
        "    xsave64 (%rdi)\n"
        "    xrstor64 (%rdi)\n"
        "    jmp done\n"
        "guest_trap:\n"
        "    xor %r15, %r15\n"
        "    int3\n"
        "    cmp $1, %r15\n"
        "    jne failed\n"
        "    jmp done\n"
        "guest_interrupt:\n"
        "    xor %r15, %r15\n"
        "    mov $0xfee00000, %edi\n"
        "    movl $0x1ff, 0xf0(%rdi)\n"    /* enable the local APIC */
        "    movl $0x40040, 0x300(%rdi)\n" /* TIMER_VECTOR to itself */
        "    sti\n"
        "0:  pause\n"
        "    test %r15, %r15\n"
        "    jz 0b\n"
        "    cli\n"
        "    jmp done\n"
        "guest_loop:\n"
        "    mov $100000, %ecx\n" /* LOOP_TURNS */
        "0:  dec %ecx\n"
        "    jnz 0b\n"
        "    jmp done\n"
        "trap_handler:\n"
        "    inc %r15\n"
        "    iretq\n"
        "timer_handler:\n"
        "    inc %r15\n"
        "    movl $0, 0xb0(%rdi)\n" /* end of interrupt */
        "    iretq\n"
        "done:\n"
        "    out %al, $0xf4\n"
        "failed:\n"
        "    hlt\n"
        "    jmp failed\n"
        "guest_end:\n"
        ".popsection\n");

extern const char guest_code[], guest_end[], guest_start[], guest_exchange[], guest_fpu[], guest_trap[];
extern const char guest_interrupt[], guest_loop[], trap_handler[], timer_handler[];

enum needs { NEEDS_NOTHING, NEEDS_CX16, NEEDS_XSAVE };

static const struct step {
    const char *name;
    const char *entry;
    enum needs needs; /* a kernel does not use what CPUID does not name */
} steps[] = {
    { "64-bit kernel code runs", guest_start, NEEDS_NOTHING },
    { "16-byte compare and exchange (cmpxchg16b)", guest_exchange, NEEDS_CX16 },
    { "saving and restoring the FPU (xsave64, xrstor64)", guest_fpu, NEEDS_XSAVE },
    { "a trap in the kernel and its return (int3, iretq)", guest_trap, NEEDS_NOTHING },
    { "an interrupt from the local APIC", guest_interrupt, NEEDS_NOTHING },
    { "a loop of kernel code", guest_loop, NEEDS_NOTHING },
};

struct machine {
    int vm;
    int vcpu;
    uint8_t *memory;
    struct kvm_run *run;
    size_t run_size;
};

static void on_alarm(int number)
{
    (void)number;
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static struct kvm_cpuid2 *supported_cpuid(int kvm)
{
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + CPUID_ENTRIES_MAX * sizeof cpuid->entries[0]);

    if (cpuid == NULL)
        return NULL;
    cpuid->nent = CPUID_ENTRIES_MAX;
    if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0) {
        free(cpuid);
        return NULL;
    }
    return cpuid;
}

static bool cpuid_has(const struct kvm_cpuid2 *cpuid, enum needs needs)
{
    uint32_t bit = needs == NEEDS_CX16 ? bit_CMPXCHG16B : bit_XSAVE;

    if (needs == NEEDS_NOTHING)
        return true;
    for (uint32_t i = 0; i < cpuid->nent; i++) {
        if (cpuid->entries[i].function == 1)
            return (cpuid->entries[i].ecx & bit) != 0;
    }
    return false;
}

static void write_u64(uint8_t *memory, uint32_t at, uint64_t value)
{
    memcpy(memory + at, &value, sizeof value);
}

static void write_gate(uint8_t *memory, unsigned vector, const char *handler)
{
    uint64_t at = CODE_AT + (uint64_t)(handler - guest_code);

    /* 64-bit interrupt gate, selector 8, present (Intel SDM 3A §6.14.1); the handlers lie below 64 KiB + code */
    write_u64(memory, IDT_AT + vector * 16, (at & 0xffff) | 8u << 16 | 0x8eull << 40 | (at >> 16 & 0xffff) << 48);
    write_u64(memory, IDT_AT + vector * 16 + 8, at >> 32);
}

/* The first and the fourth GiB are mapped one to one, in 2 MiB pages, writable. */
static void fill_memory(uint8_t *memory)
{
    memcpy(memory + CODE_AT, guest_code, (size_t)(guest_end - guest_code));
    write_u64(memory, GDT_AT + 8, 0x00209b0000000000ull);  /* 64-bit code */
    write_u64(memory, GDT_AT + 16, 0x00cf93000000ffffull); /* data */
    write_u64(memory, PML4_AT, PDPT_AT | 3);
    write_u64(memory, PDPT_AT, LOW_PD_AT | 3);
    write_u64(memory, PDPT_AT + 3 * 8, HIGH_PD_AT | 3);
    for (unsigned i = 0; i < 512; i++) {
        write_u64(memory, LOW_PD_AT + i * 8, (uint64_t)i << 21 | 0x83);
        write_u64(memory, HIGH_PD_AT + i * 8, (3ull << 30) + ((uint64_t)i << 21) + 0x83);
    }
    write_gate(memory, TRAP_VECTOR, trap_handler);
    write_gate(memory, TIMER_VECTOR, timer_handler);
}

static bool set_registers(int vcpu, bool with_xsave, const char *entry)
{
    struct kvm_sregs sregs;
    struct kvm_regs regs = {
        .rip = CODE_AT + (uint64_t)(entry - guest_code),
        .rsp = STACK_TOP,
        .rflags = 2,
    };
    struct kvm_segment code = { .selector = 8, .limit = 0xffffffff, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
    struct kvm_segment data = { .selector = 16, .limit = 0xffffffff, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };

    if (ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
        return false;
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.gdt = (struct kvm_dtable){ .base = GDT_AT, .limit = 23 };
    sregs.idt = (struct kvm_dtable){ .base = IDT_AT, .limit = 0xfff };
    sregs.cr3 = PML4_AT;
    sregs.cr0 = 0x80050033;                        /* PG AM WP NE ET MP PE, as Linux has them */
    sregs.cr4 = 0x620 | (with_xsave ? 0x40000 : 0); /* PAE OSFXSR OSXMMEXCPT, OSXSAVE */
    sregs.efer = 0x500;                            /* LME LMA */
    return ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0 && ioctl(vcpu, KVM_SET_REGS, &regs) == 0;
}

static void machine_destroy(struct machine *machine)
{
    if (machine->run != NULL)
        munmap(machine->run, machine->run_size);
    if (machine->vcpu >= 0)
        close(machine->vcpu);
    if (machine->vm >= 0)
        close(machine->vm);
    if (machine->memory != NULL)
        munmap(machine->memory, MEMORY_SIZE);
}

static bool machine_create(struct machine *machine, int kvm, struct kvm_cpuid2 *cpuid, const char *entry)
{
    struct kvm_userspace_memory_region region = { .memory_size = MEMORY_SIZE };
    int run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    void *mapped;

    *machine = (struct machine){ .vm = -1, .vcpu = -1 };
    mapped = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED || run_size <= 0)
        return false;
    machine->memory = mapped;
    fill_memory(machine->memory);
    machine->vm = ioctl(kvm, KVM_CREATE_VM, 0);
    if (machine->vm < 0)
        return false;
    region.userspace_addr = (uint64_t)(uintptr_t)machine->memory;
    if (ioctl(machine->vm, KVM_SET_TSS_ADDR, TSS_AT) < 0 || ioctl(machine->vm, KVM_CREATE_IRQCHIP, 0) < 0 ||
        ioctl(machine->vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
        return false;
    machine->vcpu = ioctl(machine->vm, KVM_CREATE_VCPU, 0);
    if (machine->vcpu < 0 || ioctl(machine->vcpu, KVM_SET_CPUID2, cpuid) < 0)
        return false;
    machine->run_size = (size_t)run_size;
    mapped = mmap(NULL, machine->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, machine->vcpu, 0);
    if (mapped == MAP_FAILED)
        return false;
    machine->run = mapped;
    return set_registers(machine->vcpu, cpuid_has(cpuid, NEEDS_XSAVE), entry);
}

/* Runs the guest to its end. Returns NULL when it reported success, else what happened. */
static const char *machine_run(struct machine *machine, char *words, size_t size)
{
    struct itimerval limit = { .it_value.tv_sec = STEP_LIMIT_S }, none = { 0 };
    int result;

    setitimer(ITIMER_REAL, &limit, NULL);
    result = ioctl(machine->vcpu, KVM_RUN, 0) < 0 ? -errno : 0;
    setitimer(ITIMER_REAL, &none, NULL);
    if (result == -EINTR) {
        snprintf(words, size, "not done in %d s", STEP_LIMIT_S);
    } else if (result < 0) {
        snprintf(words, size, "KVM_RUN: %s", strerror(-result));
    } else if (machine->run->exit_reason == KVM_EXIT_IO && machine->run->io.port == PORT_DONE) {
        return NULL;
    } else if (machine->run->exit_reason == KVM_EXIT_INTERNAL_ERROR) {
        snprintf(words, size, machine->run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION ?
                 "KVM emulates kernel code and lacks this instruction" : "KVM internal error %u",
                 machine->run->internal.suberror);
    } else if (machine->run->exit_reason == KVM_EXIT_SHUTDOWN) {
        snprintf(words, size, "triple fault");
    } else {
        snprintf(words, size, "unexpected exit %u", machine->run->exit_reason);
    }
    return words;
}

static const char *run_step(const struct step *step, int kvm, struct kvm_cpuid2 *cpuid, char *words, size_t size)
{
    struct machine machine;
    const char *problem;
    uint64_t began_ns, turn_ns;

    if (!machine_create(&machine, kvm, cpuid, step->entry)) {
        snprintf(words, size, "can't make a VM: %s", strerror(errno));
        machine_destroy(&machine);
        return words;
    }
    began_ns = now_ns();
    problem = machine_run(&machine, words, size);
    turn_ns = (now_ns() - began_ns) / LOOP_TURNS;
    if (problem == NULL && step->entry == guest_loop && turn_ns > LOOP_TURN_NS_MAX) {
        snprintf(words, size, "%llu ns a turn: kernel code is emulated", (unsigned long long)turn_ns);
        problem = words;
    }
    machine_destroy(&machine);
    return problem;
}

int main(int argc, char **argv)
{
    bool quiet = argc == 2 && strcmp(argv[1], "-q") == 0;
    struct sigaction action = { .sa_handler = on_alarm };
    struct kvm_cpuid2 *cpuid;
    unsigned failures = 0;
    char words[128];
    int kvm;

    if (argc > 1 && !quiet) {
        fprintf(stderr, "usage: kvm-probe [-q]\n");
        return 2;
    }
    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0 || ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION || (cpuid = supported_cpuid(kvm)) == NULL) {
        if (!quiet)
            printf("no usable /dev/kvm: %s\n", strerror(errno));
        return 2;
    }
    sigaction(SIGALRM, &action, NULL);
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        const char *problem = NULL;
        bool used = cpuid_has(cpuid, steps[i].needs);
        if (used)
            problem = run_step(&steps[i], kvm, cpuid, words, sizeof words);
        failures += problem != NULL;
        if (!quiet)
            printf("%-7s %s%s%s\n", problem != NULL ? "FAILED" : used ? "ok" : "absent", steps[i].name,
                   problem != NULL ? ": " : "", problem != NULL ? problem : "");
    }
    if (!quiet)
        printf("this machine's KVM %s run a stock kernel\n", failures > 0 ? "can't" : "can");
    free(cpuid);
    close(kvm);
    return failures > 0 ? 1 : 0;
}
