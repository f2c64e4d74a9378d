/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Generated from events/vedette_events/schema.py by `python -m vedette_events.generate`. Do not edit. */
/*
 * A record is: the struct of its type (header, fields, lengths of the tails), the tails' bytes one after
 * another, zeros up to a multiple of 8. header.size counts all of it.
 */
#ifndef VEDETTE_EVENTS_GEN_H
#define VEDETTE_EVENTS_GEN_H

#ifndef VD_NO_LINUX_TYPES	/* define it where __u8 ... __s64 are declared already */
#include <linux/types.h>
#endif

#define VD_SCHEMA_VERSION 1
#define VD_HEADER_SIZE 72
#define VD_MAX_RECORD 17664	/* no record is longer */
#define VD_EVENT_MAX 30	/* greatest event code */

enum vd_event {
	VD_EVENT_EXEC = 1,
	VD_EVENT_EXIT = 2,
	VD_EVENT_FORK = 3,
	VD_EVENT_CGROUP = 4,
	VD_EVENT_OPEN = 5,
	VD_EVENT_UNLINK = 6,
	VD_EVENT_RENAME = 7,
	VD_EVENT_LINK = 8,
	VD_EVENT_SYMLINK = 9,
	VD_EVENT_CHMOD = 10,
	VD_EVENT_MOUNT = 11,
	VD_EVENT_UMOUNT = 12,
	VD_EVENT_MMAP = 13,
	VD_EVENT_MPROTECT = 14,
	VD_EVENT_SOCKET = 15,
	VD_EVENT_CONNECT = 16,
	VD_EVENT_BIND = 17,
	VD_EVENT_LISTEN = 18,
	VD_EVENT_ACCEPT = 19,
	VD_EVENT_DUP = 20,
	VD_EVENT_PTRACE = 21,
	VD_EVENT_VM_READ = 22,
	VD_EVENT_VM_WRITE = 23,
	VD_EVENT_SETUID = 24,
	VD_EVENT_MEMFD = 25,
	VD_EVENT_USERFAULTFD = 26,
	VD_EVENT_MODULE = 27,
	VD_EVENT_IO_URING = 28,
	VD_EVENT_DNS = 29,
	VD_EVENT_FILE_HASH = 30,
};

/* ``flags`` of every record's header. */
#define VD_COMMON_TRUNCATED 0x1u	/* at least one tail is shorter than what the process gave */
#define VD_COMMON_COMPAT 0x2u	/* entered through the 32-bit system call table */
#define VD_COMMON_IO_URING 0x4u	/* performed by io_uring, not by a system call */
#define VD_COMMON_SNAPSHOT 0x8u	/* made from /proc when the agent started, not by a kernel hook */
#define VD_COMMON_NO_PROCESS 0x10u	/* seen outside process context: pid, uid and comm say nothing */
#define VD_COMMON_PATH_PARTIAL 0x20u	/* a path was deeper than the walk's bound: its beginning is missing */
#define VD_COMMON_KTHREAD 0x40u	/* the acting task is a kernel thread */
#define VD_COMMON_FAULT 0x80u	/* user memory could not be read: the tail concerned is empty */

/* What is known of a file: the ``file_bits`` field of exec, open and mmap. */
#define VD_FILE_BITS_OVERLAY 0x1u	/* lies on an overlay file system (a container's root) */
#define VD_FILE_BITS_UPPER 0x2u	/* lies in the overlay's upper layer: made or changed since the container was created */
#define VD_FILE_BITS_NO_LOWER 0x4u	/* has no lower file: was not in the image at all (when the kernel allows to tell) */
#define VD_FILE_BITS_UNLINKED 0x8u	/* has no name any more (link count zero) */
#define VD_FILE_BITS_MEMFD 0x10u	/* made by memfd_create */
#define VD_FILE_BITS_TMPFS 0x20u	/* lies on tmpfs or ramfs, /dev/shm included */
#define VD_FILE_BITS_SETUID 0x40u	/* has the set-user-id mode bit */
#define VD_FILE_BITS_SETGID 0x80u
#define VD_FILE_BITS_FIFO 0x100u
#define VD_FILE_BITS_CHRDEV 0x200u
#define VD_FILE_BITS_BLKDEV 0x400u
#define VD_FILE_BITS_SOCKET 0x800u
#define VD_FILE_BITS_DIRECTORY 0x1000u
#define VD_FILE_BITS_PROC 0x2000u	/* lies on procfs */
#define VD_FILE_BITS_CGROUPFS 0x4000u	/* lies on cgroup v1 or v2 */

/* ``exec_bits`` of exec. */
#define VD_EXEC_BITS_SCRIPT 0x1u	/* an interpreter was run for a script (#! or binfmt_misc); ``filename`` is the script */
#define VD_EXEC_BITS_OLD_CREDS_UNKNOWN 0x2u	/* old_* are not known (process older than the agent) */
#define VD_EXEC_BITS_CWD_UNREACHABLE 0x4u	/* the working directory is not below the process's root (CVE-2024-21626's mark) */
#define VD_EXEC_BITS_ENV_TRUNCATED 0x8u	/* more environment than was searched for loader variables */
#define VD_EXEC_BITS_SECUREEXEC 0x10u	/* the kernel ran the file with AT_SECURE (set-user-id and the like) */

/* What a standard descriptor refers to. */
#define VD_STDIO_KIND_NONE 0
#define VD_STDIO_KIND_FILE 1
#define VD_STDIO_KIND_TTY 2
#define VD_STDIO_KIND_PIPE 3
#define VD_STDIO_KIND_FIFO 4
#define VD_STDIO_KIND_INET 5
#define VD_STDIO_KIND_UNIX 6
#define VD_STDIO_KIND_OTHER_SOCKET 7
#define VD_STDIO_KIND_NULL 8
#define VD_STDIO_KIND_OTHER 9

/* Which call made a ``mount`` event. */
#define VD_MOUNT_OP_MOUNT 1
#define VD_MOUNT_OP_MOVE_MOUNT 2
#define VD_MOUNT_OP_OPEN_TREE 3
#define VD_MOUNT_OP_FSOPEN 4
#define VD_MOUNT_OP_FSCONFIG 5
#define VD_MOUNT_OP_FSMOUNT 6
#define VD_MOUNT_OP_PIVOT_ROOT 7
#define VD_MOUNT_OP_MOUNT_SETATTR 8

/* Which call made a ``module`` event. */
#define VD_MODULE_OP_INIT 1
#define VD_MODULE_OP_FINIT 2
#define VD_MODULE_OP_DELETE 3

/* Which call made a ``setuid`` event. */
#define VD_CRED_CALL_SETUID 1
#define VD_CRED_CALL_SETREUID 2
#define VD_CRED_CALL_SETRESUID 3
#define VD_CRED_CALL_SETFSUID 4
#define VD_CRED_CALL_SETGID 5
#define VD_CRED_CALL_SETREGID 6
#define VD_CRED_CALL_SETRESGID 7
#define VD_CRED_CALL_SETFSGID 8
#define VD_CRED_CALL_CAPSET 9

/* ``direction`` of dns. */
#define VD_DNS_DIRECTION_QUERY 1
#define VD_DNS_DIRECTION_ANSWER 2

/* ``region`` of mprotect and mmap. */
#define VD_MEMORY_REGION_STACK 0x1u
#define VD_MEMORY_REGION_HEAP 0x2u
#define VD_MEMORY_REGION_ANONYMOUS 0x4u
#define VD_MEMORY_REGION_FILE 0x8u

