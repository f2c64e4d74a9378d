/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Executable mappings, memfd and userfaultfd. */
#include "record.h"

#define PROT_WRITE 2
#define PROT_EXEC 4
#define MAP_ANONYMOUS 0x20

/* Executable mappings of files that were not in the image, have no name, or are a memfd. */
SYSCALL_EXIT(mmap)
{
	struct task_struct *task = current_task();
	struct call call;
	load_call(&call, task, regs);
	if (!(call.a[2] & PROT_EXEC) || (call.a[3] & MAP_ANONYMOUS) || (ret < 0 && ret > -4096) || !wanted_type(VD_EVENT_MMAP))
		return 0;
	struct file *file = file_of(task, (s32)call.a[4]);
	if (!file)
		return 0;
	struct file_facts facts = {};
	file_facts(&facts, file);
	if (!(facts.bits & (VD_FILE_BITS_UPPER | VD_FILE_BITS_UNLINKED | VD_FILE_BITS_MEMFD)))
		return 0;
	struct seen_key key = {.a = facts.ino, .b = facts.dev, .c = ctime_of(BPF_CORE_READ(file, f_inode))};
	seen_process(&key, task, VD_EVENT_MMAP);
	struct scratch *s = get_scratch();
	if (!s || seen_before(&key))
		return 0;
	struct vd_mmap *r = BEGIN(vd_mmap, VD_EVENT_MMAP, s, task, 0);
	r->ino = facts.ino;
	r->dev = facts.dev;
	r->file_bits = facts.bits;
	r->ctime = key.c;
	r->addr = ret;
	r->length = call.a[1];
	r->prot = call.a[2];
	r->map_flags = call.a[3];
	r->path_len = append_file_path(s, file);
	finish(s);
	return 0;
}

/*
 * mprotect, pkey_mprotect. Making memory executable is what every JIT and the dynamic loader do; writable at the same time, or
 * the stack or the heap, hardly anybody.
 */
SYSCALL_EXIT(mprotect)
{
	struct task_struct *task = current_task();
	struct call call;
	load_call(&call, task, regs);
	if (!(call.a[2] & PROT_EXEC) || !wanted_type(VD_EVENT_MPROTECT))
		return 0;
	struct mm_struct *mm = GET(task, mm);
	u64 from = call.a[0], to = from + call.a[1], stack = BPF_CORE_READ(mm, start_stack);
	u32 region = 0;
	if (from < stack + 4096 && to > (stack & ~4095ULL) - 4096) /* around where the stack began */
		region |= VD_MEMORY_REGION_STACK;
	u64 sp = GET(regs, sp);
	if (from <= sp && sp < to)
		region |= VD_MEMORY_REGION_STACK; /* the stack of whatever thread */
	if (from < BPF_CORE_READ(mm, brk) && to > BPF_CORE_READ(mm, start_brk))
		region |= VD_MEMORY_REGION_HEAP;
	if (!(call.a[2] & PROT_WRITE) && !region && !(settings.options & OPTION_ALL_MPROTECT))
		return 0;
	/* A JIT repeats this for every page it fills: per process and kind of region once in the TTL. */
	struct seen_key key = {.a = call.a[2], .b = region, .c = (u32)ret};
	seen_process(&key, task, VD_EVENT_MPROTECT);
	struct scratch *s = get_scratch();
	if (!s || seen_before(&key))
		return 0;
	struct vd_mprotect *r = BEGIN(vd_mprotect, VD_EVENT_MPROTECT, s, task, ret);
	r->addr = from;
	r->length = call.a[1];
	r->prot = call.a[2];
	r->region = region;
	finish(s);
	return 0;
}

SYSCALL_EXIT(memfd_create)
{
	struct task_struct *task = current_task();
	struct scratch *s = get_scratch();
	struct call call;
	if (!s || !wanted_type(VD_EVENT_MEMFD))
		return 0;
	load_call(&call, task, regs);
	struct vd_memfd *r = BEGIN(vd_memfd, VD_EVENT_MEMFD, s, task, ret);
	r->memfd_flags = call.a[1];
	r->fd = ret < 0 ? -1 : ret;
	r->name_len = append_user_string(s, call.a[0], VD_MEMFD_NAME_LIMIT);
	finish(s);
	return 0;
}

SYSCALL_EXIT(userfaultfd)
{
	struct task_struct *task = current_task();
	struct scratch *s = get_scratch();
	struct call call;
	if (!s || !wanted_type(VD_EVENT_USERFAULTFD))
		return 0;
	load_call(&call, task, regs);
#ifdef VEDETTE_TEST_REFUSED /* the loader's test needs a program that no verifier accepts */
	s->record[bpf_ktime_get_boot_ns()] = 0;
#endif
	struct vd_userfaultfd *r = BEGIN(vd_userfaultfd, VD_EVENT_USERFAULTFD, s, task, ret);
	r->uffd_flags = call.a[0];
	finish(s);
	return 0;
}
