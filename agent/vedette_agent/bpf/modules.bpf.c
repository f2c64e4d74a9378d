/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* init_module, finit_module, delete_module: at the system calls, so that refused attempts are seen and kernels without modules too. */
#include "record.h"

SYSCALL_EXIT(module)
{
	struct task_struct *task = current_task();
	struct scratch *s = get_scratch();
	struct call call;
	if (!s || !wanted_type(VD_EVENT_MODULE))
		return 0;
	load_call(&call, task, regs);
	struct vd_module *r = BEGIN(vd_module, VD_EVENT_MODULE, s, task, ret);
	u64 params = 0, name = 0;
	if (call.number == 175) {
		r->op = VD_MODULE_OP_INIT;
		r->length = call.a[1];
		params = call.a[2];
	} else if (call.number == 313) {
		r->op = VD_MODULE_OP_FINIT;
		r->module_flags = call.a[2];
		r->path_len = append_file_path(s, file_of(task, (s32)call.a[0]));
		params = call.a[1];
	} else {
		r->op = VD_MODULE_OP_DELETE;
		r->module_flags = call.a[1];
		name = call.a[0];
	}
	r->params_len = append_user_string(s, params, VD_MODULE_PARAMS_LIMIT);
	r->name_len = append_user_string(s, name, VD_MODULE_NAME_LIMIT);
	finish(s);
	return 0;
}