/* What every record begins with. */
struct vd_header {
	__u32 size;	/* Length of the record in bytes, a multiple of 8. */
	__u16 type;	/* Code of the event type. */
	__u16 flags;	/* What holds for every type. VD_COMMON_* */
	__u64 time;	/* Nanoseconds since boot (CLOCK_BOOTTIME), suspend included. */
	__u64 cgroup;	/* Id of the cgroup of the acting process: the inode of its directory. */
	__u64 start;	/* When the acting process started, ns since boot; (pid, start) names a process for ever. */
	__u32 pid;	/* Process id (thread group id) in the initial namespace. */
	__u32 tid;	/* Thread id in the initial namespace. */
	__u32 ppid;	/* Process id of the parent in the initial namespace. */
	__u32 uid;	/* Real user id. */
	__u32 euid;	/* Effective user id. */
	__s32 result;	/* What the call returned; a negative errno for an attempt that failed. */
	char comm[16];	/* The thread's name: chosen by the process itself, never evidence alone. */
};
_Static_assert(sizeof(struct vd_header) == VD_HEADER_SIZE, "vd_header: size");

/* A process has started to run a new program. */
struct vd_exec {
	struct vd_header header;
	__u64 ino;	/* Inode number. */
	__u32 dev;	/* Device of the file system (kernel encoding, major << 20 | minor). */
	__u32 file_bits;	/* What is known of the file. VD_FILE_BITS_* */
	__u64 ctime;	/* The file's change time, ns since the epoch. */
	__u64 parent_start;	/* When the parent started, ns since boot. */
	__u64 caps;	/* Effective capabilities afterwards. */
	__u64 old_caps;	/* Effective capabilities before. */
	__u32 old_uid;	/* Real user id before. */
	__u32 old_euid;	/* Effective user id before. */
	__u32 gid;	/* Real group id. */
	__u32 egid;	/* Effective group id. */
	__u32 ns_pid;	/* Process id in the process's own pid namespace. */
	__u32 pid_ns;	/* Inode of that pid namespace. */
	__u32 mnt_ns;	/* Inode of the mount namespace. */
	__u32 exec_bits;	/* How the program was started. VD_EXEC_BITS_* */
	__u64 stdin_ino;	/* Inode behind descriptor 0; pipes and sockets join by it. */
	__u64 stdout_ino;	/* Inode behind descriptor 1. */
	__u64 stderr_ino;	/* Inode behind descriptor 2. */
	__u8 stdin_kind;	/* What descriptor 0 is. VD_STDIO_KIND_* */
	__u8 stdout_kind;	/* What descriptor 1 is. VD_STDIO_KIND_* */
	__u8 stderr_kind;	/* What descriptor 2 is. VD_STDIO_KIND_* */
	__u8 argc;	/* Number of arguments, 255 for more. */
	__u32 mode;	/* The file's mode bits. */
	__u16 family;	/* Address family: 1 unix, 2 IPv4, 10 IPv6, 16 netlink, 17 packet, ... */
	__u16 sock_type;	/* 1 stream, 2 datagram, 3 raw. */
	__u16 protocol;	/* IP protocol number. */
	__u16 lport;	/* Local port, host byte order. */
	__u16 rport;	/* Remote port, host byte order. */
	__u16 fd;	/* File descriptor of the socket; 65535 where there is none. */
	__u32 sock_pad;	/* Zero. */
	__u32 laddr[4];	/* Local address. */
	__u32 raddr[4];	/* Remote address. */
	__u64 sock_ino;	/* Inode of the socket; joins with the stdio inodes of exec. */
	__u16 path_len;	/* path: The executable as the kernel resolved it, in the process's root. */
	__u16 argv_len;	/* args: Argument vector. */
	__u16 cwd_len;	/* path: Working directory. */
	__u16 filename_len;	/* path: What was passed to execve; the script's path for a script. */
	__u16 env_len;	/* args: Only LD_PRELOAD, LD_LIBRARY_PATH and LD_AUDIT, as NAME=value. */
};
#define VD_EXEC_FIXED 256
#define VD_EXEC_PATH_LIMIT 4096
#define VD_EXEC_ARGV_LIMIT 4096
#define VD_EXEC_CWD_LIMIT 4096
#define VD_EXEC_FILENAME_LIMIT 4096
#define VD_EXEC_ENV_LIMIT 1024
_Static_assert(sizeof(struct vd_exec) == VD_EXEC_FIXED, "vd_exec: size");
_Static_assert(__builtin_offsetof(struct vd_exec, ino) == 72, "vd_exec.ino: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, dev) == 80, "vd_exec.dev: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, file_bits) == 84, "vd_exec.file_bits: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, ctime) == 88, "vd_exec.ctime: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, parent_start) == 96, "vd_exec.parent_start: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, caps) == 104, "vd_exec.caps: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, old_caps) == 112, "vd_exec.old_caps: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, old_uid) == 120, "vd_exec.old_uid: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, old_euid) == 124, "vd_exec.old_euid: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, gid) == 128, "vd_exec.gid: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, egid) == 132, "vd_exec.egid: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, ns_pid) == 136, "vd_exec.ns_pid: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, pid_ns) == 140, "vd_exec.pid_ns: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, mnt_ns) == 144, "vd_exec.mnt_ns: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, exec_bits) == 148, "vd_exec.exec_bits: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, stdin_ino) == 152, "vd_exec.stdin_ino: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, stdout_ino) == 160, "vd_exec.stdout_ino: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, stderr_ino) == 168, "vd_exec.stderr_ino: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, stdin_kind) == 176, "vd_exec.stdin_kind: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, stdout_kind) == 177, "vd_exec.stdout_kind: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, stderr_kind) == 178, "vd_exec.stderr_kind: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, argc) == 179, "vd_exec.argc: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, mode) == 180, "vd_exec.mode: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, family) == 184, "vd_exec.family: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, sock_type) == 186, "vd_exec.sock_type: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, protocol) == 188, "vd_exec.protocol: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, lport) == 190, "vd_exec.lport: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, rport) == 192, "vd_exec.rport: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, fd) == 194, "vd_exec.fd: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, sock_pad) == 196, "vd_exec.sock_pad: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, laddr) == 200, "vd_exec.laddr: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, raddr) == 216, "vd_exec.raddr: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, sock_ino) == 232, "vd_exec.sock_ino: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, path_len) == 240, "vd_exec.path_len: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, argv_len) == 242, "vd_exec.argv_len: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, cwd_len) == 244, "vd_exec.cwd_len: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, filename_len) == 246, "vd_exec.filename_len: offset");
_Static_assert(__builtin_offsetof(struct vd_exec, env_len) == 248, "vd_exec.env_len: offset");

/* A process (its last thread) has ended. */
struct vd_exit {
	struct vd_header header;
	__u32 exit_code;	/* Status as wait(2) gives it: code << 8 | signal. */
	__u32 pad;	/* Zero. */
};
#define VD_EXIT_FIXED 80
_Static_assert(sizeof(struct vd_exit) == VD_EXIT_FIXED, "vd_exit: size");
_Static_assert(__builtin_offsetof(struct vd_exit, exit_code) == 72, "vd_exit.exit_code: offset");
_Static_assert(__builtin_offsetof(struct vd_exit, pad) == 76, "vd_exit.pad: offset");

