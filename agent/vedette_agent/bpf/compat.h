/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The 32-bit system calls (int 0x80, and sysenter of 32-bit programs) by their number in the 64-bit table. A 64-bit process
 * may use them at will, so leaving them out would be an open door. Numbers: arch/x86/entry/syscalls/syscall_{32,64}.tbl.
 */
#ifndef VEDETTE_COMPAT_H
#define VEDETTE_COMPAT_H

#define COMPAT_SOCKETCALL 102
#define COMPAT_OLD_MMAP 90
#define X32_BIT 0x40000000

#define COMPAT_MAX 512
/* Zero: nothing that is watched (0 is read(2) in the 64-bit table, which is not). */
const volatile u16 compat_numbers[COMPAT_MAX] = {
	[5] = 2 /* open */,	    [8] = 85 /* creat */,	 [9] = 86 /* link */,	       [10] = 87 /* unlink */,
	[15] = 90 /* chmod */,	    [21] = 165 /* mount */,	 [22] = 166 /* umount */,      [23] = 105 /* setuid16 */,
	[26] = 101 /* ptrace */,    [38] = 82 /* rename */,	 [40] = 84 /* rmdir */,	       [41] = 32 /* dup */,
	[46] = 106 /* setgid16 */,  [52] = 166 /* umount2 */,	 [55] = 72 /* fcntl */,	       [63] = 33 /* dup2 */,
	[70] = 113 /* setreuid16 */, [71] = 114 /* setregid16 */, [83] = 88 /* symlink */,     [90] = 9 /* mmap, arguments in memory */,
	[94] = 91 /* fchmod */,	    [125] = 10 /* mprotect */,	 [128] = 175 /* init_module */, [129] = 176 /* delete_module */,
	[138] = 122 /* setfsuid16 */, [139] = 123 /* setfsgid16 */, [164] = 117 /* setresuid16 */, [170] = 119 /* setresgid16 */,
	[185] = 126 /* capset */,   [192] = 9 /* mmap2 */,	 [203] = 113 /* setreuid */,   [204] = 114 /* setregid */,
	[208] = 117 /* setresuid */, [210] = 119 /* setresgid */, [213] = 105 /* setuid */,    [214] = 106 /* setgid */,
	[215] = 122 /* setfsuid */, [216] = 123 /* setfsgid */, [217] = 155 /* pivot_root */, [221] = 72 /* fcntl64 */,
	[295] = 257 /* openat */,   [301] = 263 /* unlinkat */,	 [302] = 264 /* renameat */,   [303] = 265 /* linkat */,
	[304] = 266 /* symlinkat */, [306] = 268 /* fchmodat */, [330] = 292 /* dup3 */,       [342] = 304 /* open_by_handle_at */,
	[345] = 307 /* sendmmsg */, [347] = 310 /* process_vm_readv */, [348] = 311 /* process_vm_writev */,
	[350] = 313 /* finit_module */, [353] = 316 /* renameat2 */, [356] = 319 /* memfd_create */, [359] = 41 /* socket */,
	[361] = 49 /* bind */,	    [362] = 42 /* connect */,	 [363] = 50 /* listen */,      [364] = 288 /* accept4 */,
	[369] = 44 /* sendto */,    [370] = 46 /* sendmsg */,	 [374] = 323 /* userfaultfd */,
	/* From 424 on both tables have the same numbers. */
	[425] = 425 /* io_uring_setup */, [428] = 428 /* open_tree */, [429] = 429 /* move_mount */, [430] = 430 /* fsopen */,
	[431] = 431 /* fsconfig */, [432] = 432 /* fsmount */,	 [437] = 437 /* openat2 */,    [442] = 442 /* mount_setattr */,
	[452] = 452 /* fchmodat2 */, [467] = 467 /* open_tree_attr */,
};

/* socketcall(2)'s first argument */
const volatile u16 socketcall_numbers[32] = {
	[1] = 41 /* socket */, [2] = 49 /* bind */,	[3] = 42 /* connect */,	 [4] = 50 /* listen */,	   [5] = 43 /* accept */,
	[9] = 44 /* send */,   [11] = 44 /* sendto */,	[16] = 46 /* sendmsg */, [18] = 288 /* accept4 */, [20] = 307 /* sendmmsg */,
};

static __always_inline u32 compat_number(u32 number, u64 first)
{
	if (number == COMPAT_SOCKETCALL) {
		u64 which = (u32)first;
		CLAMP(which, 31);
		return socketcall_numbers[which];
	}
	u64 index = number;
	CLAMP(index, COMPAT_MAX - 1);
	return compat_numbers[index];
}

#endif
