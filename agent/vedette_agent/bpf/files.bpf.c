/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* open, unlink, rename, link, symlink, chmod. */
#include "record.h"

#define O_ACCMODE 3
#define O_CREAT 0100

struct open_how_user {
	u64 flags, mode, resolve;
};

static __always_inline bool hinted(u8 first, u32 length)
{
	u32 bit = length > 63 ? 63 : length;
	return settings.name_hint[first] >> bit & 1;
}

/* Whether a rule asks for files of this name. Two byte compares decide nearly always; the hash lookup confirms. */
static __always_inline bool wanted_dentry(struct dentry *dentry)
{
	struct dentry_head head = {};
	struct name_key key = {};
	u8 first = 0;
	if (bpf_probe_read_kernel(&head, sizeof(head), (void *)((u64)dentry + bpf_core_field_offset(struct dentry, d_parent))))
		return false;
	u64 length = head.hash_len >> 32;
	bpf_probe_read_kernel(&first, 1, (void *)head.name);
	if (!hinted(first, length))
		return false;
	CLAMP(length, NAME_KEY - 1);
	bpf_probe_read_kernel(&key, length, (void *)head.name);
	return bpf_map_lookup_elem(&open_names, &key) != 0;
}

STEP name_step(u32 index, void *context)
{
	struct scratch *s = ((struct step_context *)context)->s;
	u64 before = s->at;
	if (before <= s->begin)
		return 1;
	before -= 1;
	CLAMP(before, RECORD_LIMIT);
	if (s->record[before] == '/')
		return 1;
	s->at = before;
	return 0;
}

/* The same for the last component of the path that was appended last (`length` bytes). */
__noinline int wanted_tail(u64 length)
{
	struct step_context context = {.s = get_scratch()};
	struct scratch *s = context.s;
	struct name_key key = {};
	if (!s || !length)
		return 0;
	u64 end = s->length;
	s->begin = end - length;
	s->at = end;
	LOOP(256, name_step, &context);
	u64 from = s->at, size = end - from;
	CLAMP(from, RECORD_LIMIT);
	if (!size || !hinted(s->record[from], size))
		return 0;
	CLAMP(size, NAME_KEY - 1);
	bpf_probe_read_kernel(&key, size, s->record + from);
	return bpf_map_lookup_elem(&open_names, &key) != 0;
}

/*
 * Most failed opens are searches along a path (programs starting, imports) and end at the name; the path is read to where it will
 * be in the record, and the record is begun only when it is wanted.
 */
static __always_inline int failed_open(struct scratch *s, struct task_struct *task, s32 dfd, u64 path, u64 flags, u64 resolve, s32 result)
{
	bool write = (flags & O_ACCMODE) || (flags & O_CREAT);
	s64 length = 0;
	if (path)
		length = bpf_probe_read_user_str(s->record + sizeof(struct vd_open), PATH_LIMIT, (void *)path);
	u16 extra = length < 0 ? VD_COMMON_FAULT : length == PATH_LIMIT ? VD_COMMON_TRUNCATED : 0;
	length = length > 0 ? length - 1 : 0;
	s->length = sizeof(struct vd_open) + length;
	if (!write && !(settings.options & OPTION_ALL_OPENS) && !wanted_tail(length))
		return 0;
	struct vd_open *r = BEGIN(vd_open, VD_EVENT_OPEN, s, task, result);
	if (s->announced) /* the cgroup's record was built in the same place */
		bpf_probe_read_user_str(s->record + sizeof(struct vd_open), PATH_LIMIT, (void *)path);
	r->header.flags |= extra;
	r->oflags = flags;
	r->resolve = resolve;
	r->fd = -1;
	r->path_len = length;
	s->length += length;
	r->dir_len = append_directory(s, task, dfd, r->path_len);
	if (!seen_tails(s, task, VD_EVENT_OPEN, sizeof(*r), result, flags))
		finish(s);
	return 0;
}