/* A process was created; the header is the parent's. Threads are not reported. */
struct vd_fork {
	struct vd_header header;
	__u64 child_start;	/* When the child started, ns since boot. */
	__u32 child_pid;	/* Process id of the child in the initial namespace. */
	__u32 child_ns_pid;	/* Process id of the child in its own pid namespace. */
	__u64 parent_start;	/* When the parent's own parent started, ns since boot; zero if unknown. */
};
#define VD_FORK_FIXED 96
_Static_assert(sizeof(struct vd_fork) == VD_FORK_FIXED, "vd_fork: size");
_Static_assert(__builtin_offsetof(struct vd_fork, child_start) == 72, "vd_fork.child_start: offset");
_Static_assert(__builtin_offsetof(struct vd_fork, child_pid) == 80, "vd_fork.child_pid: offset");
_Static_assert(__builtin_offsetof(struct vd_fork, child_ns_pid) == 84, "vd_fork.child_ns_pid: offset");
_Static_assert(__builtin_offsetof(struct vd_fork, parent_start) == 88, "vd_fork.parent_start: offset");

/* First event of a cgroup that was not seen before (or again after its entry left the kernel's table). */
struct vd_cgroup {
	struct vd_header header;
	__u32 hierarchy;	/* 1 or 2: which cgroup version the id belongs to. */
	__u32 pad;	/* Zero. */
	__u16 path_len;	/* path: Path below the hierarchy's root. */
};
#define VD_CGROUP_FIXED 88
#define VD_CGROUP_PATH_LIMIT 4096
_Static_assert(sizeof(struct vd_cgroup) == VD_CGROUP_FIXED, "vd_cgroup: size");
_Static_assert(__builtin_offsetof(struct vd_cgroup, hierarchy) == 72, "vd_cgroup.hierarchy: offset");
_Static_assert(__builtin_offsetof(struct vd_cgroup, pad) == 76, "vd_cgroup.pad: offset");
_Static_assert(__builtin_offsetof(struct vd_cgroup, path_len) == 80, "vd_cgroup.path_len: offset");

/* A file was opened, or an attempt failed: for writing, or of a name that some rule asks for, or a FIFO. */
struct vd_open {
	struct vd_header header;
	__u64 ino;	/* Inode number. */
	__u32 dev;	/* Device of the file system (kernel encoding, major << 20 | minor). */
	__u32 file_bits;	/* What is known of the file. VD_FILE_BITS_* */
	__u32 oflags;	/* Flags of open(2). */
	__u32 mode;	/* Mode bits of the file. */
	__u64 resolve;	/* openat2's resolve flags. */
	__s32 fd;	/* The new descriptor, or -1. */
	__u32 pad;	/* Zero. */
	__u16 path_len;	/* path: Resolved path; what was passed when the open failed. */
	__u16 dir_len;	/* path: For a failed open of a relative path: the directory it was relative to. */
};
#define VD_OPEN_FIXED 120
#define VD_OPEN_PATH_LIMIT 4096
#define VD_OPEN_DIR_LIMIT 4096
_Static_assert(sizeof(struct vd_open) == VD_OPEN_FIXED, "vd_open: size");
_Static_assert(__builtin_offsetof(struct vd_open, ino) == 72, "vd_open.ino: offset");
_Static_assert(__builtin_offsetof(struct vd_open, dev) == 80, "vd_open.dev: offset");
_Static_assert(__builtin_offsetof(struct vd_open, file_bits) == 84, "vd_open.file_bits: offset");
_Static_assert(__builtin_offsetof(struct vd_open, oflags) == 88, "vd_open.oflags: offset");
_Static_assert(__builtin_offsetof(struct vd_open, mode) == 92, "vd_open.mode: offset");
_Static_assert(__builtin_offsetof(struct vd_open, resolve) == 96, "vd_open.resolve: offset");
_Static_assert(__builtin_offsetof(struct vd_open, fd) == 104, "vd_open.fd: offset");
_Static_assert(__builtin_offsetof(struct vd_open, pad) == 108, "vd_open.pad: offset");
_Static_assert(__builtin_offsetof(struct vd_open, path_len) == 112, "vd_open.path_len: offset");
_Static_assert(__builtin_offsetof(struct vd_open, dir_len) == 114, "vd_open.dir_len: offset");

/* A name was removed, or an attempt failed (unlink, unlinkat, rmdir). */
struct vd_unlink {
	struct vd_header header;
	__u32 at_flags;	/* AT_REMOVEDIR and the like. */
	__u32 pad;	/* Zero. */
	__u16 path_len;	/* path: Path as passed. */
	__u16 dir_len;	/* path: Directory that a relative path is relative to. */
};
#define VD_UNLINK_FIXED 88
#define VD_UNLINK_PATH_LIMIT 4096
#define VD_UNLINK_DIR_LIMIT 4096
_Static_assert(sizeof(struct vd_unlink) == VD_UNLINK_FIXED, "vd_unlink: size");
_Static_assert(__builtin_offsetof(struct vd_unlink, at_flags) == 72, "vd_unlink.at_flags: offset");
_Static_assert(__builtin_offsetof(struct vd_unlink, pad) == 76, "vd_unlink.pad: offset");
_Static_assert(__builtin_offsetof(struct vd_unlink, path_len) == 80, "vd_unlink.path_len: offset");
_Static_assert(__builtin_offsetof(struct vd_unlink, dir_len) == 82, "vd_unlink.dir_len: offset");

/* A file was renamed, or an attempt failed. */
struct vd_rename {
	struct vd_header header;
	__u32 at_flags;	/* renameat2's flags. */
	__u32 pad;	/* Zero. */
	__u16 path_len;	/* path: Old path as passed. */
	__u16 dir_len;	/* path: Directory that a relative old path is relative to. */
	__u16 new_path_len;	/* path: New path as passed. */
	__u16 new_dir_len;	/* path: Directory that a relative new path is relative to. */
};
#define VD_RENAME_FIXED 88
#define VD_RENAME_PATH_LIMIT 4096
#define VD_RENAME_DIR_LIMIT 4096
#define VD_RENAME_NEW_PATH_LIMIT 4096
#define VD_RENAME_NEW_DIR_LIMIT 4096
_Static_assert(sizeof(struct vd_rename) == VD_RENAME_FIXED, "vd_rename: size");
_Static_assert(__builtin_offsetof(struct vd_rename, at_flags) == 72, "vd_rename.at_flags: offset");
_Static_assert(__builtin_offsetof(struct vd_rename, pad) == 76, "vd_rename.pad: offset");
_Static_assert(__builtin_offsetof(struct vd_rename, path_len) == 80, "vd_rename.path_len: offset");
_Static_assert(__builtin_offsetof(struct vd_rename, dir_len) == 82, "vd_rename.dir_len: offset");
_Static_assert(__builtin_offsetof(struct vd_rename, new_path_len) == 84, "vd_rename.new_path_len: offset");
_Static_assert(__builtin_offsetof(struct vd_rename, new_dir_len) == 86, "vd_rename.new_dir_len: offset");

