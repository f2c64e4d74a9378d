/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ptrace and process_vm_readv/writev. The agent's own are reported too. */
#include "record.h"

#define PTRACE_TRACEME 0
#define PTRACE_POKETEXT 4
#define PTRACE_POKEDATA 5
#define PTRACE_POKEUSR 6
#define PTRACE_SETREGS 13
#define PTRACE_ATTACH 16
#define PTRACE_SETFPREGS 15
#define PTRACE_SETREGSET 0x4205
#define PTRACE_SEIZE 0x4206

struct target {
	u64 start;
	u32 tgid;
};

#define XA_LEVELS 6 /* 64^6 > greatest pid */

/*
 * The process that `number` names in the caller's pid namespace. find_vpid() is idr_find() in that namespace; the IDR is a radix
 * tree of 64-way nodes, walked here by hand (kernel: lib/radix-tree.c).
 */
static __always_inline void find_target(struct target *target, struct task_struct *task, u32 number)
{
	struct pid *own = BPF_CORE_READ(task, thread_pid); /* not GET: see namespace_pid() */
	u32 level = BPF_CORE_READ(own, level);
	struct upid *upid = (void *)((u64)own + bpf_core_field_offset(struct pid, numbers) + level * bpf_core_type_size(struct upid));
	struct pid_namespace *ns = BPF_CORE_READ(upid, ns);
	u64 entry = (u64)BPF_CORE_READ(ns, idr.idr_rt.xa_head);
	bool leaf = false;
	for (int i = 0; i < XA_LEVELS; i++) {
		if ((entry & 3) != 2) { /* not an internal node: the pid itself, stored for number 0 of a one-entry tree or reached */
			leaf = true;
			break;
		}
		struct xa_node *node = (void *)(entry - 2);
		u32 shift = BPF_CORE_READ(node, shift);
		u64 slot = (number >> (shift & 31)) & 63;
		if (i == 0 && shift < 26 && number >> (shift + 6))
			return; /* beyond the tree */
		entry = 0;
		bpf_probe_read_kernel(&entry, 8, (void *)((u64)node + bpf_core_field_offset(struct xa_node, slots) + 8 * slot));
	}
	if (!entry || !leaf)
		return;
	u64 first = 0;
	bpf_probe_read_kernel(&first, 8, (void *)(entry + bpf_core_field_offset(struct pid, tasks)));
	if (!first)
		return;
	struct task_struct *found = (void *)(first - bpf_core_field_offset(struct task_struct, pid_links));
	target->tgid = BPF_CORE_READ(found, tgid);
	target->start = BPF_CORE_READ(found, group_leader, start_boottime);
}

/* Only what changes another process or takes hold of it: reading and continuing happen a million times under a debugger. */
SYSCALL_EXIT(ptrace)
{
	struct task_struct *task = current_task();
	struct call call;
	if (!wanted_type(VD_EVENT_PTRACE))
		return 0;
	load_call(&call, task, regs);
	u64 request = call.a[0];
	switch (request) {
	case PTRACE_TRACEME:
	case PTRACE_POKETEXT:
	case PTRACE_POKEDATA:
	case PTRACE_POKEUSR:
	case PTRACE_SETREGS:
	case PTRACE_SETFPREGS:
	case PTRACE_ATTACH:
	case PTRACE_SETREGSET:
	case PTRACE_SEIZE:
		break;
	default:
		return 0;
	}
	struct target target = {};
	if (request != PTRACE_TRACEME)
		find_target(&target, task, call.a[1]);
	if (request != PTRACE_TRACEME && request != PTRACE_ATTACH && request != PTRACE_SEIZE) {
		/* Word by word: one record per target and kind says it. Attachments are never deduplicated. */
		struct seen_key key = {.a = target.start, .b = (u64)target.tgid << 32 | (u32)ret, .c = request};
		seen_process(&key, task, VD_EVENT_PTRACE);
		if (seen_before(&key))
			return 0;
	}
	struct scratch *s = get_scratch();
	if (!s)
		return 0;
	struct vd_ptrace *r = BEGIN(vd_ptrace, VD_EVENT_PTRACE, s, task, ret);
	r->request = request;
	r->target_start = target.start;
	r->target_pid = target.tgid;
	r->target_ns_pid = request == PTRACE_TRACEME ? 0 : call.a[1];
	finish(s);
	return 0;
}

_Static_assert(sizeof(struct vd_vm_read) == sizeof(struct vd_vm_write), "one form");
SYSCALL_EXIT(process_vm)
{
	struct task_struct *task = current_task();
	struct call call;
	load_call(&call, task, regs);
	u32 type = call.number == 310 || call.number == 539 /* x32 */ ? VD_EVENT_VM_READ : VD_EVENT_VM_WRITE;
	if (!wanted_type(type))
		return 0;
	struct target target = {};
	find_target(&target, task, call.a[0]);
	if (target.tgid && target.tgid == (u32)GET(task, tgid))
		return 0;
	struct seen_key key = {.a = target.start, .b = (u64)target.tgid << 32 | (u32)call.a[0], .c = ret < 0 ? ret : 0};
	seen_process(&key, task, type);
	if (seen_before(&key))
		return 0;
	struct scratch *s = get_scratch();
	if (!s)
		return 0;
	struct vd_vm_read *r = BEGIN(vd_vm_read, type, s, task, ret);
	r->target_start = target.start;
	r->target_pid = target.tgid;
	r->target_ns_pid = call.a[0];
	finish(s);
	return 0;
}
