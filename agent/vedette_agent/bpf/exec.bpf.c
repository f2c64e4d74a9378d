/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* exec, exit and fork. */
#include "record.h"

/* Process id in the innermost namespace of the process, and that namespace's inode. */
static __always_inline u32 namespace_pid(struct task_struct *task, u32 *inum)
{
	/* Read by a helper: 6.1 allows no arithmetic with a variable on a BTF pointer, which GET would give. */
	struct pid *pid = BPF_CORE_READ(task, group_leader, thread_pid);
	u32 level = BPF_CORE_READ(pid, level);
	struct upid *upid = (void *)((u64)pid + bpf_core_field_offset(struct pid, numbers) + level * bpf_core_type_size(struct upid));
	if (inum)
		*inum = BPF_CORE_READ(upid, ns, ns.inum);
	return BPF_CORE_READ(upid, nr);
}

static __always_inline u8 stdio_kind(struct file *file, struct inode *inode, struct sock **sk)
{
	u32 mode = BPF_CORE_READ(inode, i_mode) & S_IFMT;
	u64 magic = BPF_CORE_READ(inode, i_sb, s_magic);
	if (mode == S_IFSOCK && magic == SOCKFS_MAGIC) {
		struct socket *socket = BPF_CORE_READ(file, private_data);
		*sk = BPF_CORE_READ(socket, sk);
		u16 family = BPF_CORE_READ(*sk, __sk_common.skc_family);
		if (family == AF_INET || family == AF_INET6)
			return VD_STDIO_KIND_INET;
		return family == AF_UNIX ? VD_STDIO_KIND_UNIX : VD_STDIO_KIND_OTHER_SOCKET;
	}
	if (mode == S_IFIFO)
		return magic == PIPEFS_MAGIC ? VD_STDIO_KIND_PIPE : VD_STDIO_KIND_FIFO;
	if (mode == S_IFREG)
		return VD_STDIO_KIND_FILE;
	if (mode == S_IFCHR) {
		u32 device = BPF_CORE_READ(inode, i_rdev), major = device >> 20, minor = device & 0xfffff;
		if (major == 1 && minor == 3)
			return VD_STDIO_KIND_NULL;
		if (major == 4 || major == 5 || (major >= 136 && major <= 143))
			return VD_STDIO_KIND_TTY;
	}
	return VD_STDIO_KIND_OTHER;
}

static __always_inline void fill_stdio(struct vd_exec *r, struct task_struct *task)
{
	u64 inodes[3] = {};
	u8 kinds[3] = {};
	r->fd = 0xffff;
#pragma unroll
	for (int fd = 0; fd < 3; fd++) {
		struct file *file = file_of(task, fd);
		if (!file)
			continue;
		struct inode *inode = BPF_CORE_READ(file, f_inode);
		struct sock *sk = 0;
		inodes[fd] = BPF_CORE_READ(inode, i_ino);
		kinds[fd] = stdio_kind(file, inode, &sk);
		if (kinds[fd] == VD_STDIO_KIND_INET && r->fd == 0xffff)
			fill_socket_file(SOCK(r), file, sk, fd);
	}
	r->stdin_ino = inodes[0];
	r->stdout_ino = inodes[1];
	r->stderr_ino = inodes[2];
	r->stdin_kind = kinds[0];
	r->stdout_kind = kinds[1];
	r->stderr_kind = kinds[2];
}

#define ENV_STRINGS 512
#define ENV_CHUNK 256