/* A hard link was made, or an attempt failed. */
struct vd_link {
	struct vd_header header;
	__u32 at_flags;	/* linkat's flags. */
	__u32 pad;	/* Zero. */
	__u16 path_len;	/* path: Existing path as passed. */
	__u16 dir_len;	/* path: Directory that a relative existing path is relative to. */
	__u16 new_path_len;	/* path: Path of the link as passed. */
	__u16 new_dir_len;	/* path: Directory that a relative link path is relative to. */
};
#define VD_LINK_FIXED 88
#define VD_LINK_PATH_LIMIT 4096
#define VD_LINK_DIR_LIMIT 4096
#define VD_LINK_NEW_PATH_LIMIT 4096
#define VD_LINK_NEW_DIR_LIMIT 4096
_Static_assert(sizeof(struct vd_link) == VD_LINK_FIXED, "vd_link: size");
_Static_assert(__builtin_offsetof(struct vd_link, at_flags) == 72, "vd_link.at_flags: offset");
_Static_assert(__builtin_offsetof(struct vd_link, pad) == 76, "vd_link.pad: offset");
_Static_assert(__builtin_offsetof(struct vd_link, path_len) == 80, "vd_link.path_len: offset");
_Static_assert(__builtin_offsetof(struct vd_link, dir_len) == 82, "vd_link.dir_len: offset");
_Static_assert(__builtin_offsetof(struct vd_link, new_path_len) == 84, "vd_link.new_path_len: offset");
_Static_assert(__builtin_offsetof(struct vd_link, new_dir_len) == 86, "vd_link.new_dir_len: offset");

/* A symbolic link was made, or an attempt failed. */
struct vd_symlink {
	struct vd_header header;
	__u16 path_len;	/* path: What the link points to, as passed. */
	__u16 new_path_len;	/* path: Path of the link as passed. */
	__u16 new_dir_len;	/* path: Directory that a relative link path is relative to. */
};
#define VD_SYMLINK_FIXED 80
#define VD_SYMLINK_PATH_LIMIT 4096
#define VD_SYMLINK_NEW_PATH_LIMIT 4096
#define VD_SYMLINK_NEW_DIR_LIMIT 4096
_Static_assert(sizeof(struct vd_symlink) == VD_SYMLINK_FIXED, "vd_symlink: size");
_Static_assert(__builtin_offsetof(struct vd_symlink, path_len) == 72, "vd_symlink.path_len: offset");
_Static_assert(__builtin_offsetof(struct vd_symlink, new_path_len) == 74, "vd_symlink.new_path_len: offset");
_Static_assert(__builtin_offsetof(struct vd_symlink, new_dir_len) == 76, "vd_symlink.new_dir_len: offset");

/* A file's mode was changed, or an attempt failed. */
struct vd_chmod {
	struct vd_header header;
	__u32 mode;	/* The new mode. */
	__u32 pad;	/* Zero. */
	__u16 path_len;	/* path: Path as passed, or resolved from the descriptor (fchmod). */
	__u16 dir_len;	/* path: Directory that a relative path is relative to. */
};
#define VD_CHMOD_FIXED 88
#define VD_CHMOD_PATH_LIMIT 4096
#define VD_CHMOD_DIR_LIMIT 4096
_Static_assert(sizeof(struct vd_chmod) == VD_CHMOD_FIXED, "vd_chmod: size");
_Static_assert(__builtin_offsetof(struct vd_chmod, mode) == 72, "vd_chmod.mode: offset");
_Static_assert(__builtin_offsetof(struct vd_chmod, pad) == 76, "vd_chmod.pad: offset");
_Static_assert(__builtin_offsetof(struct vd_chmod, path_len) == 80, "vd_chmod.path_len: offset");
_Static_assert(__builtin_offsetof(struct vd_chmod, dir_len) == 82, "vd_chmod.dir_len: offset");

/* A mount was made or prepared, or an attempt failed (old and new mount calls). */
struct vd_mount {
	struct vd_header header;
	__u64 mount_flags;	/* Flags of the call. */
	__u32 op;	/* Which call it was. VD_MOUNT_OP_* */
	__s32 fs_fd;	/* The descriptor that the call worked on (fsconfig, fsmount, move_mount), or -1. */
	__u16 source_len;	/* path: Source: device, directory, or fsconfig's value. */
	__u16 target_len;	/* path: Where it was to be mounted. */
	__u16 fstype_len;	/* text: File system type; fsconfig's key. */
};
#define VD_MOUNT_FIXED 96
#define VD_MOUNT_SOURCE_LIMIT 4096
#define VD_MOUNT_TARGET_LIMIT 4096
#define VD_MOUNT_FSTYPE_LIMIT 256
_Static_assert(sizeof(struct vd_mount) == VD_MOUNT_FIXED, "vd_mount: size");
_Static_assert(__builtin_offsetof(struct vd_mount, mount_flags) == 72, "vd_mount.mount_flags: offset");
_Static_assert(__builtin_offsetof(struct vd_mount, op) == 80, "vd_mount.op: offset");
_Static_assert(__builtin_offsetof(struct vd_mount, fs_fd) == 84, "vd_mount.fs_fd: offset");
_Static_assert(__builtin_offsetof(struct vd_mount, source_len) == 88, "vd_mount.source_len: offset");
_Static_assert(__builtin_offsetof(struct vd_mount, target_len) == 90, "vd_mount.target_len: offset");
_Static_assert(__builtin_offsetof(struct vd_mount, fstype_len) == 92, "vd_mount.fstype_len: offset");

/* A file system was unmounted, or an attempt failed. */
struct vd_umount {
	struct vd_header header;
	__u64 umount_flags;	/* Flags of umount2(2). */
	__u16 target_len;	/* path: Path as passed. */
};
#define VD_UMOUNT_FIXED 88
#define VD_UMOUNT_TARGET_LIMIT 4096
_Static_assert(sizeof(struct vd_umount) == VD_UMOUNT_FIXED, "vd_umount: size");
_Static_assert(__builtin_offsetof(struct vd_umount, umount_flags) == 72, "vd_umount.umount_flags: offset");
_Static_assert(__builtin_offsetof(struct vd_umount, target_len) == 80, "vd_umount.target_len: offset");

/* A file that is new in its container, has no name or is a memfd was mapped executable. */
struct vd_mmap {
	struct vd_header header;
	__u64 ino;	/* Inode number. */
	__u32 dev;	/* Device of the file system (kernel encoding, major << 20 | minor). */
	__u32 file_bits;	/* What is known of the file. VD_FILE_BITS_* */
	__u64 ctime;	/* The file's change time, ns since the epoch. */
	__u64 addr;	/* Address of the mapping. */
	__u64 length;	/* Length in bytes. */
	__u32 prot;	/* PROT_ bits. */
	__u32 map_flags;	/* MAP_ bits. */
	__u16 path_len;	/* path: Resolved path of the file. */
};
#define VD_MMAP_FIXED 128
#define VD_MMAP_PATH_LIMIT 4096
_Static_assert(sizeof(struct vd_mmap) == VD_MMAP_FIXED, "vd_mmap: size");
_Static_assert(__builtin_offsetof(struct vd_mmap, ino) == 72, "vd_mmap.ino: offset");
_Static_assert(__builtin_offsetof(struct vd_mmap, dev) == 80, "vd_mmap.dev: offset");
_Static_assert(__builtin_offsetof(struct vd_mmap, file_bits) == 84, "vd_mmap.file_bits: offset");
_Static_assert(__builtin_offsetof(struct vd_mmap, ctime) == 88, "vd_mmap.ctime: offset");
_Static_assert(__builtin_offsetof(struct vd_mmap, addr) == 96, "vd_mmap.addr: offset");
_Static_assert(__builtin_offsetof(struct vd_mmap, length) == 104, "vd_mmap.length: offset");
_Static_assert(__builtin_offsetof(struct vd_mmap, prot) == 112, "vd_mmap.prot: offset");
_Static_assert(__builtin_offsetof(struct vd_mmap, map_flags) == 116, "vd_mmap.map_flags: offset");
_Static_assert(__builtin_offsetof(struct vd_mmap, path_len) == 120, "vd_mmap.path_len: offset");

