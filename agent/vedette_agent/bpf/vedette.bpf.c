/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One object of all programs. What each needs is decided at load: see hooks.py. */
#include "dispatch.bpf.c"
#include "exec.bpf.c"
#include "files.bpf.c"
#include "mounts.bpf.c"
#include "memory.bpf.c"
#include "network.bpf.c"
#include "process_access.bpf.c"
#include "creds.bpf.c"
#include "modules.bpf.c"
#include "io_uring.bpf.c"
#include "dns.bpf.c"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
