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

/* Note who owns the socket, so that DNS over TCP, seen outside process context, can be told together with the process. */
static __always_inline void note_dns_client(struct task_struct *task, const struct sock_fields *sock)
{
	struct dns_key key = {.lport = sock->lport, .protocol = sock->protocol};
	struct identity who = {};
	__builtin_memcpy(key.laddr, sock->laddr, sizeof(key.laddr));
	u64 node = cgroup_node(task);
	bpf_core_read(&who.cgroup, 8, &((struct kernfs_node *)node)->id);
	fill_identity(&who, task);
	bpf_map_update_elem(&dns_clients, &key, &who, BPF_ANY);
}

/*
 * Where the listener's socket file lies, seen from the listener's mount namespace: unlike the path passed it cannot be
 * disguised by a symbolic link, a relative path or a bind mount. An accepted or connected peer shares its listener's path.
 */
static __always_inline u16 append_bound_path(struct scratch *s, struct sock *sk)
{
	struct unix_sock *peer = (void *)BPF_CORE_READ((struct unix_sock *)sk, peer);
	if (!peer)
		return 0;
	return append_path(s, (u64)BPF_CORE_READ(peer, path.mnt), (u64)BPF_CORE_READ(peer, path.dentry));
}

static __always_inline bool wanted_family(u16 family)
{
	return family == AF_UNIX || family == AF_INET || family == AF_INET6 || (settings.options & OPTION_ALL_SOCKETS);
}

static __always_inline void address_key(struct seen_key *key, const struct user_address *to, s64 ret)
{
	key->a = (u64)to->address4 << 32 | (u64)to->port << 16 | (ret < 0 ? -ret & 0xffff : 0);
	if (to->family == AF_INET6) {
		key->b = (u64)to->address6[2] << 32 | to->address6[3];
		key->c = (u64)to->address6[0] << 32 | to->address6[1];
	}
}

SYSCALL_EXIT(connect)
{
	struct task_struct *task = current_task();
	struct call call;
	if (!wanted_type(VD_EVENT_CONNECT))
		return 0;
	load_call(&call, task, regs);
	struct user_address to = {};
	read_address(&to, call.a[1], (u32)call.a[2]);
	if (!wanted_family(to.family))
		return 0;
	if (to.port == bpf_htons(53) && to.family != AF_UNIX && (!ret || ret == -EINPROGRESS)) {
		struct sock *sk = sock_of(file_of(task, (s32)call.a[0]));
		struct sock_fields fields = {};
		if (sk) {
			fill_sock(&fields, sk);
			note_dns_client(task, &fields);
		}
	}
	if (is_own(task))
		return 0;
	if (to.family != AF_UNIX) {
		struct seen_key key = {};
		seen_process(&key, task, VD_EVENT_CONNECT);
		address_key(&key, &to, ret);
		if (seen_before(&key))
			return 0;
	}
	struct file *file = file_of(task, (s32)call.a[0]);
	struct sock *sk = sock_of(file);
	struct scratch *s = get_scratch();
	if (!sk || !s)
		return 0;
	struct vd_connect *r = BEGIN(vd_connect, VD_EVENT_CONNECT, s, task, ret);
	fill_socket_file(SOCK(r), file, sk, (s32)call.a[0]);
	if (to.family == AF_UNIX) {
		r->path_len = append_unix_path(s, call.a[1], (u32)call.a[2]);
		if (!ret)
			r->bound_path_len = append_bound_path(s, sk);
		if (seen_tails(s, task, VD_EVENT_CONNECT, sizeof(*r), ret, AF_UNIX))
			return 0;
	} else if (ret < 0 && ret != -EINPROGRESS) {
		/* The socket has the address that was really dialled; after a failure it has none, and the argument must do. */
		fill_remote(&r->family, &r->rport, r->raddr, &to);
	}
	finish(s);
	return 0;
}

struct message_user { /* the head of struct msghdr */
	u64 name;
	u32 name_length;
};

/* sendto, sendmsg, sendmmsg with an address: a datagram needs no connect. Of sendmmsg the first message's address stands for all. */
SYSCALL_EXIT(send)
{
	struct task_struct *task = current_task();
	struct call call;
	load_call(&call, task, regs);
	u64 address = call.a[4], length = (u32)call.a[5];
	if (call.number != 44) {
		struct message_user message = {};
		if (call.compat) {
			u32 words[2] = {};
			bpf_probe_read_user(words, sizeof(words), (void *)call.a[1]);
			message.name = words[0];
			message.name_length = words[1];
		} else {
			bpf_probe_read_user(&message, sizeof(message), (void *)call.a[1]);
		}
		address = message.name;
		length = message.name_length;
	}
	if (!address || !length || !wanted_type(VD_EVENT_CONNECT) || is_own(task))
		return 0;
	struct user_address to = {};
	read_address(&to, address, length);
	if (to.family != AF_INET && to.family != AF_INET6)
		return 0;
	struct seen_key key = {};
	seen_process(&key, task, VD_EVENT_CONNECT);
	address_key(&key, &to, ret);
	if (seen_before(&key))
		return 0;
	struct file *file = file_of(task, (s32)call.a[0]);
	struct sock *sk = sock_of(file);
	struct scratch *s = get_scratch();
	if (!sk || !s)
		return 0;
	struct vd_connect *r = BEGIN(vd_connect, VD_EVENT_CONNECT, s, task, ret < 0 ? ret : 0);
	fill_socket_file(SOCK(r), file, sk, (s32)call.a[0]);
	fill_remote(&r->family, &r->rport, r->raddr, &to);
	finish(s);
	return 0;
}

