/* The test guest's way from PVH's 32-bit entry to C code in user mode (CPL3), and its kernel half: interrupt counter and
 * system calls.
 *
 * Work is done in CPL3 because some /dev/kvm run CPL0 by emulation, and the system call is INT3 because SYSCALL, INT n and
 * port access from CPL3 do not work on those. On a real KVM all of this is ordinary. */

#define KERNEL_CODE 0x08
#define USER_DATA 0x1b
#define USER_CODE 0x23
#define TASK 0x28
#define KERNEL_CODE32 0x38
#define AP_START 0x8000 /* where other processors begin, in real mode */
#define PROCESSORS_MAX 64
#define TICK_VECTOR 0x40
#define TICK_COUNT 100000000 /* LAPIC timer of KVM: 1 GHz, so 100 ms */

	.section .note.Xen, "a", @note
	.long 4, 4, 18          /* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long entry32

	.section .text.entry, "ax"
	.code32
	.globl entry32
entry32:
	cli
	mov $kernel_stack_top, %esp
	mov %ebx, start_info
	/* Page tables: 4 GiB one to one by 2 MiB pages, for user mode too. */
	mov $page_tables, %edi
	lea 0x1007(%edi), %eax
	mov %eax, (%edi)                /* level 4 -> level 3 */
	lea 0x1000(%edi), %ebx
	lea 0x2007(%edi), %eax
	mov $4, %ecx
1:	mov %eax, (%ebx)                /* level 3 -> four times level 2 */
	add $0x1000, %eax
	add $8, %ebx
	loop 1b
	lea 0x2000(%edi), %ebx
	mov $0x87, %eax
	mov $2048, %ecx
1:	mov %eax, (%ebx)
	add $0x200000, %eax
	add $8, %ebx
	loop 1b
	mov $0x6a0, %eax                /* PAE, PGE, OSFXSR, OSXMMEXCPT */
	mov %eax, %cr4
	mov %edi, %cr3
	mov $0xc0000080, %ecx           /* EFER: LME, NXE */
	rdmsr
	or $0x900, %eax
	wrmsr
	mov $0x80050033, %eax           /* PG, AM, WP, NE, ET, MP, PE */
	mov %eax, %cr0
	lgdt gdt_pointer
	ljmp $KERNEL_CODE, $entry64

	.code64
entry64:
	xor %eax, %eax
	mov %eax, %ss
	mov $USER_DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	mov $kernel_stack_top, %rsp
	/* Descriptor of the task state, which holds the stack for entries from CPL3. */
	mov $task_state, %rax
	mov %ax, gdt_task + 2
	shr $16, %rax
	mov %al, gdt_task + 4
	mov %ah, gdt_task + 7
	mov $kernel_stack_top, %rax
	mov %rax, task_state + 4
	mov $TASK, %eax
	ltr %ax
	/* Gates: exceptions 0-31, then the timer; INT3 may be used from CPL3. */
	mov $32, %ecx
	mov $idt, %rdi
	mov $exception, %rbx
	mov $0x8e00, %edx
1:	call gate_write
	dec %ecx
	jnz 1b
	mov $idt + 16 * 3, %rdi
	mov $system_call, %rbx
	mov $0xee00, %edx
	call gate_write
	mov $idt + 16 * TICK_VECTOR, %rdi
	mov $timer, %rbx
	mov $0x8e00, %edx
	call gate_write
	mov $idt + 16 * 0xff, %rdi
	mov $spurious, %rbx
	call gate_write
	lidt idt_pointer
	/* LAPIC in x2APIC mode; its timer periodic. */
	mov $0x1b, %ecx
	rdmsr
	or $0xc00, %eax
	wrmsr
	xor %edx, %edx
	mov $0x80f, %ecx                /* spurious vector, on */
	mov $0x1ff, %eax
	wrmsr
	mov $0x83e, %ecx                /* divide by 1 */
	mov $0xb, %eax
	wrmsr
	mov $0x832, %ecx
	mov $0x20000 + TICK_VECTOR, %eax
	wrmsr
	mov $0x838, %ecx
	mov $TICK_COUNT, %eax
	wrmsr
	/* Into user mode, interrupts on. */
	mov start_info(%rip), %edi
	pushq $USER_DATA
	pushq $user_stack_top
	pushq $0x202
	pushq $USER_CODE
	pushq $user_main
	iretq

/* rdi: gate, moved on by 16; rbx: handler; edx: kind */
gate_write:
	mov %rbx, %rax
	mov %ax, (%rdi)
	movw $KERNEL_CODE, 2(%rdi)
	mov %dx, 4(%rdi)
	shr $16, %rax
	mov %ax, 6(%rdi)
	movl $0, 8(%rdi)
	movl $0, 12(%rdi)
	add $16, %rdi
	ret