/* Memory was made executable: writable at the same time, or on the stack or heap. */
struct vd_mprotect {
	struct vd_header header;
	__u64 addr;	/* Start address. */
	__u64 length;	/* Length in bytes. */
	__u32 prot;	/* PROT_ bits. */
	__u32 region;	/* Where the range lies. VD_MEMORY_REGION_* */
};
#define VD_MPROTECT_FIXED 96
_Static_assert(sizeof(struct vd_mprotect) == VD_MPROTECT_FIXED, "vd_mprotect: size");
_Static_assert(__builtin_offsetof(struct vd_mprotect, addr) == 72, "vd_mprotect.addr: offset");
_Static_assert(__builtin_offsetof(struct vd_mprotect, length) == 80, "vd_mprotect.length: offset");
_Static_assert(__builtin_offsetof(struct vd_mprotect, prot) == 88, "vd_mprotect.prot: offset");
_Static_assert(__builtin_offsetof(struct vd_mprotect, region) == 92, "vd_mprotect.region: offset");

/* A socket of an unusual family or type was made (raw, packet, netlink by a container, vsock, ...). */
struct vd_socket {
	struct vd_header header;
	__u16 family;	/* Address family. */
	__u16 sock_type;	/* Socket type. */
	__u16 protocol;	/* Protocol. */
	__u16 pad;	/* Zero. */
};
#define VD_SOCKET_FIXED 80
_Static_assert(sizeof(struct vd_socket) == VD_SOCKET_FIXED, "vd_socket: size");
_Static_assert(__builtin_offsetof(struct vd_socket, family) == 72, "vd_socket.family: offset");
_Static_assert(__builtin_offsetof(struct vd_socket, sock_type) == 74, "vd_socket.sock_type: offset");
_Static_assert(__builtin_offsetof(struct vd_socket, protocol) == 76, "vd_socket.protocol: offset");
_Static_assert(__builtin_offsetof(struct vd_socket, pad) == 78, "vd_socket.pad: offset");

/* connect(2), or the first datagram to an address (sendto, sendmsg); failed attempts too. */
struct vd_connect {
	struct vd_header header;
	__u16 family;	/* Address family: 1 unix, 2 IPv4, 10 IPv6, 16 netlink, 17 packet, ... */
	__u16 sock_type;	/* 1 stream, 2 datagram, 3 raw. */
	__u16 protocol;	/* IP protocol number. */
	__u16 lport;	/* Local port, host byte order. */
	__u16 rport;	/* Remote port, host byte order. */
	__u16 fd;	/* File descriptor of the socket; 65535 where there is none. */
	__u32 sock_pad;	/* Zero. */
	__u32 laddr[4];	/* Local address. */
	__u32 raddr[4];	/* Remote address. */
	__u64 sock_ino;	/* Inode of the socket; joins with the stdio inodes of exec. */
	__u16 path_len;	/* path: Path of a unix socket as passed; a leading NUL marks an abstract name. */
	__u16 bound_path_len;	/* path: Where the listener's socket file lies, in the listener's mounts. */
};
#define VD_CONNECT_FIXED 136
#define VD_CONNECT_PATH_LIMIT 256
#define VD_CONNECT_BOUND_PATH_LIMIT 4096
_Static_assert(sizeof(struct vd_connect) == VD_CONNECT_FIXED, "vd_connect: size");
_Static_assert(__builtin_offsetof(struct vd_connect, family) == 72, "vd_connect.family: offset");
_Static_assert(__builtin_offsetof(struct vd_connect, sock_type) == 74, "vd_connect.sock_type: offset");
_Static_assert(__builtin_offsetof(struct vd_connect, protocol) == 76, "vd_connect.protocol: offset");
_Static_assert(__builtin_offsetof(struct vd_connect, lport) == 78, "vd_connect.lport: offset");
_Static_assert(__builtin_offsetof(struct vd_connect, rport) == 80, "vd_connect.rport: offset");
_Static_assert(__builtin_offsetof(struct vd_connect, fd) == 82, "vd_connect.fd: offset");
_Static_assert(__builtin_offsetof(struct vd_connect, sock_pad) == 84, "vd_connect.sock_pad: offset");
_Static_assert(__builtin_offsetof(struct vd_connect, laddr) == 88, "vd_connect.laddr: offset");
_Static_assert(__builtin_offsetof(struct vd_connect, raddr) == 104, "vd_connect.raddr: offset");
_Static_assert(__builtin_offsetof(struct vd_connect, sock_ino) == 120, "vd_connect.sock_ino: offset");
_Static_assert(__builtin_offsetof(struct vd_connect, path_len) == 128, "vd_connect.path_len: offset");
_Static_assert(__builtin_offsetof(struct vd_connect, bound_path_len) == 130, "vd_connect.bound_path_len: offset");

/* A socket was bound to an address. */
struct vd_bind {
	struct vd_header header;
	__u16 family;	/* Address family: 1 unix, 2 IPv4, 10 IPv6, 16 netlink, 17 packet, ... */
	__u16 sock_type;	/* 1 stream, 2 datagram, 3 raw. */
	__u16 protocol;	/* IP protocol number. */
	__u16 lport;	/* Local port, host byte order. */
	__u16 rport;	/* Remote port, host byte order. */
	__u16 fd;	/* File descriptor of the socket; 65535 where there is none. */
	__u32 sock_pad;	/* Zero. */
	__u32 laddr[4];	/* Local address. */
	__u32 raddr[4];	/* Remote address. */
	__u64 sock_ino;	/* Inode of the socket; joins with the stdio inodes of exec. */
	__u16 path_len;	/* path: Path of a unix socket as passed. */
};
#define VD_BIND_FIXED 136
#define VD_BIND_PATH_LIMIT 256
_Static_assert(sizeof(struct vd_bind) == VD_BIND_FIXED, "vd_bind: size");
_Static_assert(__builtin_offsetof(struct vd_bind, family) == 72, "vd_bind.family: offset");
_Static_assert(__builtin_offsetof(struct vd_bind, sock_type) == 74, "vd_bind.sock_type: offset");
_Static_assert(__builtin_offsetof(struct vd_bind, protocol) == 76, "vd_bind.protocol: offset");
_Static_assert(__builtin_offsetof(struct vd_bind, lport) == 78, "vd_bind.lport: offset");
_Static_assert(__builtin_offsetof(struct vd_bind, rport) == 80, "vd_bind.rport: offset");
_Static_assert(__builtin_offsetof(struct vd_bind, fd) == 82, "vd_bind.fd: offset");
_Static_assert(__builtin_offsetof(struct vd_bind, sock_pad) == 84, "vd_bind.sock_pad: offset");
_Static_assert(__builtin_offsetof(struct vd_bind, laddr) == 88, "vd_bind.laddr: offset");
_Static_assert(__builtin_offsetof(struct vd_bind, raddr) == 104, "vd_bind.raddr: offset");
_Static_assert(__builtin_offsetof(struct vd_bind, sock_ino) == 120, "vd_bind.sock_ino: offset");
_Static_assert(__builtin_offsetof(struct vd_bind, path_len) == 128, "vd_bind.path_len: offset");

