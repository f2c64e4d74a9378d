/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel's structures, as far as the programs read them. Every struct is relocated by libbpf against the
 * running kernel's BTF (CO-RE), so order, size and missing members do not matter here: only names and types do.
 * Written by hand instead of dumping vmlinux.h: 3 KB instead of 2.8 MB, and a reader sees what is relied on.
 *
 * Only types that live in vmlinux itself are used. A reference to a type of a module (overlayfs, for instance) would make
 * libbpf walk the modules' BTF, which needs CAP_SYS_ADMIN.
 *
 * Flavours (___name) hold what a member was called in other kernel versions.
 */
#ifndef VEDETTE_CORE_H
#define VEDETTE_CORE_H

#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_endian.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
#define true 1
#define false 0

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head;
struct hlist_node {
	struct hlist_node *next;
};
struct hlist_head {
	struct hlist_node *first;
};

/* Files, directories, mounts */
struct qstr {
	union {
		struct {
			u32 hash;
			u32 len;
		};
		u64 hash_len;
	};
	const unsigned char *name;
};
struct super_block {
	u32 s_dev;
	unsigned long s_magic;
};
struct timespec64 {
	s64 tv_sec;
	long tv_nsec;
};
struct inode {
	unsigned short i_mode;
	struct super_block *i_sb;
	unsigned long i_ino;
	unsigned int i_nlink;
	u32 i_rdev;
	s64 i_ctime_sec;
	u32 i_ctime_nsec;
};
struct inode___6_6 {
	struct timespec64 __i_ctime;
};
struct inode___old {
	struct timespec64 i_ctime;
};
struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
	struct super_block *d_sb;
	void *d_fsdata;
};
struct vfsmount {
	struct dentry *mnt_root;
	struct super_block *mnt_sb;
};
struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};
struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};
struct file {
	struct inode *f_inode;
	struct path f_path;
	unsigned int f_flags;
	void *private_data;
};
struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};
struct files_struct {
	struct fdtable *fdt;
};
struct fs_struct {
	struct path root;
	struct path pwd;
};
struct filename {
	const char *name;
};

/* Processes */
typedef struct {
	u32 val;
} kuid_t;
typedef struct {
	u32 val;
} kgid_t;
typedef struct kernel_cap_struct {
	u32 cap[2]; /* or one u64: 8 bytes in either layout */
} kernel_cap_t;
struct cred {
	kuid_t uid, euid;
	kgid_t gid, egid;
	kernel_cap_t cap_effective;
};
struct ns_common {
	unsigned int inum;
};
struct mnt_namespace {
	struct ns_common ns;
};
struct xarray {
	void *xa_head;
};
struct xa_node {
	unsigned char shift;
	void *slots[64];
};
struct idr {
	struct xarray idr_rt;
};
struct pid_namespace {
	struct idr idr;
	unsigned int level;
	struct ns_common ns;
};
struct upid {
	int nr;
	struct pid_namespace *ns;
};
struct pid {
	unsigned int level;
	struct hlist_head tasks[4];
	struct upid numbers[1];
};
struct net;
struct nsproxy {
	struct mnt_namespace *mnt_ns;
	struct net *net_ns;
};
struct mm_struct {
	unsigned long start_brk, brk, start_stack;
	unsigned long arg_start, arg_end, env_start, env_end;
};
struct kernfs_node {
	struct kernfs_node *__parent;
	const char *name;
	u64 id;
};
struct kernfs_node___old {
	struct kernfs_node *parent;
};
struct cgroup {
	struct kernfs_node *kn;
};
struct cgroup_subsys_state {
	struct cgroup *cgroup;
};
struct css_set {
	struct cgroup_subsys_state *subsys[16];
	struct cgroup *dfl_cgrp;
};
enum cgroup_subsys_id {
	memory_cgrp_id = 4,
};
typedef struct {
	int counter;
} atomic_t;
struct signal_struct {
	atomic_t live;
	int group_exit_code;
};
struct thread_info {
	u32 status;
};
struct task_struct {
	struct thread_info thread_info;
	unsigned int flags;
	int pid, tgid;
	struct task_struct *real_parent, *group_leader;
	struct pid *thread_pid;
	struct hlist_node pid_links[4];
	char comm[16];
	u64 start_boottime;
	u64 self_exec_id;
	const struct cred *cred;
	struct fs_struct *fs;
	struct files_struct *files;
	struct mm_struct *mm;
	struct nsproxy *nsproxy;
	struct css_set *cgroups;
	struct signal_struct *signal;
	int exit_code;
};
struct linux_binprm {
	struct file *file;
	const char *filename;
	const char *interp;
	int argc;
	unsigned int secureexec : 1;
};
struct pt_regs {
	unsigned long r10, r9, r8, cx, dx, si, di, bx, bp, ax, orig_ax, sp;
};

