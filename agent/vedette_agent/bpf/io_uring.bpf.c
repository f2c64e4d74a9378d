/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Requests that io_uring performs instead of a system call. io_submit_sqe() calls trace_io_uring_submit_req() after the
 * request's prepare function has copied its arguments into the kernel (paths included), in the task that submits: the process,
 * or its own submission thread (SQPOLL), which shares its tgid and memory. The result is not known yet.
 */
#include "record.h"

#define IORING_OP_ACCEPT 13
#define IORING_OP_CONNECT 16
#define IORING_OP_OPENAT 18
#define IORING_OP_OPENAT2 28
#define IORING_OP_RENAMEAT 35
#define IORING_OP_UNLINKAT 36
#define IORING_OP_SYMLINKAT 38
#define IORING_OP_LINKAT 39
#define IORING_OP_SOCKET 45
#define IORING_OP_BIND 56
#define IORING_OP_LISTEN 57

static __always_inline u16 append_filename(struct scratch *s, struct filename *filename)
{
	return append_kernel_string(s, BPF_CORE_READ(filename, name), PATH_LIMIT);
}

/* append_filename() of a member that is a pointer up to 6.19 and a struct delayed_filename since. */
#define APPEND(s, type, request, member) \
	append_filename(s, bpf_core_field_exists(((struct type *)request)->member) \
				   ? BPF_CORE_READ((struct type *)request, member) \
				   : BPF_CORE_READ((struct type##___7_0 *)request, member.__incomplete_filename))

SEC("tp_btf/io_uring_submit_req")
int BPF_PROG(io_uring_submit_req, struct io_kiocb *req)
{
	u32 opcode = GET(req, opcode);
	switch (opcode) { /* reads and writes come by the million */
	case IORING_OP_CONNECT:
	case IORING_OP_OPENAT:
	case IORING_OP_OPENAT2:
	case IORING_OP_RENAMEAT:
	case IORING_OP_UNLINKAT:
	case IORING_OP_SYMLINKAT:
	case IORING_OP_LINKAT:
	case IORING_OP_SOCKET:
	case IORING_OP_BIND:
	case IORING_OP_LISTEN:
		break;
	default:
		return 0;
	}
	struct task_struct *task = current_task();
	struct scratch *s = get_scratch();
	if (!s || !wanted_type(VD_EVENT_IO_URING) || is_own(task))
		return 0;
	struct vd_io_uring *r = BEGIN(vd_io_uring, VD_EVENT_IO_URING, s, task, 0);
	r->header.flags |= VD_COMMON_IO_URING;
	r->opcode = opcode;
	r->fd = 0xffff;
	if (opcode == IORING_OP_OPENAT || opcode == IORING_OP_OPENAT2) {
		struct io_open *open = (void *)req;
		u64 flags = BPF_CORE_READ(open, how.flags);
		r->op_flags = flags;
		r->path_len = APPEND(s, io_open, req, filename);
		if (!(flags & (O_ACCMODE | O_CREAT)) && !wanted_tail(r->path_len) && !(settings.options & OPTION_ALL_OPENS))
			return 0;
	} else if (opcode == IORING_OP_UNLINKAT) {
		struct io_unlink *unlink = (void *)req;
		r->op_flags = BPF_CORE_READ(unlink, flags);
		r->path_len = APPEND(s, io_unlink, req, filename);
	} else if (opcode == IORING_OP_RENAMEAT) {
		struct io_rename *rename = (void *)req;
		r->op_flags = BPF_CORE_READ(rename, flags);
		r->path_len = APPEND(s, io_rename, req, oldpath);
		r->new_path_len = APPEND(s, io_rename, req, newpath);
	} else if (opcode == IORING_OP_LINKAT || opcode == IORING_OP_SYMLINKAT) {
		struct io_link *link = (void *)req;
		r->op_flags = BPF_CORE_READ(link, flags);
		r->path_len = APPEND(s, io_link, req, oldpath);
		r->new_path_len = APPEND(s, io_link, req, newpath);
	} else if (opcode == IORING_OP_SOCKET) {
		struct io_socket *socket = (void *)req;
		r->family = BPF_CORE_READ(socket, domain);
		r->sock_type = BPF_CORE_READ(socket, type) & 0xf;
		r->protocol = BPF_CORE_READ(socket, protocol);
	} else {
		struct io_connect *connect = (void *)req; /* every request begins with its file */
		struct file *file = BPF_CORE_READ(connect, file);
		struct sock *sk = sock_of(file);
		if (sk)
			fill_socket_file(SOCK(r), file, sk, 0xffff);
		if (opcode == IORING_OP_CONNECT) {
			struct user_address to = {};
			u64 address = (u64)BPF_CORE_READ(connect, addr);
			u32 length = BPF_CORE_READ(connect, addr_len);
			read_address(&to, address, length);
			if (to.family == AF_UNIX)
				r->path_len = append_unix_path(s, address, length);
			else
				fill_remote(&r->family, &r->rport, r->raddr, &to);
		}
	}
	struct sock_fields *fields = SOCK(r);
	u64 more = (u64)opcode << 48 ^ (u64)fields->family << 32 ^ (u64)fields->rport << 16 ^ (u64)r->op_flags << 8 ^
		   ((u64)fields->raddr[0] << 32 | fields->raddr[1]) ^ ((u64)fields->raddr[2] << 32 | fields->raddr[3]) ^
		   (u64)fields->lport << 20 ^ (u64)fields->sock_type << 4 ^ fields->protocol;
	if (!seen_tails(s, task, VD_EVENT_IO_URING, sizeof(*r), 0, more))
		finish(s);
	return 0;
}

/*
 * For kernels whose tracepoint has another name (6.1 and older): that a process has set up a ring is all that is told, with the
 * opcode 0xffffffff, which io_uring will never have.
 */
SYSCALL_EXIT(io_uring_setup)
{
	struct task_struct *task = current_task();
	struct scratch *s = get_scratch();
	if (!s || !wanted_type(VD_EVENT_IO_URING) || is_own(task))
		return 0;
	struct vd_io_uring *r = BEGIN(vd_io_uring, VD_EVENT_IO_URING, s, task, ret);
	r->opcode = 0xffffffff;
	r->fd = 0xffff;
	finish(s);
	return 0;
}