timer:
	push %rax
	push %rcx
	push %rdx
	incq timer_ticks
	xor %eax, %eax
	xor %edx, %edx
	mov $0x80b, %ecx                /* end of interrupt */
	wrmsr
	pop %rdx
	pop %rcx
	pop %rax
	iretq

spurious:
	iretq

/* eax: 1 OUT byte (ebx -> port edx), 2 OUT word, 3 IN byte (port edx -> eax), 4 wait until timer_ticks is not rbx,
 * 5 start all other processors in ap_main, 6 OUT double word, 7 IN double word, 8 timer: ebx counts a tick */
system_call:
	cmp $1, %eax
	jne 2f
	mov %ebx, %eax
	out %al, %dx
	iretq
2:	cmp $2, %eax
	jne 3f
	mov %ebx, %eax
	out %ax, %dx
	iretq
3:	cmp $3, %eax
	jne 4f
	xor %eax, %eax
	in %dx, %al
	iretq
4:	cmp $5, %eax
	je 6f
	cmp $6, %eax
	je 7f
	cmp $7, %eax
	je 8f
	cmp $8, %eax
	je 9f
	cmp %rbx, timer_ticks           /* interrupts are off here: none is lost between this and HLT */
	jne 5f
	sti
	hlt
	cli
5:	iretq
7:	mov %ebx, %eax
	out %eax, %dx
	iretq
8:	in %dx, %eax
	iretq
9:	push %rcx
	mov $0x838, %ecx
	mov %ebx, %eax
	xor %edx, %edx
	wrmsr
	pop %rcx
	iretq
6:	push %rcx
	push %rdx
	push %rsi
	push %rdi
	mov $ap_start, %rsi
	mov $AP_START, %edi
	mov $ap_start_end - ap_start, %ecx
	rep movsb
	xor %edx, %edx
	mov $0x830, %ecx                /* x2APIC interrupt command: all but self */
	mov $0xc4500, %eax              /* INIT */
	wrmsr
	mov $0xc4600 + AP_START / 4096, %eax /* start-up */
	wrmsr
	pop %rdi
	pop %rsi
	pop %rdx
	pop %rcx
	iretq

/* Another processor's way from real mode, copied to AP_START, to ap_main(number) in user mode. Interrupts stay off. */
	.code16
ap_start:
	cli
	xor %ax, %ax
	mov %ax, %ds
	lgdtl AP_START + ap_gdt_pointer - ap_start
	mov %cr0, %eax
	or $1, %eax
	mov %eax, %cr0
	ljmpl $KERNEL_CODE32, $ap32
	.balign 4
ap_gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt
ap_start_end:
	.code32
ap32:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %ss
	mov $0x6a0, %eax
	mov %eax, %cr4
	mov $page_tables, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx
	rdmsr
	or $0x900, %eax
	wrmsr
	mov $0x80050033, %eax
	mov %eax, %cr0
	ljmp $KERNEL_CODE, $ap64
	.code64
ap64:
	mov $1, %eax
	lock xadd %eax, ap_count
	mov %eax, %edi
	inc %eax
	shl $12, %eax
	lea ap_stacks(%rax), %rsp
	mov %rsp, %rbx
	mov $USER_DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	pushq $USER_DATA
	pushq %rbx
	pushq $2
	pushq $USER_CODE
	pushq $ap_main
	iretq

/* Nothing of this is expected: a letter on COM1, then a triple fault for whoever watches. */
exception:
	mov $0x3f8, %edx
	mov $'!', %eax
	out %al, %dx
	lidt idt_none
	ud2

	.section .data
	.balign 16
gdt:	.quad 0
	.quad 0x00af9b000000ffff        /* 08 kernel code */
	.quad 0x00cf93000000ffff        /* 10 kernel data */
	.quad 0x00cff3000000ffff        /* 18 user data */
	.quad 0x00affb000000ffff        /* 20 user code */
gdt_task:
	.quad 0x0000890000000067, 0     /* 28 task state; base filled in */
	.quad 0x00cf9b000000ffff        /* 38 kernel code of 32 bits */
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt, 0
idt_pointer:
	.word 256 * 16 - 1
	.quad idt
idt_none:
	.word 0
	.quad 0
	.globl start_info
start_info:
	.long 0, 0
	.globl timer_ticks
	.balign 8
timer_ticks:
	.quad 0

	.globl ap_count
	.balign 4
ap_count:
	.long 0

	.section .bss
	.balign 4096
ap_stacks:
	.skip PROCESSORS_MAX * 4096
page_tables:
	.skip 6 * 4096
idt:	.skip 4096
task_state:
	.skip 0x68
	.balign 4096
	.skip 8192
kernel_stack_top:
	.skip 16384
	.globl user_stack_top
user_stack_top:
