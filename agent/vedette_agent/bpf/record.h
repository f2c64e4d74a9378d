/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Building one record: scratch memory, header, tails, paths, deduplication, output.
 *
 * Scratch is per CPU and shared by all programs of process context. That is safe because tp_btf programs run with
 * preemption off and none of them nests inside another; programs that run in softirq (DNS) have their own scratch.
 */
#ifndef VEDETTE_RECORD_H
#define VEDETTE_RECORD_H

#include "maps.h"

/*
 * Clamp an unsigned variable in a way that neither clang may reorder nor a verifier may lose: 6.12 refuses ranges
 * that other kernels derive from the same C code.
 */
#define CLAMP(variable, limit) asm volatile("if %0 <= %1 goto +1\n\t%0 = %1" : "+r"(variable) : "i"(limit))

static __always_inline struct scratch *scratch_of(u32 which)
{
	return bpf_map_lookup_elem(&scratches, &which);
}

static __always_inline struct scratch *get_scratch(void)
{
	return scratch_of(SCRATCH_PROCESS);
}

static __always_inline bool wanted_type(u32 type)
{
	return !(settings.disabled_types & (1ULL << type));
}

static __always_inline bool is_own(struct task_struct *task)
{
	return (u32)GET(task, tgid) == settings.own_tgid;
}

/* ---- counters and output ---- */

enum counter { COUNT_EMITTED, COUNT_DEDUPLICATED, COUNT_DROPPED };

static __always_inline void count(enum counter which)
{
	u32 zero = 0;
	struct counters *c = bpf_map_lookup_elem(&counters, &zero);
	if (!c)
		return;
	/* Softirq programs share these per-CPU cells: an atomic add keeps an interrupted addition whole. */
	if (which == COUNT_EMITTED)
		__sync_fetch_and_add(&c->emitted, 1);
	else if (which == COUNT_DEDUPLICATED)
		__sync_fetch_and_add(&c->deduplicated, 1);
	else
		__sync_fetch_and_add(&c->dropped, 1);
}

static __always_inline long output(void *record, u64 length)
{
	/* Never wake the reader: it polls. A wake-up per event costs the watched process 3-5 us. */
	long error = bpf_ringbuf_output(&ring, record, length, BPF_RB_NO_WAKEUP);
	count(error ? COUNT_DROPPED : COUNT_EMITTED);
	return error;
}

static __always_inline long finish(struct scratch *s)
{
	u64 length = s->length;
	CLAMP(length, RECORD_LIMIT - 8);
	__builtin_memset(s->record + length, 0, 8);
	length = (length + 7) & ~7ULL;
	((struct vd_header *)s->record)->size = length;
	CLAMP(length, RECORD_LIMIT);
	return output(s->record, length);
}

/* ---- paths ---- */

struct dentry_head { /* d_parent and d_name are adjacent in every kernel since 3.x: one read instead of three */
	u64 parent;
	u64 hash_len;
	u64 name;
};

#define WALK_DEPTH 2100 /* more than a path of 4096 bytes can have components */

struct step_context {
	struct scratch *s;
};

STEP walk_step(u32 index, void *context)
{
	struct scratch *s = ((struct step_context *)context)->s;
	u64 here = s->dentry, start = s->start, mounted = s->mnt;
	if (here == s->root_dentry && mounted == s->root_mnt)
		s->reached_root = 1;
	if (here == s->mnt_root) {
		struct mount *mount = (void *)(mounted - bpf_core_field_offset(struct mount, mnt));
		u64 parent = 0, mountpoint = 0, root = 0;
		bpf_core_read(&parent, 8, &mount->mnt_parent);
		bpf_core_read(&mountpoint, 8, &mount->mnt_mountpoint);
		if (!parent || parent == (u64)mount) {
			s->partial = 0;
			return 1;
		}
		parent += bpf_core_field_offset(struct mount, mnt);
		bpf_core_read(&root, 8, &((struct vfsmount *)parent)->mnt_root);
		s->mnt = parent;
		s->dentry = mountpoint;
		s->mnt_root = root;
		return 0;
	}
	struct dentry_head head = {};
	if (bpf_probe_read_kernel(&head, sizeof(head), (void *)(here + bpf_core_field_offset(struct dentry, d_parent))))
		return 1;
	u64 length = (head.hash_len >> 32) & 0xff;
	if (head.parent == here) {
		s->partial = 0;
		if (start == PATH_LIMIT) {
			start -= length;
			s->start = start;
			CLAMP(start, PATH_LIMIT);
			CLAMP(length, 255);
			bpf_probe_read_kernel(s->path + start, length, (void *)head.name);
		}
		return 1;
	}
	if (start < length + 1)
		return 1;
	start -= length + 1;
	s->start = start;
	CLAMP(start, PATH_LIMIT - 1);
	s->path[start] = '/';
	CLAMP(length, 255);
	bpf_probe_read_kernel(s->path + start + 1, length, (void *)head.name);
	s->dentry = head.parent;
	return 0;
}

/*
 * Walk from (mount, dentry) to the root of the mount namespace, prepending names into scratch->path. bpf_d_path is refused
 * in tp_btf programs, and would say "(deleted)" inside the path, which an attacker can also do.
 *
 * A dentry that is its own parent without being a mount's root belongs to no tree (memfd, pipe): its name alone is the path.
 * Global, so that the verifier checks it once per program however often it is called; arguments are kernel addresses.
 */
__noinline int walk_path(u64 mnt, u64 dentry, u64 root_mnt, u64 root_dentry)
{
	struct step_context context = {.s = get_scratch()};
	struct scratch *s = context.s;
	if (!s)
		return 0;
	u64 mnt_root = 0;
	bpf_core_read(&mnt_root, 8, &((struct vfsmount *)mnt)->mnt_root);
	s->reached_root = 0;
	s->partial = 1;
	s->mnt = mnt;
	s->dentry = dentry;
	s->mnt_root = mnt_root;
	s->root_mnt = root_mnt;
	s->root_dentry = root_dentry;
	s->start = PATH_LIMIT;
	LOOP(WALK_DEPTH, walk_step, &context);
	u64 start = s->start;
	/* The root directory itself: nothing was prepended, and it is not one of the nameless dentries either. */
	if (start == PATH_LIMIT && !s->partial && s->dentry == s->mnt_root) {
		start = PATH_LIMIT - 1;
		s->path[PATH_LIMIT - 1] = '/';
	}
	s->path_start = start;
	s->path_length = PATH_LIMIT - start;
	return s->partial;
}

#define KERNFS_DEPTH 2100

STEP kernfs_step(u32 index, void *context)
{
	struct scratch *s = ((struct step_context *)context)->s;
	struct kernfs_node *kn = (void *)s->node;
	u64 parent = 0, start = s->start;
	if (bpf_core_field_exists(kn->__parent))
		bpf_core_read(&parent, 8, &kn->__parent);
	else
		bpf_core_read(&parent, 8, &((struct kernfs_node___old *)kn)->parent);
	if (!parent) {
		s->partial = 0;
		return 1;
	}
	const char *name = 0;
	/* A spare place for the name, whose length is not known beforehand: the part of `path` behind the walked one. */
	bpf_core_read(&name, 8, &kn->name);
	s64 length = bpf_probe_read_kernel_str(s->path + PATH_LIMIT, 256, name);
	if (length <= 0 || start < length)
		return 1;
	u64 size = length - 1;
	start -= size + 1;
	s->start = start;
	CLAMP(start, PATH_LIMIT - 1);
	s->path[start] = '/';
	CLAMP(size, 255);
	bpf_probe_read_kernel(s->path + start + 1, size, s->path + PATH_LIMIT);
	s->node = parent;
	return 0;
}

/* Path of a cgroup below its hierarchy's root, into scratch->path. */
__noinline int walk_kernfs(u32 which, u64 node)
{
	struct step_context context = {.s = scratch_of(which)};
	struct scratch *s = context.s;
	if (!s)
		return 0;
	s->partial = 1;
	s->node = node;
	s->start = PATH_LIMIT;
	LOOP(KERNFS_DEPTH, kernfs_step, &context);
	u64 start = s->start;
	if (start == PATH_LIMIT) {
		start = PATH_LIMIT - 1;
		s->path[PATH_LIMIT - 1] = '/';
	}
	s->path_start = start;
	s->path_length = PATH_LIMIT - start;
	return s->partial;
}

/* ---- header ---- */

static __always_inline u64 cgroup_node(struct task_struct *task)
{
	u64 node = 0;
	if (config.hierarchy == 1) {
		u64 css = 0, cgroup = 0;
		u32 index = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);
		struct css_set *set = BPF_CORE_READ(task, cgroups);
		bpf_probe_read_kernel(&css, 8, (void *)((u64)set + bpf_core_field_offset(struct css_set, subsys) + 8 * index));
		bpf_core_read(&cgroup, 8, &((struct cgroup_subsys_state *)css)->cgroup);
		bpf_core_read(&node, 8, &((struct cgroup *)cgroup)->kn);
	} else {
		struct cgroup *cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp);
		bpf_core_read(&node, 8, &cgroup->kn); /* by helper: the address goes into a global function, which takes numbers only */
	}
	return node;
}

/*
 * Read with helpers although direct loads would be possible: the verifier looks each direct load up in the BTF of task_struct again and
 * again, in every program, which would add half a second to the start; the helpers cost 0.1 us of a record's 2 us.
 */
static __always_inline void fill_header(struct vd_header *h, struct task_struct *task, u16 type, s32 result)
{
	u32 compat = BPF_CORE_READ(task, thread_info.status) & TS_COMPAT;
	h->type = type;
	h->flags = compat ? VD_COMMON_COMPAT : 0;
	if (BPF_CORE_READ(task, flags) & PF_KTHREAD)
		h->flags |= VD_COMMON_KTHREAD;
	h->time = bpf_ktime_get_boot_ns();
	h->start = BPF_CORE_READ(task, group_leader, start_boottime);
	h->pid = BPF_CORE_READ(task, tgid);
	h->tid = BPF_CORE_READ(task, pid);
	h->ppid = BPF_CORE_READ(task, real_parent, tgid);
	h->uid = BPF_CORE_READ(task, cred, uid.val);
	h->euid = BPF_CORE_READ(task, cred, euid.val);
	h->result = result;
	bpf_core_read(h->comm, sizeof(h->comm), &task->comm);
}

/* Emit the CGROUP record of `node`. */
__noinline int announce_cgroup(u32 which, u64 node, u64 id)
{
	struct scratch *s = scratch_of(which);
	if (!s)
		return 0;
	s->announced = 1;
	struct vd_cgroup *r = (void *)s->record;
	__builtin_memset(r, 0, sizeof(*r));
	fill_header(&r->header, current_task(), VD_EVENT_CGROUP, 0);
	r->header.cgroup = id;
	r->hierarchy = config.hierarchy;
	if (walk_kernfs(which, node))
		r->header.flags |= VD_COMMON_PATH_PARTIAL;
	u64 at = s->path_start, length = s->path_length;
	CLAMP(at, PATH_LIMIT);
	CLAMP(length, PATH_LIMIT);
	bpf_probe_read_kernel(s->record + sizeof(*r), length, s->path + at);
	r->path_len = length;
	s->length = sizeof(*r) + length;
	if (finish(s))
		bpf_map_delete_elem(&seen_cgroups, &id); /* dropped: try again with the next event */
	return 0;
}

static __always_inline u64 note_cgroup(u32 which, struct task_struct *task)
{
	u64 node = cgroup_node(task), id = 0, one = 1;
	bpf_core_read(&id, 8, &((struct kernfs_node *)node)->id);
	if (id && !bpf_map_lookup_elem(&seen_cgroups, &id)) {
		bpf_map_update_elem(&seen_cgroups, &id, &one, BPF_ANY);
		announce_cgroup(which, node, id);
	}
	return id;
}

static __always_inline void *begin_record(struct scratch *s, struct task_struct *task, u16 type, u32 size, s32 result)
{
	s->announced = 0;
	u64 cgroup = note_cgroup(SCRATCH_PROCESS, task); /* uses the scratch itself: first */
	struct vd_header *h = (void *)s->record;
	__builtin_memset(h, 0, size);
	fill_header(h, task, type, result);
	h->cgroup = cgroup;
	s->length = size;
	return h;
}

/* BEGIN(vd_open, VD_EVENT_OPEN, s, task, ret): the type's struct, zeroed, header filled */
#define BEGIN(structure, type, s, task, result) \
	((struct structure *)begin_record(s, task, type, sizeof(struct structure), result))

#define HEADER(s) ((struct vd_header *)(s)->record)

/* ---- tails: each call appends one and returns its length ---- */