/* A socket began to listen. */
struct vd_listen {
	struct vd_header header;
	__u16 family;	/* Address family: 1 unix, 2 IPv4, 10 IPv6, 16 netlink, 17 packet, ... */
	__u16 sock_type;	/* 1 stream, 2 datagram, 3 raw. */
	__u16 protocol;	/* IP protocol number. */
	__u16 lport;	/* Local port, host byte order. */
	__u16 rport;	/* Remote port, host byte order. */
	__u16 fd;	/* File descriptor of the socket; 65535 where there is none. */
	__u32 sock_pad;	/* Zero. */
	__u32 laddr[4];	/* Local address. */
	__u32 raddr[4];	/* Remote address. */
	__u64 sock_ino;	/* Inode of the socket; joins with the stdio inodes of exec. */
	__u32 backlog;	/* Backlog. */
	__u32 pad;	/* Zero. */
};
#define VD_LISTEN_FIXED 136
_Static_assert(sizeof(struct vd_listen) == VD_LISTEN_FIXED, "vd_listen: size");
_Static_assert(__builtin_offsetof(struct vd_listen, family) == 72, "vd_listen.family: offset");
_Static_assert(__builtin_offsetof(struct vd_listen, sock_type) == 74, "vd_listen.sock_type: offset");
_Static_assert(__builtin_offsetof(struct vd_listen, protocol) == 76, "vd_listen.protocol: offset");
_Static_assert(__builtin_offsetof(struct vd_listen, lport) == 78, "vd_listen.lport: offset");
_Static_assert(__builtin_offsetof(struct vd_listen, rport) == 80, "vd_listen.rport: offset");
_Static_assert(__builtin_offsetof(struct vd_listen, fd) == 82, "vd_listen.fd: offset");
_Static_assert(__builtin_offsetof(struct vd_listen, sock_pad) == 84, "vd_listen.sock_pad: offset");
_Static_assert(__builtin_offsetof(struct vd_listen, laddr) == 88, "vd_listen.laddr: offset");
_Static_assert(__builtin_offsetof(struct vd_listen, raddr) == 104, "vd_listen.raddr: offset");
_Static_assert(__builtin_offsetof(struct vd_listen, sock_ino) == 120, "vd_listen.sock_ino: offset");
_Static_assert(__builtin_offsetof(struct vd_listen, backlog) == 128, "vd_listen.backlog: offset");
_Static_assert(__builtin_offsetof(struct vd_listen, pad) == 132, "vd_listen.pad: offset");

/* A connection was accepted. */
struct vd_accept {
	struct vd_header header;
	__u16 family;	/* Address family: 1 unix, 2 IPv4, 10 IPv6, 16 netlink, 17 packet, ... */
	__u16 sock_type;	/* 1 stream, 2 datagram, 3 raw. */
	__u16 protocol;	/* IP protocol number. */
	__u16 lport;	/* Local port, host byte order. */
	__u16 rport;	/* Remote port, host byte order. */
	__u16 fd;	/* File descriptor of the socket; 65535 where there is none. */
	__u32 sock_pad;	/* Zero. */
	__u32 laddr[4];	/* Local address. */
	__u32 raddr[4];	/* Remote address. */
	__u64 sock_ino;	/* Inode of the socket; joins with the stdio inodes of exec. */
};
#define VD_ACCEPT_FIXED 128
_Static_assert(sizeof(struct vd_accept) == VD_ACCEPT_FIXED, "vd_accept: size");
_Static_assert(__builtin_offsetof(struct vd_accept, family) == 72, "vd_accept.family: offset");
_Static_assert(__builtin_offsetof(struct vd_accept, sock_type) == 74, "vd_accept.sock_type: offset");
_Static_assert(__builtin_offsetof(struct vd_accept, protocol) == 76, "vd_accept.protocol: offset");
_Static_assert(__builtin_offsetof(struct vd_accept, lport) == 78, "vd_accept.lport: offset");
_Static_assert(__builtin_offsetof(struct vd_accept, rport) == 80, "vd_accept.rport: offset");
_Static_assert(__builtin_offsetof(struct vd_accept, fd) == 82, "vd_accept.fd: offset");
_Static_assert(__builtin_offsetof(struct vd_accept, sock_pad) == 84, "vd_accept.sock_pad: offset");
_Static_assert(__builtin_offsetof(struct vd_accept, laddr) == 88, "vd_accept.laddr: offset");
_Static_assert(__builtin_offsetof(struct vd_accept, raddr) == 104, "vd_accept.raddr: offset");
_Static_assert(__builtin_offsetof(struct vd_accept, sock_ino) == 120, "vd_accept.sock_ino: offset");

/* A socket was duplicated onto another descriptor (dup, dup2, dup3, fcntl); 0, 1 and 2 always. */
struct vd_dup {
	struct vd_header header;
	__s32 old_fd;	/* Descriptor duplicated. */
	__s32 new_fd;	/* Resulting descriptor. */
	__u16 family;	/* Address family: 1 unix, 2 IPv4, 10 IPv6, 16 netlink, 17 packet, ... */
	__u16 sock_type;	/* 1 stream, 2 datagram, 3 raw. */
	__u16 protocol;	/* IP protocol number. */
	__u16 lport;	/* Local port, host byte order. */
	__u16 rport;	/* Remote port, host byte order. */
	__u16 fd;	/* File descriptor of the socket; 65535 where there is none. */
	__u32 sock_pad;	/* Zero. */
	__u32 laddr[4];	/* Local address. */
	__u32 raddr[4];	/* Remote address. */
	__u64 sock_ino;	/* Inode of the socket; joins with the stdio inodes of exec. */
};
#define VD_DUP_FIXED 136
_Static_assert(sizeof(struct vd_dup) == VD_DUP_FIXED, "vd_dup: size");
_Static_assert(__builtin_offsetof(struct vd_dup, old_fd) == 72, "vd_dup.old_fd: offset");
_Static_assert(__builtin_offsetof(struct vd_dup, new_fd) == 76, "vd_dup.new_fd: offset");
_Static_assert(__builtin_offsetof(struct vd_dup, family) == 80, "vd_dup.family: offset");
_Static_assert(__builtin_offsetof(struct vd_dup, sock_type) == 82, "vd_dup.sock_type: offset");
_Static_assert(__builtin_offsetof(struct vd_dup, protocol) == 84, "vd_dup.protocol: offset");
_Static_assert(__builtin_offsetof(struct vd_dup, lport) == 86, "vd_dup.lport: offset");
_Static_assert(__builtin_offsetof(struct vd_dup, rport) == 88, "vd_dup.rport: offset");
_Static_assert(__builtin_offsetof(struct vd_dup, fd) == 90, "vd_dup.fd: offset");
_Static_assert(__builtin_offsetof(struct vd_dup, sock_pad) == 92, "vd_dup.sock_pad: offset");
_Static_assert(__builtin_offsetof(struct vd_dup, laddr) == 96, "vd_dup.laddr: offset");
_Static_assert(__builtin_offsetof(struct vd_dup, raddr) == 112, "vd_dup.raddr: offset");
_Static_assert(__builtin_offsetof(struct vd_dup, sock_ino) == 128, "vd_dup.sock_ino: offset");

