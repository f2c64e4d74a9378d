/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The old and the new mount calls, and umount. Failed attempts are as telling as successful ones. */
#include "record.h"

struct mount_attr_user {
	u64 set, clear, propagation, userns_fd;
};

/* mount, pivot_root, open_tree, open_tree_attr, move_mount, fsopen, fsconfig, fsmount, mount_setattr */
SYSCALL_EXIT(mount)
{
	struct task_struct *task = current_task();
	struct scratch *s = get_scratch();
	struct call call;
	if (!s || !wanted_type(VD_EVENT_MOUNT))
		return 0;
	load_call(&call, task, regs);
	struct vd_mount *r = BEGIN(vd_mount, VD_EVENT_MOUNT, s, task, ret);
	s32 source_dfd = AT_FDCWD, target_dfd = AT_FDCWD;
	u64 source = 0, target = 0, fstype = 0;
	bool directory = true; /* the source is a path, and not a device's or nothing's name */
	r->fs_fd = -1;
	switch (call.number) {
	case 165:
		r->op = VD_MOUNT_OP_MOUNT;
		source = call.a[0];
		target = call.a[1];
		fstype = call.a[2];
		r->mount_flags = call.a[3];
		directory = r->mount_flags & (0x1000 | 0x2000); /* MS_BIND, MS_MOVE */
		break;
	case 155:
		r->op = VD_MOUNT_OP_PIVOT_ROOT;
		source = call.a[0];
		target = call.a[1];
		break;
	case 428:
	case 467:
		r->op = VD_MOUNT_OP_OPEN_TREE;
		source_dfd = call.a[0];
		source = call.a[1];
		r->mount_flags = (u32)call.a[2];
		break;
	case 429: {
		u8 first = 0;
		r->op = VD_MOUNT_OP_MOVE_MOUNT;
		source_dfd = call.a[0];
		source = call.a[1];
		target_dfd = call.a[2];
		target = call.a[3];
		r->mount_flags = (u32)call.a[4];
		bpf_probe_read_user(&first, 1, (void *)source);
		if (!first) /* what fsmount or open_tree made */
			r->fs_fd = source_dfd;
		break;
	}
	case 430:
		r->op = VD_MOUNT_OP_FSOPEN;
		fstype = call.a[0];
		r->mount_flags = (u32)call.a[1];
		break;
	case 431:
		r->op = VD_MOUNT_OP_FSCONFIG;
		r->fs_fd = call.a[0];
		r->mount_flags = (u32)call.a[1];
		fstype = call.a[2];
		directory = false;
		if (r->mount_flags == 1 || r->mount_flags == 3 || r->mount_flags == 4) /* a string or a path: other values are no text */
			source = call.a[3];
		break;
	case 432:
		r->op = VD_MOUNT_OP_FSMOUNT;
		r->fs_fd = call.a[0];
		r->mount_flags = (u32)call.a[2];
		break;
	case 442: {
		struct mount_attr_user attributes = {};
		r->op = VD_MOUNT_OP_MOUNT_SETATTR;
		target_dfd = call.a[0];
		target = call.a[1];
		bpf_probe_read_user(&attributes, sizeof(attributes), (void *)call.a[3]);
		r->mount_flags = attributes.set;
		break;
	}
	default:
		return 0;
	}
	if (directory)
		r->source_len = append_joined(s, task, source_dfd, source);
	else
		r->source_len = append_user_string(s, source, PATH_LIMIT);
	r->target_len = append_joined(s, task, target_dfd, target);
	r->fstype_len = append_user_string(s, fstype, VD_MOUNT_FSTYPE_LIMIT);
	finish(s);
	return 0;
}

SYSCALL_EXIT(umount)
{
	struct task_struct *task = current_task();
	struct scratch *s = get_scratch();
	struct call call;
	if (!s || !wanted_type(VD_EVENT_UMOUNT))
		return 0;
	load_call(&call, task, regs);
	struct vd_umount *r = BEGIN(vd_umount, VD_EVENT_UMOUNT, s, task, ret);
	r->umount_flags = (u32)call.a[1];
	r->target_len = append_user_string(s, call.a[0], PATH_LIMIT);
	finish(s);
	return 0;
}
