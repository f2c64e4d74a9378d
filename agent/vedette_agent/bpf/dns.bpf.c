/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * DNS at the packets, because system calls do not show it: connect and write, io_uring, and C libraries of all kinds end in
 * the same packets.
 *
 *   query, UDP   net_dev_queue: __dev_queue_xmit() calls it first thing, nearly always in the sender's own context
 *   query, TCP   cgroup_skb/egress: TCP payload lies in page fragments, which only bpf_skb_load_bytes can read
 *   answer       cgroup_skb/ingress: sk_filter() runs it when the packet has found its socket, after NAT was undone
 *
 * Only the client's side is reported: to port 53 from a local socket, and from port 53 to a local socket. A forwarded packet
 * (a pod's, on the host's devices) has no socket any more and is not reported a second time.
 */
#include "record.h"

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define DNS_PORT 53
#define DNS_HEADER 12
#define PACKET_TTL 1000000000ULL

struct ipv4 {
	u8 version_length, tos;
	u16 total, id, fragment;
	u8 ttl, protocol;
	u16 checksum;
	u32 source, destination;
};
struct ipv6 {
	u32 flow;
	u16 payload;
	u8 next, hops;
	u32 source[4], destination[4];
};
struct udp {
	u16 source, destination, length, checksum;
};
struct tcp {
	u16 source, destination;
	u32 sequence, acknowledged;
	u8 offset, flags;
	u16 window, checksum, urgent;
};

static __always_inline void set_identity(struct vd_header *h, const struct identity *who)
{
	h->cgroup = who->cgroup;
	h->start = who->start;
	h->pid = who->pid;
	h->tid = who->tid;
	h->ppid = who->ppid;
	h->uid = who->uid;
	h->euid = who->euid;
	__builtin_memcpy(h->comm, who->comm, sizeof(h->comm));
}

static __always_inline void begin_dns(struct scratch *s, u32 direction)
{
	struct vd_dns *r = (void *)s->record;
	__builtin_memset(r, 0, sizeof(*r));
	r->header.type = VD_EVENT_DNS;
	r->header.time = bpf_ktime_get_boot_ns();
	r->direction = direction;
	r->fd = 0xffff;
	s->length = sizeof(*r);
}

static __always_inline void client_key(struct dns_key *key, const struct vd_dns *r)
{
	__builtin_memset(key, 0, sizeof(*key));
	__builtin_memcpy(key->laddr, r->laddr, sizeof(key->laddr));
	key->lport = r->lport;
	key->protocol = r->protocol;
}

/* Whether this very message passed a moment ago, on another device or as a retransmission. */
static __always_inline bool packet_seen(const struct vd_dns *r, u64 sock)
{
	struct packet_key key = {.sock = sock, .ports = (u64)r->lport << 32 | (u64)r->rport << 16 | r->direction << 8 | r->protocol};
	u64 now = r->header.time;
	bpf_probe_read_kernel(&key.question, 8, (u8 *)r + sizeof(*r)); /* id, flags, counts */
	key.ports ^= (u64)r->laddr[3] << 16 ^ (u64)r->raddr[3] << 32;
	u64 *then = bpf_map_lookup_elem(&dns_packets, &key);
	if (then && now - *then < PACKET_TTL)
		return true;
	bpf_map_update_elem(&dns_packets, &key, &now, BPF_ANY);
	return false;
}

/*
 * Who sends: the current task, except where the packet had to wait (for ARP, in a tunnel) and goes out in whatever context came
 * by. So it must live in the socket's network namespace and be no kernel thread.
 */
static __always_inline bool is_sender(struct task_struct *task, struct sock *sk)
{
	u64 sk_net = 0, task_net = 0;
	struct nsproxy *proxy = GET(task, nsproxy);
	bpf_core_read(&sk_net, 8, &sk->__sk_common.skc_net.net);
	bpf_core_read(&task_net, 8, &proxy->net_ns);
	return sk_net == task_net && !(GET(task, flags) & PF_KTHREAD) && GET(task, tgid);
}

struct datagram {
	u32 source[4], destination[4];
	u64 payload; /* offset from skb->head */
	u16 family, lport;
};

/* Whether the packet is UDP to port 53, and from where to where. */
static __always_inline bool parse_datagram(struct datagram *d, struct sk_buff *skb)
{
	u16 protocol = GET(skb, protocol);
	u64 at = GET(skb, network_header), head = 0;
	struct udp udp;
	if (protocol == bpf_htons(ETH_P_IP)) {
		struct ipv4 ip;
		bpf_core_read(&head, 8, &skb->head);
		if (bpf_probe_read_kernel(&ip, sizeof(ip), (void *)(head + at)) || ip.protocol != IPPROTO_UDP ||
		    (ip.fragment & bpf_htons(0x1fff)))
			return false;
		at += (ip.version_length & 15) * 4;
		d->family = AF_INET;
		d->source[3] = ip.source;
		d->destination[3] = ip.destination;
	} else if (protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6 ip;
		bpf_core_read(&head, 8, &skb->head);
		if (bpf_probe_read_kernel(&ip, sizeof(ip), (void *)(head + at)) || ip.next != IPPROTO_UDP)
			return false;
		at += sizeof(ip);
		d->family = AF_INET6;
		__builtin_memcpy(d->source, ip.source, 16);
		__builtin_memcpy(d->destination, ip.destination, 16);
	} else {
		return false;
	}
	if (bpf_probe_read_kernel(&udp, sizeof(udp), (void *)(head + at)) || udp.destination != bpf_htons(DNS_PORT))
		return false;
	d->lport = bpf_ntohs(udp.source);
	d->payload = at + sizeof(udp);
	return true;
}