/* open, openat, openat2, creat, open_by_handle_at: the result is a descriptor, and through it the kernel's own file. */
SYSCALL_EXIT(open)
{
	struct task_struct *task = current_task();
	struct call call;
	if (!wanted_type(VD_EVENT_OPEN) || is_own(task))
		return 0;
	load_call(&call, task, regs);
	if (ret >= 0) {
		struct file *file = file_of(task, ret);
		if (!file)
			return 0;
		u32 flags = BPF_CORE_READ(file, f_flags);
		struct inode *inode = BPF_CORE_READ(file, f_inode);
		u32 mode = BPF_CORE_READ(inode, i_mode) & S_IFMT;
		/* A pipe opened again through /dev/stdout is a FIFO by mode, but has no name in any directory. */
		bool report = ((flags & O_ACCMODE) && mode != S_IFCHR && mode != S_IFIFO) || (settings.options & OPTION_ALL_OPENS) ||
			      (mode == S_IFIFO && BPF_CORE_READ(inode, i_sb, s_magic) != PIPEFS_MAGIC);
		if (!report && !wanted_dentry(BPF_CORE_READ(file, f_path.dentry)))
			return 0;
		/* O_CREAT and the like are gone from f_flags; what distinguishes two opens here is the access mode and O_PATH. */
		struct seen_key key = {.a = BPF_CORE_READ(inode, i_ino), .b = BPF_CORE_READ(inode, i_sb, s_dev), .c = flags & (O_ACCMODE | 010000000)};
		seen_process(&key, task, VD_EVENT_OPEN);
		if (seen_before(&key))
			return 0;
		struct scratch *s = get_scratch();
		if (!s)
			return 0;
		struct file_facts facts = {};
		file_facts(&facts, file);
		u64 resolve = 0;
		u32 asked = call.number == 257 ? call.a[2] : call.number == 2 ? call.a[1] : call.number == 85 ? 01101 : call.a[2];
		if (call.number == 437) {
			struct open_how_user how = {};
			bpf_probe_read_user(&how, sizeof(how), (void *)call.a[2]);
			asked = how.flags;
			resolve = how.resolve;
		}
		struct vd_open *r = BEGIN(vd_open, VD_EVENT_OPEN, s, task, ret);
		r->ino = facts.ino;
		r->dev = facts.dev;
		r->file_bits = facts.bits;
		r->mode = facts.mode;
		r->oflags = asked;
		r->resolve = resolve;
		r->fd = ret;
		r->path_len = append_file_path(s, file);
		finish(s);
		return 0;
	}
	struct scratch *s = get_scratch();
	if (!s)
		return 0;
	switch (call.number) {
	case 2:
		return failed_open(s, task, AT_FDCWD, call.a[0], call.a[1], 0, ret);
	case 85:
		return failed_open(s, task, AT_FDCWD, call.a[0], 01101 /* O_CREAT|O_WRONLY|O_TRUNC */, 0, ret);
	case 257:
		return failed_open(s, task, call.a[0], call.a[1], (u32)call.a[2], 0, ret);
	case 437: {
		struct open_how_user how = {};
		bpf_probe_read_user(&how, sizeof(how), (void *)call.a[2]);
		return failed_open(s, task, call.a[0], call.a[1], how.flags, how.resolve, ret);
	}
	case 304: /* open_by_handle_at has no path; that it was tried is what matters (a way out of containers) */
		return failed_open(s, task, call.a[0], 0, (u32)call.a[2] | O_CREAT, 0, ret);
	}
	return 0;
}

/* unlink, unlinkat, rmdir */
SYSCALL_EXIT(unlink)
{
	struct task_struct *task = current_task();
	struct scratch *s = get_scratch();
	struct call call;
	if (!s || !wanted_type(VD_EVENT_UNLINK) || is_own(task))
		return 0;
	load_call(&call, task, regs);
	struct vd_unlink *r = BEGIN(vd_unlink, VD_EVENT_UNLINK, s, task, ret);
	s32 dfd = AT_FDCWD;
	u64 path = call.a[0];
	if (call.number == 263) {
		dfd = call.a[0];
		path = call.a[1];
		r->at_flags = call.a[2];
	} else if (call.number == 84) {
		r->at_flags = 0x200; /* AT_REMOVEDIR */
	}
	r->path_len = append_user_string(s, path, PATH_LIMIT);
	r->dir_len = append_directory(s, task, dfd, r->path_len);
	if (!seen_tails(s, task, VD_EVENT_UNLINK, sizeof(*r), ret, r->at_flags))
		finish(s);
	return 0;
}

