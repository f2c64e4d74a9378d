/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* socket, connect (and the first datagram to an address), bind, listen, accept, dup of sockets. */
#include "record.h"

struct user_address { /* sockaddr_in or sockaddr_in6, whichever it is */
	u16 family;
	u16 port;
	u32 address4; /* or flow info */
	u32 address6[4];
};

/* Where the process wanted to go: at exit of a failed connect the socket has been cleared already. */
static __always_inline void fill_remote(u16 *family, u16 *port, u32 *address, const struct user_address *from)
{
	*port = bpf_ntohs(from->port);
	if (from->family == AF_INET) {
		address[3] = from->address4;
		*family = AF_INET;
	} else if (from->family == AF_INET6) {
		*family = set_address6(address, from->address6) ? AF_INET : AF_INET6;
	}
}

static __always_inline void read_address(struct user_address *to, u64 from, u64 length)
{
	CLAMP(length, sizeof(*to));
	bpf_probe_read_user(to, length, (void *)from);
}

/* sun_path as passed: a path up to its NUL, or an abstract name with its leading NUL. */
static __always_inline u16 append_unix_path(struct scratch *s, u64 address, u64 length)
{
	u8 first = 0;
	if (length <= 2)
		return 0;
	length -= 2;
	CLAMP(length, 108);
	if (bpf_probe_read_user(&first, 1, (void *)(address + 2))) {
		HEADER(s)->flags |= VD_COMMON_FAULT;
		return 0;
	}
	if (!first) {
		if (bpf_probe_read_user(tail_at(s), length, (void *)(address + 2)))
			return 0;
		s->length += length;
		return length;
	}
	s64 got = bpf_probe_read_user_str(tail_at(s), length + 1, (void *)(address + 2));
	if (got <= 0)
		return 0;
	s->length += got - 1;
	return got - 1;
}

SYSCALL_EXIT(connect)
{
	struct task_struct *task = current_task();
	struct call call;
	if (!wanted_type(VD_EVENT_CONNECT) || is_own(task))
		return 0;
	load_call(&call, task, regs);
	struct user_address to = {};
	read_address(&to, call.a[1], (u32)call.a[2]);
	if (to.family != AF_UNIX && to.family != AF_INET && to.family != AF_INET6 && !(settings.options & OPTION_ALL_SOCKETS))
		return 0;
	struct file *file = file_of(task, (s32)call.a[0]);
	struct sock *sk = sock_of(file);
	if (!sk)
		return 0;
	struct scratch *s = get_scratch();
	if (!s)
		return 0;
	if (to.family != AF_UNIX) {
		struct seen_key key = {.b = (u64)to.address6[2] << 32 | to.address6[3], .c = (u64)to.address6[0] << 32 | to.address6[1]};
		key.a = (u64)to.address4 << 32 | to.port << 16 | (ret & 0xffff);
		if (to.family == AF_INET)
			key.b = key.c = 0;
		seen_process(&key, task, VD_EVENT_CONNECT);
		if (seen_before(&key))
			return 0;
	}
	struct vd_connect *r = BEGIN(vd_connect, VD_EVENT_CONNECT, s, task, ret);
	fill_socket_file(SOCK(r), file, sk, (s32)call.a[0]);
	if (to.family == AF_UNIX) {
		r->path_len = append_unix_path(s, call.a[1], (u32)call.a[2]);
		if (seen_tails(s, task, VD_EVENT_CONNECT, sizeof(*r), ret, AF_UNIX))
			return 0;
	} else {
		/* The socket has the address that was really dialled; after a failure it has none, and the argument must do. */
		if (ret < 0 && ret != -EINPROGRESS)
			fill_remote(&r->family, &r->rport, r->raddr, &to);
	}
	finish(s);
	return 0;
}