static __always_inline u8 *tail_at(struct scratch *s)
{
	u64 at = s->length;
	CLAMP(at, RECORD_LIMIT);
	return s->record + at;
}

/* What walk_path left. */
static __always_inline u16 append_walked(struct scratch *s)
{
	u64 from = s->path_start, length = s->path_length;
	CLAMP(from, PATH_LIMIT);
	CLAMP(length, PATH_LIMIT);
	bpf_probe_read_kernel(tail_at(s), length, s->path + from);
	s->length += length;
	return length;
}

static __always_inline u16 append_path(struct scratch *s, u64 mnt, u64 dentry)
{
	if (!dentry)
		return 0;
	if (walk_path(mnt, dentry, 0, 0))
		HEADER(s)->flags |= VD_COMMON_PATH_PARTIAL;
	return append_walked(s);
}

static __always_inline u16 append_file_path(struct scratch *s, struct file *file)
{
	if (!file)
		return 0;
	return append_path(s, (u64)BPF_CORE_READ(file, f_path.mnt), (u64)BPF_CORE_READ(file, f_path.dentry));
}

/* A string of user memory; `limit` is a constant. */
static __always_inline u16 append_user_string(struct scratch *s, u64 address, const u32 limit)
{
	if (!address)
		return 0;
	s64 length = bpf_probe_read_user_str(tail_at(s), limit, (void *)address);
	if (length <= 0) {
		HEADER(s)->flags |= VD_COMMON_FAULT;
		return 0;
	}
	if (length == limit)
		HEADER(s)->flags |= VD_COMMON_TRUNCATED;
	length -= 1;
	s->length += length;
	return length;
}

static __always_inline u16 append_kernel_string(struct scratch *s, const void *address, const u32 limit)
{
	if (!address)
		return 0;
	s64 length = bpf_probe_read_kernel_str(tail_at(s), limit, address);
	if (length <= 0)
		return 0;
	if (length == limit)
		HEADER(s)->flags |= VD_COMMON_TRUNCATED;
	length -= 1;
	s->length += length;
	return length;
}

/* ---- file descriptors ---- */

static __always_inline struct file *file_of(struct task_struct *task, s64 fd)
{
	struct file *file = 0;
	if (fd < 0)
		return 0;
	struct fdtable *table = GET(task, files, fdt);
	u32 max = BPF_CORE_READ(table, max_fds);
	u64 array = (u64)BPF_CORE_READ(table, fd);
	if ((u64)fd >= max)
		return 0;
	bpf_probe_read_kernel(&file, sizeof(file), (void *)(array + 8 * (u64)fd));
	return file;
}

/*
 * The directory that a relative path begins at. The path itself was appended last, `length` bytes of it. Empty for an
 * absolute one.
 */
static __always_inline u16 append_directory(struct scratch *s, struct task_struct *task, s32 dfd, u64 length)
{
	u64 at = s->length;
	if (length) {
		at -= length;
		CLAMP(at, RECORD_LIMIT);
		if (s->record[at] == '/')
			return 0;
	}
	if (dfd == AT_FDCWD) {
		struct fs_struct *fs = GET(task, fs);
		return append_path(s, (u64)BPF_CORE_READ(fs, pwd.mnt), (u64)BPF_CORE_READ(fs, pwd.dentry));
	}
	return append_file_path(s, file_of(task, dfd));
}

/* A path as passed, made absolute in front where it is relative: for tails that have no directory beside them. */
static __always_inline u16 append_joined(struct scratch *s, struct task_struct *task, s32 dfd, u64 address)
{
	u32 begin = s->length;
	u8 first = 0;
	if (!address)
		return 0;
	if (bpf_probe_read_user(&first, 1, (void *)address)) {
		HEADER(s)->flags |= VD_COMMON_FAULT;
		return 0;
	}
	if (first != '/') {
		append_directory(s, task, dfd, 0);
		if (first) {
			u8 *at = tail_at(s);
			*at = '/';
			s->length += 1;
		}
	}
	if (first)
		append_user_string(s, address, PATH_LIMIT);
	u32 length = s->length - begin;
	if (length > PATH_LIMIT) {
		HEADER(s)->flags |= VD_COMMON_TRUNCATED;
		length = PATH_LIMIT;
		s->length = begin + length;
	}
	return length;
}

/* ---- deduplication ---- */