STEP env_step(u32 index, void *context)
{
	struct scratch *s = ((struct step_context *)context)->s;
	struct vd_exec *r = (void *)s->record;
	u64 from = s->at;
	if (from >= s->end)
		return 1;
	s64 length = bpf_probe_read_user_str(s->path, ENV_CHUNK, (void *)from);
	if (length <= 0) {
		r->header.flags |= VD_COMMON_FAULT;
		return 1;
	}
	u32 full = length == ENV_CHUNK;
	if (!s->inside) {
		u64 head = *(u64 *)s->path, rest = *(u64 *)(s->path + 8);
		s->copying = (head == 0x4f4c4552505f444cULL && (rest & 0xffffff) == 0x3d4441 /* LD_PRELO AD= */) ||
			     (head == 0x415242494c5f444cULL && rest == 0x3d485441505f5952ULL /* LD_LIBRA RY_PATH= */) ||
			     (head == 0x54494455415f444cULL && (rest & 0xff) == 0x3d /* LD_AUDIT = */);
	}
	if (s->copying) {
		u64 used = s->length - s->begin, size = length - full; /* the NUL once, at the end */
		if (used + size > VD_EXEC_ENV_LIMIT) {
			r->header.flags |= VD_COMMON_TRUNCATED;
			s->copying = 0;
		} else {
			CLAMP(size, ENV_CHUNK);
			bpf_probe_read_kernel(tail_at(s), size, s->path);
			s->length += size;
		}
	}
	s->inside = full;
	s->at = from + length - full;
	return 0;
}

/*
 * LD_PRELOAD, LD_LIBRARY_PATH and LD_AUDIT of the new program. The strings are read one by one in chunks; a chunk that is full
 * goes on in the next one, which then does not begin a variable.
 */
__noinline int append_loader_variables(u64 at, u64 end)
{
	struct step_context context = {.s = get_scratch()};
	struct scratch *s = context.s;
	if (!s)
		return 0;
	struct vd_exec *r = (void *)s->record;
	u32 begin = s->length;
	s->begin = begin;
	s->at = at;
	s->end = end;
	s->inside = s->copying = 0;
	CHEAP_LOOP(ENV_STRINGS, env_step, &context);
	if (s->at < end)
		r->exec_bits |= VD_EXEC_BITS_ENV_TRUNCATED;
	u64 last = s->length;
	if (last > begin) { /* a value that was cut still ends with NUL */
		last -= 1;
		CLAMP(last, RECORD_LIMIT);
		if (s->record[last]) {
			s->record[last] = 0;
			r->header.flags |= VD_COMMON_TRUNCATED;
		}
	}
	r->env_len = s->length - begin;
	return 0;
}

/*
 * bprm_execve -> exec_binprm() calls trace_sched_process_exec() after the last search_binary_handler() has succeeded: the new
 * mm, credentials, comm and (close-on-exec applied) descriptors are in place, nothing of the program has run.
 */