SYSCALL_EXIT(bind)
{
	struct task_struct *task = current_task();
	struct call call;
	if (!wanted_type(VD_EVENT_BIND) || is_own(task))
		return 0;
	load_call(&call, task, regs);
	struct user_address to = {};
	read_address(&to, call.a[1], (u32)call.a[2]);
	if (!wanted_family(to.family))
		return 0;
	struct file *file = file_of(task, (s32)call.a[0]);
	struct sock *sk = sock_of(file);
	struct scratch *s = get_scratch();
	if (!sk || !s)
		return 0;
	if (to.family != AF_UNIX) {
		struct seen_key key = {};
		seen_process(&key, task, VD_EVENT_BIND);
		address_key(&key, &to, ret);
		if (seen_before(&key))
			return 0;
	}
	struct vd_bind *r = BEGIN(vd_bind, VD_EVENT_BIND, s, task, ret);
	fill_socket_file(SOCK(r), file, sk, (s32)call.a[0]);
	if (to.family == AF_UNIX) {
		r->path_len = append_unix_path(s, call.a[1], (u32)call.a[2]);
		if (seen_tails(s, task, VD_EVENT_BIND, sizeof(*r), ret, AF_UNIX))
			return 0;
	} else if (ret < 0) {
		fill_remote(&r->family, &r->lport, r->laddr, &to);
	}
	finish(s);
	return 0;
}

SYSCALL_EXIT(listen)
{
	struct task_struct *task = current_task();
	struct call call;
	if (!wanted_type(VD_EVENT_LISTEN) || is_own(task))
		return 0;
	load_call(&call, task, regs);
	struct file *file = file_of(task, (s32)call.a[0]);
	struct sock *sk = sock_of(file);
	struct scratch *s = get_scratch();
	if (!sk || !s)
		return 0;
	struct vd_listen *r = BEGIN(vd_listen, VD_EVENT_LISTEN, s, task, ret);
	fill_socket_file(SOCK(r), file, sk, (s32)call.a[0]);
	r->backlog = call.a[1];
	finish(s);
	return 0;
}

/* accept, accept4. A failed one (mostly EAGAIN) accepts nothing and is not reported. */
SYSCALL_EXIT(accept)
{
	struct task_struct *task = current_task();
	if (ret < 0 || !wanted_type(VD_EVENT_ACCEPT) || is_own(task))
		return 0;
	struct file *file = file_of(task, ret);
	struct sock *sk = sock_of(file);
	struct scratch *s = get_scratch();
	if (!sk || !s)
		return 0;
	u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (family != AF_INET && family != AF_INET6 && !(settings.options & OPTION_ALL_SOCKETS))
		return 0;
	struct vd_accept *r = BEGIN(vd_accept, VD_EVENT_ACCEPT, s, task, ret);
	fill_socket_file(SOCK(r), file, sk, ret);
	struct seen_key key = {.a = (u64)r->raddr[0] << 32 | r->raddr[1], .b = (u64)r->raddr[2] << 32 | r->raddr[3], .c = r->lport};
	seen_process(&key, task, VD_EVENT_ACCEPT);
	if (!seen_before(&key))
		finish(s);
	return 0;
}

#define NETLINK_ROUTE 0

/*
 * Sockets of families and types that ordinary programs do not use. Route netlink is what every address lookup of the C library
 * opens, so it counts as ordinary.
 */
SYSCALL_EXIT(socket)
{
	struct task_struct *task = current_task();
	struct call call;
	if (!wanted_type(VD_EVENT_SOCKET) || is_own(task))
		return 0;
	load_call(&call, task, regs);
	u32 family = call.a[0], type = call.a[1] & 0xf, protocol = call.a[2];
	bool usual = family == AF_UNIX || (family == AF_NETLINK && protocol == NETLINK_ROUTE) ||
		     ((family == AF_INET || family == AF_INET6) && (type == SOCK_STREAM || type == SOCK_DGRAM) &&
		      (!protocol || protocol == IPPROTO_TCP || protocol == IPPROTO_UDP));
	if (usual && !(settings.options & OPTION_ALL_SOCKETS))
		return 0;
	struct seen_key key = {.a = (u64)family << 32 | type, .b = protocol, .c = ret < 0 ? ret : 0};
	seen_process(&key, task, VD_EVENT_SOCKET);
	if (seen_before(&key))
		return 0;
	struct scratch *s = get_scratch();
	if (!s)
		return 0;
	struct vd_socket *r = BEGIN(vd_socket, VD_EVENT_SOCKET, s, task, ret);
	r->family = family;
	r->sock_type = type;
	r->protocol = protocol;
	finish(s);
	return 0;
}

#define F_DUPFD 0
#define F_DUPFD_CLOEXEC 1030

/* dup, dup2, dup3, fcntl(F_DUPFD): sockets that become a standard descriptor (all socket duplications with all_sockets). */
SYSCALL_EXIT(dup)
{
	struct task_struct *task = current_task();
	struct call call;
	if (ret < 0 || (ret > 2 && !(settings.options & OPTION_ALL_SOCKETS)))
		return 0;
	load_call(&call, task, regs);
	u32 command = call.a[1];
	if (call.number == 72 && command != F_DUPFD && command != F_DUPFD_CLOEXEC)
		return 0;
	struct file *file = file_of(task, ret);
	struct sock *sk = sock_of(file);
	struct scratch *s = get_scratch();
	if (!sk || !s || !wanted_type(VD_EVENT_DUP))
		return 0;
	struct vd_dup *r = BEGIN(vd_dup, VD_EVENT_DUP, s, task, ret);
	r->old_fd = call.a[0];
	r->new_fd = ret;
	fill_socket_file(SOCK(r), file, sk, ret);
	finish(s);
	return 0;
}