static __always_inline void seen_process(struct seen_key *key, struct task_struct *task, u32 type)
{
	key->start = GET(task, group_leader, start_boottime);
	key->exec = GET(task, self_exec_id);
	key->type = type;
}

/* Whether the same was reported within the TTL; notes it otherwise. */
static __always_inline bool seen_before(struct seen_key *key)
{
	u64 ttl = settings.dedupe_ttl;
	if (!ttl)
		return false;
	u64 now = bpf_ktime_get_boot_ns();
	u64 *then = bpf_map_lookup_elem(&seen, key);
	if (then && now - *then < ttl) {
		count(COUNT_DEDUPLICATED);
		return true;
	}
	bpf_map_update_elem(&seen, key, &now, BPF_ANY);
	return false;
}

#define HASH_WORDS 32

STEP hash_step(u32 index, void *context)
{
	struct scratch *s = ((struct step_context *)context)->s;
	u64 where = s->at;
	if (where >= s->end)
		return 1;
	CLAMP(where, RECORD_LIMIT);
	u64 word = *(u64 *)(s->record + where), hash = s->hash;
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
	s->hash = hash ^ hash >> 29;
	s->at = where + 8;
	return 0;
}

/*
 * Keyed hash of the `length` bytes of the record from `at`; zero for what is longer than 256 bytes (not deduplicated).
 * Global: verified once. Not cryptographic, but the seed is secret and nothing shows the hash.
 */
__noinline int hash_record(u32 at, u32 length, u64 more)
{
	struct step_context context = {.s = get_scratch()};
	struct scratch *s = context.s;
	if (!s)
		return 0;
	s->hash = 0;
	if (length > HASH_WORDS * 8)
		return 0;
	u64 end = (u64)at + length;
	CLAMP(end, RECORD_LIMIT);
	__builtin_memset(s->record + end, 0, 8);
	s->hash = config.seed ^ more;
	s->at = at;
	s->end = end;
	LOOP(HASH_WORDS, hash_step, &context);
	u64 hash = (s->hash ^ length) * 0xbf58476d1ce4e5b9ULL;
	hash ^= hash >> 32;
	s->hash = hash ? hash : 1;
	return 0;
}

/* Whether this process did the same to the same name(s) within the TTL: the tails from `from` to the end. */
static __always_inline bool seen_tails(struct scratch *s, struct task_struct *task, u32 type, u32 from, s64 result, u64 more)
{
	hash_record(from, s->length - from, more);
	if (!s->hash)
		return false;
	struct seen_key key = {.a = s->hash, .b = result, .c = more};
	seen_process(&key, task, type);
	return seen_before(&key);
}

/* ---- files ---- */

static __always_inline u64 ctime_of(struct inode *inode)
{
	if (bpf_core_field_exists(inode->i_ctime_sec))
		return BPF_CORE_READ(inode, i_ctime_sec) * 1000000000ULL + BPF_CORE_READ(inode, i_ctime_nsec);
	struct inode___6_6 *newer = (void *)inode;
	if (bpf_core_field_exists(newer->__i_ctime))
		return BPF_CORE_READ(newer, __i_ctime.tv_sec) * 1000000000ULL + BPF_CORE_READ(newer, __i_ctime.tv_nsec);
	struct inode___old *old = (void *)inode;
	return BPF_CORE_READ(old, i_ctime.tv_sec) * 1000000000ULL + BPF_CORE_READ(old, i_ctime.tv_nsec);
}

struct file_facts {
	u64 ino;
	u32 dev, bits, mode;
};

/* OVERLAY, UPPER, NO_LOWER. overlayfs embeds the VFS inode in its own; what follows it is __upperdentry, then (>= 6.5) oe. */
static __always_inline u32 overlay_bits(struct inode *inode, struct dentry *dentry)
{
	u32 bits = VD_FILE_BITS_OVERLAY, lowers = 1;
	u64 upper = 0, entry = 0, after = (u64)inode + bpf_core_type_size(struct inode);
	bpf_probe_read_kernel(&upper, 8, (void *)after);
	if (!upper)
		return bits;
	bits |= VD_FILE_BITS_UPPER;
	if (config.overlay_entry == 2) {
		bpf_probe_read_kernel(&entry, 8, (void *)(after + 8));
		if (!entry || (!bpf_probe_read_kernel(&lowers, 4, (void *)entry) && !lowers))
			bits |= VD_FILE_BITS_NO_LOWER;
	} else if (config.overlay_entry == 1) {
		entry = (u64)BPF_CORE_READ(dentry, d_fsdata);
		if (entry && !bpf_probe_read_kernel(&lowers, 4, (void *)(entry + 16)) && !lowers)
			bits |= VD_FILE_BITS_NO_LOWER;
	}
	return bits;
}