/* ptrace(2): attach, seize, traceme, writes to memory or registers; failed attempts too. */
struct vd_ptrace {
	struct vd_header header;
	__u64 request;	/* PTRACE_ request. */
	__u64 target_start;	/* When the target process started, ns since boot; zero if unknown. */
	__u32 target_pid;	/* Target process in the initial namespace; zero if unknown. */
	__u32 target_ns_pid;	/* Target as passed. */
};
#define VD_PTRACE_FIXED 96
_Static_assert(sizeof(struct vd_ptrace) == VD_PTRACE_FIXED, "vd_ptrace: size");
_Static_assert(__builtin_offsetof(struct vd_ptrace, request) == 72, "vd_ptrace.request: offset");
_Static_assert(__builtin_offsetof(struct vd_ptrace, target_start) == 80, "vd_ptrace.target_start: offset");
_Static_assert(__builtin_offsetof(struct vd_ptrace, target_pid) == 88, "vd_ptrace.target_pid: offset");
_Static_assert(__builtin_offsetof(struct vd_ptrace, target_ns_pid) == 92, "vd_ptrace.target_ns_pid: offset");

/* process_vm_readv(2) on another process; failed attempts too. */
struct vd_vm_read {
	struct vd_header header;
	__u64 target_start;	/* When the target process started, ns since boot; zero if unknown. */
	__u32 target_pid;	/* Target process in the initial namespace; zero if unknown. */
	__u32 target_ns_pid;	/* Target as passed. */
};
#define VD_VM_READ_FIXED 88
_Static_assert(sizeof(struct vd_vm_read) == VD_VM_READ_FIXED, "vd_vm_read: size");
_Static_assert(__builtin_offsetof(struct vd_vm_read, target_start) == 72, "vd_vm_read.target_start: offset");
_Static_assert(__builtin_offsetof(struct vd_vm_read, target_pid) == 80, "vd_vm_read.target_pid: offset");
_Static_assert(__builtin_offsetof(struct vd_vm_read, target_ns_pid) == 84, "vd_vm_read.target_ns_pid: offset");

/* process_vm_writev(2) on another process; failed attempts too. */
struct vd_vm_write {
	struct vd_header header;
	__u64 target_start;	/* When the target process started, ns since boot; zero if unknown. */
	__u32 target_pid;	/* Target process in the initial namespace; zero if unknown. */
	__u32 target_ns_pid;	/* Target as passed. */
};
#define VD_VM_WRITE_FIXED 88
_Static_assert(sizeof(struct vd_vm_write) == VD_VM_WRITE_FIXED, "vd_vm_write: size");
_Static_assert(__builtin_offsetof(struct vd_vm_write, target_start) == 72, "vd_vm_write.target_start: offset");
_Static_assert(__builtin_offsetof(struct vd_vm_write, target_pid) == 80, "vd_vm_write.target_pid: offset");
_Static_assert(__builtin_offsetof(struct vd_vm_write, target_ns_pid) == 84, "vd_vm_write.target_ns_pid: offset");

/* A process changed its user, group or capabilities; failed attempts too. */
struct vd_setuid {
	struct vd_header header;
	__u64 caps;	/* Effective capabilities afterwards. */
	__u64 old_caps;	/* Effective capabilities before. */
	__u32 old_uid;	/* Real user id before. */
	__u32 old_euid;	/* Effective user id before. */
	__u32 gid;	/* Real group id afterwards. */
	__u32 egid;	/* Effective group id afterwards. */
	__u32 call;	/* Which call it was. VD_CRED_CALL_* */
	__u32 old_creds_unknown;	/* 1 when old_* are not known. */
};
#define VD_SETUID_FIXED 112
_Static_assert(sizeof(struct vd_setuid) == VD_SETUID_FIXED, "vd_setuid: size");
_Static_assert(__builtin_offsetof(struct vd_setuid, caps) == 72, "vd_setuid.caps: offset");
_Static_assert(__builtin_offsetof(struct vd_setuid, old_caps) == 80, "vd_setuid.old_caps: offset");
_Static_assert(__builtin_offsetof(struct vd_setuid, old_uid) == 88, "vd_setuid.old_uid: offset");
_Static_assert(__builtin_offsetof(struct vd_setuid, old_euid) == 92, "vd_setuid.old_euid: offset");
_Static_assert(__builtin_offsetof(struct vd_setuid, gid) == 96, "vd_setuid.gid: offset");
_Static_assert(__builtin_offsetof(struct vd_setuid, egid) == 100, "vd_setuid.egid: offset");
_Static_assert(__builtin_offsetof(struct vd_setuid, call) == 104, "vd_setuid.call: offset");
_Static_assert(__builtin_offsetof(struct vd_setuid, old_creds_unknown) == 108, "vd_setuid.old_creds_unknown: offset");

/* memfd_create(2): an anonymous file in memory. */
struct vd_memfd {
	struct vd_header header;
	__u32 memfd_flags;	/* MFD_ bits. */
	__s32 fd;	/* The new descriptor, or -1. */
	__u16 name_len;	/* text: Name as passed. */
};
#define VD_MEMFD_FIXED 88
#define VD_MEMFD_NAME_LIMIT 256
_Static_assert(sizeof(struct vd_memfd) == VD_MEMFD_FIXED, "vd_memfd: size");
_Static_assert(__builtin_offsetof(struct vd_memfd, memfd_flags) == 72, "vd_memfd.memfd_flags: offset");
_Static_assert(__builtin_offsetof(struct vd_memfd, fd) == 76, "vd_memfd.fd: offset");
_Static_assert(__builtin_offsetof(struct vd_memfd, name_len) == 80, "vd_memfd.name_len: offset");

/* userfaultfd(2); failed attempts too. /dev/userfaultfd is seen as an open. */
struct vd_userfaultfd {
	struct vd_header header;
	__u32 uffd_flags;	/* Flags as passed. */
	__u32 pad;	/* Zero. */
};
#define VD_USERFAULTFD_FIXED 80
_Static_assert(sizeof(struct vd_userfaultfd) == VD_USERFAULTFD_FIXED, "vd_userfaultfd: size");
_Static_assert(__builtin_offsetof(struct vd_userfaultfd, uffd_flags) == 72, "vd_userfaultfd.uffd_flags: offset");
_Static_assert(__builtin_offsetof(struct vd_userfaultfd, pad) == 76, "vd_userfaultfd.pad: offset");

/* A kernel module was to be loaded or removed; failed attempts too. */
struct vd_module {
	struct vd_header header;
	__u32 op;	/* Which call it was. VD_MODULE_OP_* */
	__u32 module_flags;	/* Flags of the call. */
	__u64 length;	/* Length of the image in bytes (init_module). */
	__u16 path_len;	/* path: Resolved path of the module file (finit_module). */
	__u16 params_len;	/* text: Parameters as passed. */
	__u16 name_len;	/* text: Name (delete_module, or read from the image where that is possible). */
};
#define VD_MODULE_FIXED 96
#define VD_MODULE_PATH_LIMIT 4096
#define VD_MODULE_PARAMS_LIMIT 512
#define VD_MODULE_NAME_LIMIT 64
_Static_assert(sizeof(struct vd_module) == VD_MODULE_FIXED, "vd_module: size");
_Static_assert(__builtin_offsetof(struct vd_module, op) == 72, "vd_module.op: offset");
_Static_assert(__builtin_offsetof(struct vd_module, module_flags) == 76, "vd_module.module_flags: offset");
_Static_assert(__builtin_offsetof(struct vd_module, length) == 80, "vd_module.length: offset");
_Static_assert(__builtin_offsetof(struct vd_module, path_len) == 88, "vd_module.path_len: offset");
_Static_assert(__builtin_offsetof(struct vd_module, params_len) == 90, "vd_module.params_len: offset");
_Static_assert(__builtin_offsetof(struct vd_module, name_len) == 92, "vd_module.name_len: offset");

