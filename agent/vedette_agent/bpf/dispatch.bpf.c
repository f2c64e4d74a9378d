/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every system call's exit comes through here: keep it to a handful of instructions. A number without a program misses
 * the tail call and returns. Both entry paths (syscall instruction, int 0x80) end in syscall_exit_work(), which calls
 * trace_sys_exit() after the call has its result and before anything may run in user mode.
 */
#include "record.h"

SYSCALL_EXIT(sys_exit)
{
#ifdef VEDETTE_TEST_REFUSED_DISPATCH /* the loader's test needs an object that no verifier accepts */
	settings.name_hint[bpf_ktime_get_boot_ns()] = 0;
#endif
	struct task_struct *task = current_task();
	u32 number = GET(regs, orig_ax);
	if (GET(task, thread_info.status) & TS_COMPAT)
		number = compat_number(number, GET(regs, bx));
	bpf_tail_call(ctx, &calls, number & ~X32_BIT);
	return 0;
}

/* Run once by the loader through BPF_PROG_TEST_RUN: the loader's own process id in the initial namespace. */
SEC("raw_tp")
int identify(void *ctx)
{
	settings.own_tgid = bpf_get_current_pid_tgid() >> 32;
	return 0;
}
