/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Maps, and what user space sets: `config` before loading, `settings` at any time. */
#ifndef VEDETTE_MAPS_H
#define VEDETTE_MAPS_H

#include "core.h"
#include "events.gen.h"

/* Set once before loading; the verifier sees constants and drops the branches not taken. */
struct config {
	u32 hierarchy;	   /* 1: cgroup v1 memory, 2: cgroup v2. An id means nothing without its hierarchy. */
	u32 overlay_entry; /* where overlayfs keeps the lower layers: 2 in its inode (>= 6.5), 1 in d_fsdata (6.1), 0 unknown */
	u64 seed;	   /* secret of the path hash, so that nobody can craft a path that dedupes another one */
};
const volatile struct config config SEC(".rodata.config") = {.hierarchy = 2};

/* Changed at any time by writing the map's one value. Layout known to loader.py. */
struct settings {
	u64 session;	    /* boottime ns at load */
	u64 dedupe_ttl;	    /* ns; 0: nothing is deduplicated */
	u64 disabled_types; /* bit n: type n is not wanted */
	u32 own_tgid;	    /* the agent, whose own files and connections are not reported; 0: none */
	u32 options;	    /* OPTION_* */
	u64 name_hint[256]; /* by first byte: bit min(length, 63) says that `open_names` may hold such a name */
};
volatile struct settings settings SEC(".data.settings");

#define OPTION_ALL_SOCKETS 1u
#define OPTION_ALL_MPROTECT 2u
#define OPTION_ALL_OPENS 4u

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} ring SEC(".maps");

/* system call number (of the 64-bit table) -> program; filled by the loader */
#define CALLS_MAX 600
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, CALLS_MAX);
	__type(key, u32);
	__type(value, u32);
} calls SEC(".maps");

struct counters {
	u64 emitted;
	u64 deduplicated;
	u64 dropped;
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct counters);
} counters SEC(".maps");

/* Basenames whose opening for reading is wanted. Longer names are cut to 63 bytes, here and in the lookup. */
#define NAME_KEY 64
struct name_key {
	char name[NAME_KEY];
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct name_key);
	__type(value, u32);
} open_names SEC(".maps");

/*
 * What was reported already. The process is part of every key, by its start and its count of execs: within the TTL the same
 * act of *another* program is still an event, because who did it is the evidence.
 */
struct seen_key {
	u64 start;
	u64 a, b, c;
	u32 type;
	u32 exec;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct seen_key);
	__type(value, u64);
} seen SEC(".maps");

/* cgroups whose CGROUP record was emitted */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, u64);
} seen_cgroups SEC(".maps");

/* Credentials of a process as last seen (fork, exec, set*id), by tgid: the "before" of the next change. */
struct creds {
	u64 start;
	u64 caps;
	u32 uid, euid, gid, egid;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, u32);
	__type(value, struct creds);
} known_creds SEC(".maps");

/*
 * One record is built here, then copied into the ring at its real size: a reservation would have to be of the greatest size.
 * `record` is longer than any record by one tail, so that a tail may be written at any offset that is still legal.
 */
#define PATH_LIMIT 4096
#define RECORD_LIMIT VD_MAX_RECORD
struct scratch {
	u32 length; /* bytes of `record` in use */
	u32 path_start;	/* where the walked path begins in `path` */
	u32 path_length;
	u32 reached_root; /* the walk met the process's root directory */
	u32 announced;	  /* a CGROUP record was built here since the call began */
	u64 hash;
	/*
	 * State of the loops. It lives here instead of in registers so that the verifier forgets its values: each round
	 * then begins in the same state as the one before and is checked once, instead of once per path through all earlier rounds.
	 */
	volatile u64 mnt, dentry, mnt_root, root_mnt, root_dentry, node, at, begin, end, start;
	volatile u32 inside, copying, partial, pad;
	u8 record[RECORD_LIMIT + PATH_LIMIT + 64];
	u8 path[PATH_LIMIT + 256];
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2); /* SCRATCH_* */
	__type(key, u32);
	__type(value, struct scratch);
} scratches SEC(".maps");
#define SCRATCH_PROCESS 0
#define SCRATCH_NETWORK 1

/* Who uses a port: lets an answer, which arrives in nobody's context, be told together with who asked. */
struct dns_key {
	u32 laddr[4];
	u16 lport;
	u16 protocol;
};
struct identity {
	u64 cgroup, start;
	u32 pid, tid, ppid, uid, euid, flags;
	char comm[16];
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct dns_key);
	__type(value, struct identity);
} dns_clients SEC(".maps");

/* One packet passes several devices (bond, bridge, veth): it is reported at the first. */
struct packet_key {
	u64 sock, question, ports;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct packet_key);
	__type(value, u64);
} dns_packets SEC(".maps");

#endif