/* rename, renameat, renameat2, link, linkat: vd_rename and vd_link have the same form */
_Static_assert(sizeof(struct vd_rename) == sizeof(struct vd_link), "two names");
SYSCALL_EXIT(rename_link)
{
	struct task_struct *task = current_task();
	struct scratch *s = get_scratch();
	struct call call;
	if (!s || is_own(task))
		return 0;
	load_call(&call, task, regs);
	u32 type = call.number == 86 || call.number == 265 ? VD_EVENT_LINK : VD_EVENT_RENAME;
	if (!wanted_type(type))
		return 0;
	struct vd_rename *r = BEGIN(vd_rename, type, s, task, ret);
	s32 from = AT_FDCWD, to = AT_FDCWD;
	u64 path = call.a[0], new_path = call.a[1];
	if (call.number != 82 && call.number != 86) {
		from = call.a[0];
		path = call.a[1];
		to = call.a[2];
		new_path = call.a[3];
		if (call.number != 264)
			r->at_flags = call.a[4];
	}
	r->path_len = append_user_string(s, path, PATH_LIMIT);
	r->dir_len = append_directory(s, task, from, r->path_len);
	u32 length = append_user_string(s, new_path, PATH_LIMIT);
	r->new_path_len = length;
	r->new_dir_len = append_directory(s, task, to, length);
	if (!seen_tails(s, task, type, sizeof(*r), ret, r->at_flags))
		finish(s);
	return 0;
}

/* symlink, symlinkat */
SYSCALL_EXIT(symlink)
{
	struct task_struct *task = current_task();
	struct scratch *s = get_scratch();
	struct call call;
	if (!s || !wanted_type(VD_EVENT_SYMLINK) || is_own(task))
		return 0;
	load_call(&call, task, regs);
	struct vd_symlink *r = BEGIN(vd_symlink, VD_EVENT_SYMLINK, s, task, ret);
	s32 dfd = AT_FDCWD;
	u64 new_path = call.a[1];
	if (call.number == 266) {
		dfd = call.a[1];
		new_path = call.a[2];
	}
	r->path_len = append_user_string(s, call.a[0], PATH_LIMIT);
	u32 length = append_user_string(s, new_path, PATH_LIMIT);
	r->new_path_len = length;
	r->new_dir_len = append_directory(s, task, dfd, length);
	if (!seen_tails(s, task, VD_EVENT_SYMLINK, sizeof(*r), ret, 0))
		finish(s);
	return 0;
}

/* chmod, fchmod, fchmodat, fchmodat2 */
SYSCALL_EXIT(chmod)
{
	struct task_struct *task = current_task();
	struct scratch *s = get_scratch();
	struct call call;
	if (!s || !wanted_type(VD_EVENT_CHMOD) || is_own(task))
		return 0;
	load_call(&call, task, regs);
	struct vd_chmod *r = BEGIN(vd_chmod, VD_EVENT_CHMOD, s, task, ret);
	if (call.number == 91) {
		r->mode = call.a[1];
		r->path_len = append_file_path(s, file_of(task, (s32)call.a[0]));
	} else {
		bool at = call.number != 90;
		s32 dfd = at ? (s32)call.a[0] : AT_FDCWD;
		r->mode = at ? call.a[2] : call.a[1];
		r->path_len = append_user_string(s, at ? call.a[1] : call.a[0], PATH_LIMIT);
		r->dir_len = append_directory(s, task, dfd, r->path_len);
	}
	if (!seen_tails(s, task, VD_EVENT_CHMOD, sizeof(*r), ret, r->mode))
		finish(s);
	return 0;
}