static __always_inline void file_facts(struct file_facts *f, struct file *file)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	struct super_block *sb = BPF_CORE_READ(inode, i_sb);
	u64 magic = BPF_CORE_READ(sb, s_magic);
	u32 links = BPF_CORE_READ(inode, i_nlink), bits = 0, mode = BPF_CORE_READ(inode, i_mode);
	f->ino = BPF_CORE_READ(inode, i_ino);
	f->dev = BPF_CORE_READ(sb, s_dev);
	f->mode = mode;
	if (mode & S_ISUID)
		bits |= VD_FILE_BITS_SETUID;
	if (mode & S_ISGID)
		bits |= VD_FILE_BITS_SETGID;
	mode &= S_IFMT;
	if (mode == S_IFIFO)
		bits |= VD_FILE_BITS_FIFO;
	else if (mode == S_IFCHR)
		bits |= VD_FILE_BITS_CHRDEV;
	else if (mode == S_IFBLK)
		bits |= VD_FILE_BITS_BLKDEV;
	else if (mode == S_IFSOCK)
		bits |= VD_FILE_BITS_SOCKET;
	else if (mode == S_IFDIR)
		bits |= VD_FILE_BITS_DIRECTORY;
	if (!links)
		bits |= VD_FILE_BITS_UNLINKED;
	if (magic == OVERLAYFS_MAGIC) {
		bits |= overlay_bits(inode, BPF_CORE_READ(file, f_path.dentry));
	} else if (magic == TMPFS_MAGIC || magic == RAMFS_MAGIC || magic == HUGETLBFS_MAGIC) {
		if (magic != HUGETLBFS_MAGIC)
			bits |= VD_FILE_BITS_TMPFS;
		if (!links) {
			/* A memfd lies on the kernel's own tmpfs (or hugetlbfs); only its dentry's name tells it from System V memory. */
			struct dentry *dentry = BPF_CORE_READ(file, f_path.dentry);
			u64 name = 0;
			if (BPF_CORE_READ(dentry, d_parent) == dentry &&
			    !bpf_probe_read_kernel(&name, 6, BPF_CORE_READ(dentry, d_name.name)) && name == 0x3a64666d656dULL /* "memfd:" */)
				bits |= VD_FILE_BITS_MEMFD;
		}
	} else if (magic == PROC_MAGIC) {
		bits |= VD_FILE_BITS_PROC;
	} else if (magic == CGROUP_MAGIC || magic == CGROUP2_MAGIC) {
		bits |= VD_FILE_BITS_CGROUPFS;
	}
	f->bits = bits;
}

/* ---- sockets ---- */

struct sock_fields { /* the schema's SOCK group, as every struct that has it holds it */
	u16 family, sock_type, protocol, lport, rport, fd;
	u32 sock_pad;
	u32 laddr[4], raddr[4];
	u64 sock_ino;
};
_Static_assert(sizeof(struct sock_fields) == 56, "SOCK");
_Static_assert(__builtin_offsetof(struct vd_connect, path_len) - __builtin_offsetof(struct vd_connect, family) == 56, "SOCK");
#define SOCK(record) ((struct sock_fields *)&(record)->family)

/* struct sock of a descriptor's file, 0 when it is no socket. */
static __always_inline struct sock *sock_of(struct file *file)
{
	if (!file)
		return 0;
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	if ((BPF_CORE_READ(inode, i_mode) & S_IFMT) != S_IFSOCK || BPF_CORE_READ(inode, i_sb, s_magic) != SOCKFS_MAGIC)
		return 0;
	struct socket *socket = BPF_CORE_READ(file, private_data);
	return BPF_CORE_READ(socket, sk);
}

/* IPv4 in the last word; an IPv4-mapped IPv6 address is written as the IPv4 address that travels on the wire. */
static __always_inline bool set_address6(u32 *out, const u32 *words)
{
	out[3] = words[3];
	if (!words[0] && !words[1] && words[2] == bpf_htonl(0xffff))
		return true;
	out[0] = words[0];
	out[1] = words[1];
	out[2] = words[2];
	return false;
}

