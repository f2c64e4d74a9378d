/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* set*uid, set*gid, capset: credentials before and after. */
#include "record.h"

static __always_inline u32 cred_call(u32 number)
{
	switch (number) {
	case 105:
		return VD_CRED_CALL_SETUID;
	case 113:
		return VD_CRED_CALL_SETREUID;
	case 117:
		return VD_CRED_CALL_SETRESUID;
	case 122:
		return VD_CRED_CALL_SETFSUID;
	case 106:
		return VD_CRED_CALL_SETGID;
	case 114:
		return VD_CRED_CALL_SETREGID;
	case 119:
		return VD_CRED_CALL_SETRESGID;
	case 123:
		return VD_CRED_CALL_SETFSGID;
	case 126:
		return VD_CRED_CALL_CAPSET;
	}
	return 0;
}

SYSCALL_EXIT(setuid)
{
	struct task_struct *task = current_task();
	struct call call;
	load_call(&call, task, regs);
	u32 tgid = GET(task, tgid), which = cred_call(call.number);
	struct creds now = {}, before = {};
	creds_now(&now, task, GET(task, group_leader, start_boottime));
	struct creds *known = bpf_map_lookup_elem(&known_creds, &tgid);
	bool unknown = !known || known->start != now.start;
	before = unknown ? now : *known;
	bpf_map_update_elem(&known_creds, &tgid, &now, BPF_ANY);
	if (!wanted_type(VD_EVENT_SETUID))
		return 0;
	bool changed = now.uid != before.uid || now.euid != before.euid || now.gid != before.gid || now.egid != before.egid ||
		       now.caps != before.caps;
	/*
	 * A change is always reported. What changed nothing (file servers switch fsuid all day; the C library repeats the call in
	 * every thread) or failed is reported once in the TTL.
	 */
	if (!changed) {
		struct seen_key key = {.a = which, .b = (u32)ret, .c = call.a[0]};
		seen_process(&key, task, VD_EVENT_SETUID);
		if (seen_before(&key))
			return 0;
	}
	struct scratch *s = get_scratch();
	if (!s)
		return 0;
	struct vd_setuid *r = BEGIN(vd_setuid, VD_EVENT_SETUID, s, task, ret);
	r->caps = now.caps;
	r->gid = now.gid;
	r->egid = now.egid;
	r->old_caps = before.caps;
	r->old_uid = before.uid;
	r->old_euid = before.euid;
	r->old_creds_unknown = unknown;
	r->call = which;
	finish(s);
	return 0;
}