SEC("tp_btf/sched_process_exec")
int BPF_PROG(sched_process_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	if (!wanted_type(VD_EVENT_EXEC))
		return 0;
	struct scratch *s = get_scratch();
	if (!s)
		return 0;
	struct vd_exec *r = BEGIN(vd_exec, VD_EVENT_EXEC, s, task, 0);
	struct file *file = GET(bprm, file);
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	struct file_facts facts = {};
	file_facts(&facts, file);
	r->ino = facts.ino;
	r->dev = facts.dev;
	r->file_bits = facts.bits;
	r->mode = facts.mode;
	r->ctime = ctime_of(inode);
	r->parent_start = GET(task, real_parent, group_leader, start_boottime);
	r->ns_pid = namespace_pid(task, &r->pid_ns);
	r->mnt_ns = GET(task, nsproxy, mnt_ns, ns.inum);
	u32 argc = GET(bprm, argc);
	r->argc = argc > 255 ? 255 : argc;

	struct creds now = {};
	u32 tgid = GET(task, tgid);
	creds_now(&now, task, r->header.start);
	struct creds *old = bpf_map_lookup_elem(&known_creds, &tgid);
	if (old && old->start == now.start) {
		r->old_uid = old->uid;
		r->old_euid = old->euid;
		r->old_caps = old->caps;
	} else {
		r->old_uid = now.uid;
		r->old_euid = now.euid;
		r->old_caps = now.caps;
		r->exec_bits |= VD_EXEC_BITS_OLD_CREDS_UNKNOWN;
	}
	r->caps = now.caps;
	r->gid = now.gid;
	r->egid = now.egid;
	bpf_map_update_elem(&known_creds, &tgid, &now, BPF_ANY);

	if (BPF_CORE_READ_BITFIELD_PROBED(bprm, secureexec))
		r->exec_bits |= VD_EXEC_BITS_SECUREEXEC;
	if (GET(bprm, interp) != GET(bprm, filename))
		r->exec_bits |= VD_EXEC_BITS_SCRIPT;
	fill_stdio(r, task);

	r->path_len = append_file_path(s, file);

	struct mm_struct *mm = GET(task, mm);
	u64 from = GET(mm, arg_start), size = GET(mm, arg_end) - from;
	if (size > VD_EXEC_ARGV_LIMIT) {
		size = VD_EXEC_ARGV_LIMIT;
		r->header.flags |= VD_COMMON_TRUNCATED;
	}
	CLAMP(size, VD_EXEC_ARGV_LIMIT);
	if (bpf_probe_read_user(tail_at(s), size, (void *)from)) {
		r->header.flags |= VD_COMMON_FAULT;
		size = 0;
	}
	s->length += size;
	r->argv_len = size;
	if (size) {
		u64 last = s->length - 1;
		CLAMP(last, RECORD_LIMIT);
		s->record[last] = 0;
	}

	struct fs_struct *fs = GET(task, fs);
	if (walk_path((u64)BPF_CORE_READ(fs, pwd.mnt), (u64)BPF_CORE_READ(fs, pwd.dentry), (u64)BPF_CORE_READ(fs, root.mnt),
		      (u64)BPF_CORE_READ(fs, root.dentry)))
		r->header.flags |= VD_COMMON_PATH_PARTIAL;
	else if (!s->reached_root)
		r->exec_bits |= VD_EXEC_BITS_CWD_UNREACHABLE;
	r->cwd_len = append_walked(s);
	r->filename_len = append_kernel_string(s, GET(bprm, filename), PATH_LIMIT);
	append_loader_variables(GET(mm, env_start), GET(mm, env_end));
	finish(s);
	return 0;
}

/*
 * copy_process has published the child when kernel_clone() calls trace_sched_process_fork(), and the child has not run yet. The
 * tracepoint's parent is the calling task even with CLONE_PARENT.
 */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(sched_process_fork, struct task_struct *parent, struct task_struct *child)
{
	u32 tgid = GET(child, tgid);
	if (GET(child, pid) != tgid)
		return 0;
	u64 start = GET(child, start_boottime);
	struct creds now = {};
	creds_now(&now, child, start);
	bpf_map_update_elem(&known_creds, &tgid, &now, BPF_ANY);
	struct scratch *s = get_scratch();
	if (!s || !wanted_type(VD_EVENT_FORK))
		return 0;
	struct vd_fork *r = BEGIN(vd_fork, VD_EVENT_FORK, s, parent, tgid);
	r->child_start = start;
	r->child_pid = tgid;
	r->child_ns_pid = namespace_pid(child, 0);
	r->parent_start = GET(parent, real_parent, group_leader, start_boottime);
	finish(s);
	return 0;
}

/*
 * do_exit() lowers signal->live before it calls trace_sched_process_exit(), so the thread that sees zero is the last one of its
 * process. Two last threads may both see it; the second is recognised by `seen`.
 */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(sched_process_exit, struct task_struct *task)
{
	if (GET(task, signal, live.counter) != 0)
		return 0;
	u32 tgid = GET(task, tgid);
	bpf_map_delete_elem(&known_creds, &tgid);
	if (!wanted_type(VD_EVENT_EXIT))
		return 0;
	if ((u32)GET(task, pid) != tgid) { /* the leader has gone before: only then can there have been a race */
		struct seen_key key = {.start = GET(task, group_leader, start_boottime), .a = tgid, .type = VD_EVENT_EXIT};
		u64 now = 1;
		if (bpf_map_update_elem(&seen, &key, &now, BPF_NOEXIST))
			return 0;
	}
	struct scratch *s = get_scratch();
	if (!s)
		return 0;
	struct vd_exit *r = BEGIN(vd_exit, VD_EVENT_EXIT, s, task, 0);
	u32 group = GET(task, signal, group_exit_code);
	r->exit_code = group ? group : GET(task, group_leader, exit_code);
	finish(s);
	return 0;
}
