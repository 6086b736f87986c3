/* Keeps a lab host alive when its guest writes CR8 while KVM waits for an interrupt window.
 *
 * QEMU's emulation of AMD SVM (7.2 to 10.0 at least) then raises a virtual interrupt from helper_write_crN without its
 * big lock and ends by an assertion in tcg_handle_interrupt. OVMF writes CR8 at the end of every interrupt, so it
 * never gets far. The interrupt was pending before the write as well (KVM gives it the highest priority), so the call
 * has nothing to do: here the failed assertion returns to where its function was called from. All other assertions
 * end the process as ever.
 *
 * Preloaded into the hosts' QEMU where LAB_PRELOAD names it. Test equipment: no product code. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unwind.h>

enum { FRAME_CALLER_OF_ASSERTING = 2 }; /* 0: the function below, 1: the one that asserts */
enum { DWARF_RBX = 3, DWARF_RBP = 6, DWARF_R12 = 12 };

struct frame {
    unsigned depth;
    uint64_t rip, rsp, rbx, rbp, r12, r13, r14, r15;
};

static _Unwind_Reason_Code on_frame(struct _Unwind_Context *context, void *arg)
{
    struct frame *f = arg;
    if (f->depth++ < FRAME_CALLER_OF_ASSERTING)
        return _URC_NO_REASON;
    f->rip = _Unwind_GetIP(context);
    f->rsp = _Unwind_GetCFA(context);
    f->rbx = _Unwind_GetGR(context, DWARF_RBX);
    f->rbp = _Unwind_GetGR(context, DWARF_RBP);
    f->r12 = _Unwind_GetGR(context, DWARF_R12);
    f->r13 = _Unwind_GetGR(context, DWARF_R12 + 1);
    f->r14 = _Unwind_GetGR(context, DWARF_R12 + 2);
    f->r15 = _Unwind_GetGR(context, DWARF_R12 + 3);
    return _URC_NORMAL_STOP;
}

/* GLib's function behind g_assert. */
__attribute__((noreturn)) void g_assertion_message_expr(const char *domain, const char *file, int line,
                                                        const char *function, const char *expression)
{
    struct frame f = {0};
    (void)domain;
    if (function && strcmp(function, "tcg_handle_interrupt") == 0) {
        _Unwind_Backtrace(on_frame, &f);
        if (f.rip && f.rsp)
            __asm__ volatile("mov %0, %%rax\n"
                             "mov 24(%%rax), %%rbx\n"
                             "mov 32(%%rax), %%rbp\n"
                             "mov 40(%%rax), %%r12\n"
                             "mov 48(%%rax), %%r13\n"
                             "mov 56(%%rax), %%r14\n"
                             "mov 64(%%rax), %%r15\n"
                             "mov 8(%%rax), %%rcx\n"
                             "mov 16(%%rax), %%rsp\n"
                             "jmp *%%rcx\n" ::"r"(&f)
                             : "memory");
    }
    fprintf(stderr, "ERROR:%s:%d:%s: assertion failed: (%s)\n", file, line, function, expression);
    abort();
}