static __noinline void fill_sock(struct sock_fields *out, struct sock *sk)
{
	u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	out->family = family;
	out->sock_type = BPF_CORE_READ(sk, sk_type);
	out->protocol = BPF_CORE_READ(sk, sk_protocol);
	if (family == AF_INET) {
		out->laddr[3] = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
		out->raddr[3] = BPF_CORE_READ(sk, __sk_common.skc_daddr);
	} else if (family == AF_INET6) {
		u32 words[4] = {};
		bool mapped = false;
		bpf_core_read(words, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		mapped |= set_address6(out->laddr, words);
		bpf_core_read(words, 16, &sk->__sk_common.skc_v6_daddr);
		mapped |= set_address6(out->raddr, words);
		if (mapped)
			out->family = AF_INET;
	} else {
		return;
	}
	out->lport = BPF_CORE_READ(sk, __sk_common.skc_num);
	out->rport = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
}

static __always_inline void fill_socket_file(struct sock_fields *out, struct file *file, struct sock *sk, s64 fd)
{
	out->fd = fd;
	out->sock_ino = BPF_CORE_READ(file, f_inode, i_ino);
	fill_sock(out, sk);
}

/* ---- credentials ---- */

static __always_inline void creds_now(struct creds *c, struct task_struct *task, u64 start)
{
	c->start = start;
	const struct cred *cred = BPF_CORE_READ(task, cred);
	bpf_core_read(&c->caps, sizeof(c->caps), &cred->cap_effective);
	c->uid = BPF_CORE_READ(task, cred, uid.val);
	c->euid = BPF_CORE_READ(task, cred, euid.val);
	c->gid = BPF_CORE_READ(task, cred, gid.val);
	c->egid = BPF_CORE_READ(task, cred, egid.val);
}

static __always_inline void fill_identity(struct identity *who, struct task_struct *task)
{
	who->start = BPF_CORE_READ(task, group_leader, start_boottime);
	who->pid = BPF_CORE_READ(task, tgid);
	who->tid = BPF_CORE_READ(task, pid);
	who->ppid = BPF_CORE_READ(task, real_parent, tgid);
	who->uid = BPF_CORE_READ(task, cred, uid.val);
	who->euid = BPF_CORE_READ(task, cred, euid.val);
	bpf_core_read(who->comm, sizeof(who->comm), &task->comm);
}

/* ---- the call ---- */

#include "compat.h"

struct call {
	u64 a[6];
	u32 number; /* of the 64-bit table */
	bool compat;
};

/* At exit the argument registers are still what the process passed (x86-64). */
static __always_inline void load_call(struct call *call, struct task_struct *task, struct pt_regs *regs)
{
	u32 number = GET(regs, orig_ax);
	call->compat = GET(task, thread_info.status) & TS_COMPAT;
	if (call->compat) {
		call->number = compat_number(number, GET(regs, bx));
		call->a[0] = (u32)GET(regs, bx);
		call->a[1] = (u32)GET(regs, cx);
		call->a[2] = (u32)GET(regs, dx);
		call->a[3] = (u32)GET(regs, si);
		call->a[4] = (u32)GET(regs, di);
		call->a[5] = (u32)GET(regs, bp);
		if (number == COMPAT_SOCKETCALL || number == COMPAT_OLD_MMAP) { /* the arguments lie in memory */
			u32 words[6] = {};
			u64 from = number == COMPAT_SOCKETCALL ? call->a[1] : call->a[0];
			bpf_probe_read_user(words, sizeof(words), (void *)from);
			for (int i = 0; i < 6; i++)
				call->a[i] = words[i];
		}
		return;
	}
	call->number = number & ~X32_BIT;
	call->a[0] = GET(regs, di);
	call->a[1] = GET(regs, si);
	call->a[2] = GET(regs, dx);
	call->a[3] = GET(regs, r10);
	call->a[4] = GET(regs, r8);
	call->a[5] = GET(regs, r9);
}

#define SYSCALL_EXIT(name) \
	SEC("tp_btf/sys_exit") \
	int BPF_PROG(name, struct pt_regs *regs, long ret)

#endif