SEC("tp_btf/net_dev_queue")
int BPF_PROG(net_dev_queue, struct sk_buff *skb)
{
	struct datagram d = {};
	struct sock *sk = GET(skb, sk);
	if (!sk || !parse_datagram(&d, skb) || !wanted_type(VD_EVENT_DNS))
		return 0;
	struct task_struct *task = current_task();
	struct scratch *s = scratch_of(SCRATCH_NETWORK);
	if (!s)
		return 0;
	struct identity who = {};
	bool known = is_sender(task, sk);
	if (known) {
		if (is_own(task))
			return 0;
		who.cgroup = note_cgroup(SCRATCH_NETWORK, task); /* uses the scratch itself: first */
		fill_identity(&who, task);
	}
	begin_dns(s, VD_DNS_DIRECTION_QUERY);
	struct vd_dns *r = (void *)s->record;
	r->family = d.family;
	__builtin_memcpy(r->laddr, d.source, 16);
	__builtin_memcpy(r->raddr, d.destination, 16);
	r->lport = d.lport;
	r->rport = DNS_PORT;
	r->sock_type = SOCK_DGRAM;
	r->protocol = IPPROTO_UDP;
	u64 head = 0, data = 0, number = 0;
	bpf_core_read(&head, 8, &skb->head);
	bpf_core_read(&data, 8, &skb->data);
	u64 end = data + GET(skb, len) - GET(skb, data_len), begin = head + d.payload; /* of the linear part */
	if (end < begin + DNS_HEADER)
		return 0;
	u64 length = end - begin;
	if (length > VD_DNS_PAYLOAD_LIMIT) {
		length = VD_DNS_PAYLOAD_LIMIT;
		r->header.flags |= VD_COMMON_TRUNCATED;
	}
	CLAMP(length, VD_DNS_PAYLOAD_LIMIT);
	if (bpf_probe_read_kernel(s->record + sizeof(*r), length, (void *)begin))
		return 0;
	r->payload_len = length;
	s->length = sizeof(*r) + length;
	bpf_core_read(&number, 8, &skb->sk);
	if (packet_seen(r, number))
		return 0;
	struct dns_key key;
	client_key(&key, r);
	if (known) {
		set_identity(&r->header, &who);
		bpf_map_update_elem(&dns_clients, &key, &who, BPF_ANY);
	} else {
		struct identity *last = bpf_map_lookup_elem(&dns_clients, &key);
		if (last)
			set_identity(&r->header, last);
		else
			r->header.flags |= VD_COMMON_NO_PROCESS;
	}
	struct socket *socket = BPF_CORE_READ(sk, sk_socket);
	if (socket)
		r->sock_ino = BPF_CORE_READ(socket, file, f_inode, i_ino);
	finish(s);
	return 0;
}

/*
 * Parse addresses and ports of the packet into the record; returns the offset of the payload, 0 when it is no DNS of the wanted
 * direction. `leaves`: from here to the server.
 */
static __always_inline u32 parse(struct __sk_buff *skb, struct vd_dns *r, bool leaves)
{
	u16 source, destination;
	u32 at;
	u8 protocol;
	u32 *from = leaves ? r->laddr : r->raddr, *to = leaves ? r->raddr : r->laddr;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct ipv4 ip;
		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
			return 0;
		r->family = AF_INET;
		from[3] = ip.source;
		to[3] = ip.destination;
		protocol = ip.protocol;
		at = (ip.version_length & 15) * 4;
	} else {
		struct ipv6 ip;
		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
			return 0;
		r->family = AF_INET6;
		__builtin_memcpy(from, ip.source, 16);
		__builtin_memcpy(to, ip.destination, 16);
		protocol = ip.next;
		at = sizeof(ip);
	}
	if (protocol == IPPROTO_TCP) {
		struct tcp tcp;
		if (bpf_skb_load_bytes(skb, at, &tcp, sizeof(tcp)))
			return 0;
		source = bpf_ntohs(tcp.source);
		destination = bpf_ntohs(tcp.destination);
		at += (tcp.offset >> 4) * 4;
		r->sock_type = SOCK_STREAM;
	} else {
		struct udp udp;
		if (bpf_skb_load_bytes(skb, at, &udp, sizeof(udp)))
			return 0;
		source = bpf_ntohs(udp.source);
		destination = bpf_ntohs(udp.destination);
		at += sizeof(udp);
		r->sock_type = SOCK_DGRAM;
	}
	r->protocol = protocol;
	r->lport = leaves ? source : destination;
	r->rport = leaves ? destination : source;
	return at;
}