/* A request submitted through io_uring that would have been an event as a system call. */
struct vd_io_uring {
	struct vd_header header;
	__u32 opcode;	/* IORING_OP_ code. */
	__u32 op_flags;	/* The request's own flags (open's oflags and the like) where readable. */
	__u16 family;	/* Address family: 1 unix, 2 IPv4, 10 IPv6, 16 netlink, 17 packet, ... */
	__u16 sock_type;	/* 1 stream, 2 datagram, 3 raw. */
	__u16 protocol;	/* IP protocol number. */
	__u16 lport;	/* Local port, host byte order. */
	__u16 rport;	/* Remote port, host byte order. */
	__u16 fd;	/* File descriptor of the socket; 65535 where there is none. */
	__u32 sock_pad;	/* Zero. */
	__u32 laddr[4];	/* Local address. */
	__u32 raddr[4];	/* Remote address. */
	__u64 sock_ino;	/* Inode of the socket; joins with the stdio inodes of exec. */
	__u16 path_len;	/* path: Path as passed, where the request has one. */
	__u16 new_path_len;	/* path: Second path as passed (rename, link). */
};
#define VD_IO_URING_FIXED 144
#define VD_IO_URING_PATH_LIMIT 4096
#define VD_IO_URING_NEW_PATH_LIMIT 4096
_Static_assert(sizeof(struct vd_io_uring) == VD_IO_URING_FIXED, "vd_io_uring: size");
_Static_assert(__builtin_offsetof(struct vd_io_uring, opcode) == 72, "vd_io_uring.opcode: offset");
_Static_assert(__builtin_offsetof(struct vd_io_uring, op_flags) == 76, "vd_io_uring.op_flags: offset");
_Static_assert(__builtin_offsetof(struct vd_io_uring, family) == 80, "vd_io_uring.family: offset");
_Static_assert(__builtin_offsetof(struct vd_io_uring, sock_type) == 82, "vd_io_uring.sock_type: offset");
_Static_assert(__builtin_offsetof(struct vd_io_uring, protocol) == 84, "vd_io_uring.protocol: offset");
_Static_assert(__builtin_offsetof(struct vd_io_uring, lport) == 86, "vd_io_uring.lport: offset");
_Static_assert(__builtin_offsetof(struct vd_io_uring, rport) == 88, "vd_io_uring.rport: offset");
_Static_assert(__builtin_offsetof(struct vd_io_uring, fd) == 90, "vd_io_uring.fd: offset");
_Static_assert(__builtin_offsetof(struct vd_io_uring, sock_pad) == 92, "vd_io_uring.sock_pad: offset");
_Static_assert(__builtin_offsetof(struct vd_io_uring, laddr) == 96, "vd_io_uring.laddr: offset");
_Static_assert(__builtin_offsetof(struct vd_io_uring, raddr) == 112, "vd_io_uring.raddr: offset");
_Static_assert(__builtin_offsetof(struct vd_io_uring, sock_ino) == 128, "vd_io_uring.sock_ino: offset");
_Static_assert(__builtin_offsetof(struct vd_io_uring, path_len) == 136, "vd_io_uring.path_len: offset");
_Static_assert(__builtin_offsetof(struct vd_io_uring, new_path_len) == 138, "vd_io_uring.new_path_len: offset");

/* A DNS query or answer, UDP or TCP, port 53. */
struct vd_dns {
	struct vd_header header;
	__u32 direction;	/* Query or answer. VD_DNS_DIRECTION_* */
	__u32 pad;	/* Zero. */
	__u16 family;	/* Address family: 1 unix, 2 IPv4, 10 IPv6, 16 netlink, 17 packet, ... */
	__u16 sock_type;	/* 1 stream, 2 datagram, 3 raw. */
	__u16 protocol;	/* IP protocol number. */
	__u16 lport;	/* Local port, host byte order. */
	__u16 rport;	/* Remote port, host byte order. */
	__u16 fd;	/* File descriptor of the socket; 65535 where there is none. */
	__u32 sock_pad;	/* Zero. */
	__u32 laddr[4];	/* Local address. */
	__u32 raddr[4];	/* Remote address. */
	__u64 sock_ino;	/* Inode of the socket; joins with the stdio inodes of exec. */
	__u16 payload_len;	/* bytes: The DNS message, without TCP's length prefix. */
};
#define VD_DNS_FIXED 144
#define VD_DNS_PAYLOAD_LIMIT 1472
_Static_assert(sizeof(struct vd_dns) == VD_DNS_FIXED, "vd_dns: size");
_Static_assert(__builtin_offsetof(struct vd_dns, direction) == 72, "vd_dns.direction: offset");
_Static_assert(__builtin_offsetof(struct vd_dns, pad) == 76, "vd_dns.pad: offset");
_Static_assert(__builtin_offsetof(struct vd_dns, family) == 80, "vd_dns.family: offset");
_Static_assert(__builtin_offsetof(struct vd_dns, sock_type) == 82, "vd_dns.sock_type: offset");
_Static_assert(__builtin_offsetof(struct vd_dns, protocol) == 84, "vd_dns.protocol: offset");
_Static_assert(__builtin_offsetof(struct vd_dns, lport) == 86, "vd_dns.lport: offset");
_Static_assert(__builtin_offsetof(struct vd_dns, rport) == 88, "vd_dns.rport: offset");
_Static_assert(__builtin_offsetof(struct vd_dns, fd) == 90, "vd_dns.fd: offset");
_Static_assert(__builtin_offsetof(struct vd_dns, sock_pad) == 92, "vd_dns.sock_pad: offset");
_Static_assert(__builtin_offsetof(struct vd_dns, laddr) == 96, "vd_dns.laddr: offset");
_Static_assert(__builtin_offsetof(struct vd_dns, raddr) == 112, "vd_dns.raddr: offset");
_Static_assert(__builtin_offsetof(struct vd_dns, sock_ino) == 128, "vd_dns.sock_ino: offset");
_Static_assert(__builtin_offsetof(struct vd_dns, payload_len) == 136, "vd_dns.payload_len: offset");

/* The agent has hashed an executable; made by the agent, at most once per file state. */
struct vd_file_hash {
	struct vd_header header;
	__u64 ino;	/* Inode number. */
	__u32 dev;	/* Device, as in exec. */
	__u32 pad;	/* Zero. */
	__u64 ctime;	/* The file's change time, ns since the epoch. */
	__u64 length;	/* Size in bytes. */
	__u8 sha256[32];	/* SHA-256 of the contents. */
};
#define VD_FILE_HASH_FIXED 136
_Static_assert(sizeof(struct vd_file_hash) == VD_FILE_HASH_FIXED, "vd_file_hash: size");
_Static_assert(__builtin_offsetof(struct vd_file_hash, ino) == 72, "vd_file_hash.ino: offset");
_Static_assert(__builtin_offsetof(struct vd_file_hash, dev) == 80, "vd_file_hash.dev: offset");
_Static_assert(__builtin_offsetof(struct vd_file_hash, pad) == 84, "vd_file_hash.pad: offset");
_Static_assert(__builtin_offsetof(struct vd_file_hash, ctime) == 88, "vd_file_hash.ctime: offset");
_Static_assert(__builtin_offsetof(struct vd_file_hash, length) == 96, "vd_file_hash.length: offset");
_Static_assert(__builtin_offsetof(struct vd_file_hash, sha256) == 104, "vd_file_hash.sha256: offset");

#endif