/* Network */
struct in6_addr {
	u32 words[4]; /* opaque: only its address is taken */
};
typedef struct {
	struct net *net;
} possible_net_t;
struct sock_common {
	possible_net_t skc_net;
	u16 skc_family;
	u8 skc_state;
	u32 skc_daddr, skc_rcv_saddr;
	u16 skc_dport;
	u16 skc_num;
	struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
};
struct sock {
	struct sock_common __sk_common;
	u16 sk_protocol;
	u16 sk_type;
	struct socket *sk_socket;
};
struct socket {
	struct sock *sk;
	struct file *file;
};
struct unix_sock {
	struct sock *peer;
	struct path path;
};
struct sk_buff {
	struct sock *sk;
	unsigned char *head;
	unsigned char *data;
	u16 network_header, transport_header;
	u16 protocol;
	unsigned int len, data_len;
};

/* io_uring: the request's own part is read through the type of its operation. */
struct io_kiocb {
	u8 opcode;
	void *async_data;
};
struct open_how {
	u64 flags;
};
struct io_open {
	struct file *file;
	int dfd;
	struct filename *filename;
	struct open_how how;
};
struct io_connect {
	struct file *file;
	void *addr;
	int addr_len;
};
struct io_unlink {
	int flags;
	struct filename *filename;
};
struct io_rename {
	struct filename *oldpath, *newpath;
	int flags;
};
struct io_link {
	struct filename *oldpath, *newpath;
	int flags;
};
/* Since 7.0 the paths lie in a struct of their own. */
struct delayed_filename {
	struct filename *__incomplete_filename;
};
struct io_open___7_0 {
	struct delayed_filename filename;
};
struct io_unlink___7_0 {
	struct delayed_filename filename;
};
struct io_rename___7_0 {
	struct delayed_filename oldpath, newpath;
};
struct io_link___7_0 {
	struct delayed_filename oldpath, newpath;
};
struct io_socket {
	int domain, type, protocol;
};

#pragma clang attribute pop

/*
 * GET(p, a, b) is p->a->b, for the checks that every call of a kind passes through. The ordinary object loads directly through
 * BTF pointers (measured 10-20 % cheaper than helper calls); the base object, for kernels before 5.17, which lack
 * bpf_loop or even bpf_get_current_task_btf, reads with helpers throughout.
 */
#ifdef VEDETTE_BASE
#define GET(...) BPF_CORE_READ(__VA_ARGS__)
static __always_inline struct task_struct *current_task(void)
{
	return (struct task_struct *)bpf_get_current_task();
}
#else
#define GET(...) ___arrow(__VA_ARGS__)
static __always_inline struct task_struct *current_task(void)
{
	return (struct task_struct *)bpf_get_current_task_btf();
}
#endif

/*
 * LOOP(times, step, context): step(index, context) until it returns 1. With bpf_loop (5.17) the verifier checks one round instead of
 * all, so the bound can be as high as the data wants; the base object has every round verified, BASE_LOOP at most. CHEAP_LOOP has no
 * such limit, for steps that the verifier is quickly through with.
 */
#ifdef VEDETTE_BASE
#define BASE_LOOP 64
#define STEP static __always_inline long
#define LOOP(times, step, context) CHEAP_LOOP((times) < BASE_LOOP ? (times) : BASE_LOOP, step, context)
#define CHEAP_LOOP(times, step, context) \
	for (u32 round = 0; round < (times); round++) \
		if (step(round, context)) \
			break;
#else
#define STEP static __noinline long
#define LOOP(times, step, context) bpf_loop(times, step, context, 0)
#define CHEAP_LOOP LOOP
#endif

#define AT_FDCWD -100
#define PF_KTHREAD 0x00200000
#define TS_COMPAT 0x0002

#define S_IFMT 00170000
#define S_IFSOCK 0140000
#define S_IFREG 0100000
#define S_IFBLK 0060000
#define S_IFDIR 0040000
#define S_IFCHR 0020000
#define S_IFIFO 0010000
#define S_ISUID 0004000
#define S_ISGID 0002000

#define OVERLAYFS_MAGIC 0x794c7630
#define TMPFS_MAGIC 0x01021994
#define RAMFS_MAGIC 0x858458f6
#define HUGETLBFS_MAGIC 0x958458f6
#define PROC_MAGIC 0x9fa0
#define CGROUP_MAGIC 0x27e0eb
#define CGROUP2_MAGIC 0x63677270
#define PIPEFS_MAGIC 0x50495045
#define SOCKFS_MAGIC 0x534F434B

#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define AF_NETLINK 16
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17

#define EEXIST 17
#define EINPROGRESS 115

#endif