/* The ports alone, before anything else is done: nearly every packet ends here. */
static __always_inline bool is_dns(struct __sk_buff *skb, bool leaves)
{
	u8 protocol = 0, first = 0;
	u16 port = 0;
	u32 at = 40;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, 9, &protocol, 1) || bpf_skb_load_bytes(skb, 0, &first, 1))
			return false;
		at = (first & 15) * 4;
	} else if (skb->protocol != bpf_htons(ETH_P_IPV6) || bpf_skb_load_bytes(skb, 6, &protocol, 1)) {
		return false;
	}
	if (protocol != IPPROTO_TCP && (leaves || protocol != IPPROTO_UDP))
		return false;
	return !bpf_skb_load_bytes(skb, at + (leaves ? 2 : 0), &port, 2) && port == bpf_htons(DNS_PORT);
}

/*
 * TCP puts a length before each message. A segment may begin with it, or (when a client wrote it alone) with the message itself:
 * the count of questions, which is one, tells where the message begins.
 */
static __always_inline u32 message_offset(struct __sk_buff *skb, u32 at)
{
	u16 words[4] = {};
	if (bpf_skb_load_bytes(skb, at, words, sizeof(words)))
		return at;
	return words[2] != bpf_htons(1) && words[3] == bpf_htons(1) ? at + 2 : at;
}

static __always_inline int packet(struct __sk_buff *skb, struct scratch *s, bool leaves)
{
	begin_dns(s, leaves ? VD_DNS_DIRECTION_QUERY : VD_DNS_DIRECTION_ANSWER);
	struct vd_dns *r = (void *)s->record;
	u64 at = parse(skb, r, leaves);
	if (!at)
		return 0;
	if (r->protocol == IPPROTO_TCP)
		at = message_offset(skb, at);
	u64 length = skb->len;
	if (length < at + DNS_HEADER)
		return 0;
	length -= at;
	if (length > VD_DNS_PAYLOAD_LIMIT) {
		length = VD_DNS_PAYLOAD_LIMIT;
		r->header.flags |= VD_COMMON_TRUNCATED;
	}
	if (length < DNS_HEADER)
		return 0;
	CLAMP(length, VD_DNS_PAYLOAD_LIMIT);
	asm volatile("if %0 > 0 goto +1\n\t%0 = 1" : "+r"(length)); /* for the verifier: never zero */
	if (bpf_skb_load_bytes(skb, at, s->record + sizeof(*r), length))
		return 0;
	r->payload_len = length;
	s->length = sizeof(*r) + length;
	if (packet_seen(r, 0))
		return 0;
	struct dns_key key;
	client_key(&key, r);
	struct identity *who = bpf_map_lookup_elem(&dns_clients, &key);
	if (who) {
		if (who->pid == settings.own_tgid)
			return 0;
		set_identity(&r->header, who);
	} else {
		r->header.flags |= VD_COMMON_NO_PROCESS;
		if (config.hierarchy == 2)
			r->header.cgroup = bpf_skb_cgroup_id(skb);
	}
	finish(s);
	return 0;
}

SEC("cgroup_skb/ingress")
int dns_ingress(struct __sk_buff *skb)
{
	struct scratch *s = scratch_of(SCRATCH_NETWORK);
	if (!s || !is_dns(skb, false) || !wanted_type(VD_EVENT_DNS))
		return 1;
	packet(skb, s, false);
	return 1;
}

/*
 * Runs in process context with preemption on, so per-CPU memory is not its own: it takes one of a few buffers, and gives the
 * query up (counted as dropped) when all are taken.
 */
struct egress_buffer {
#ifdef VEDETTE_BASE
	struct bpf_spin_lock lock; /* of taken: before 5.12 there is no atomic exchange */
#endif
	u32 taken;
	struct scratch scratch;
};
#define EGRESS_BUFFERS 8
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, EGRESS_BUFFERS);
	__type(key, u32);
	__type(value, struct egress_buffer);
} egress_buffers SEC(".maps");

/* Marks the buffer as taken or free, and tells whether it was taken before. */
static __always_inline u32 mark(struct egress_buffer *buffer, u32 taken)
{
#ifdef VEDETTE_BASE
	bpf_spin_lock(&buffer->lock);
	u32 before = buffer->taken;
	buffer->taken = taken;
	bpf_spin_unlock(&buffer->lock);
	return before;
#else
	return __sync_lock_test_and_set(&buffer->taken, taken);
#endif
}

SEC("cgroup_skb/egress")
int dns_egress(struct __sk_buff *skb)
{
	if (!is_dns(skb, true) || !wanted_type(VD_EVENT_DNS))
		return 1;
	u32 index = bpf_get_smp_processor_id();
	for (int i = 0; i < 3; i++) {
		index = (index + i * 3) & (EGRESS_BUFFERS - 1);
		struct egress_buffer *buffer = bpf_map_lookup_elem(&egress_buffers, &index);
		if (!buffer)
			return 1;
		if (mark(buffer, 1))
			continue;
		packet(skb, &buffer->scratch, true);
		mark(buffer, 0);
		return 1;
	}
	count(COUNT_DROPPED);
	return 1;
}
