/* The agent container's entry point: hands four capabilities to a Python that runs as an ordinary user.
 *
 * Container runtimes put the capabilities of a container into its bounding set; a process that is not root gets none of
 * them, because runtimes set no ambient ones, and a file of Python's own must not carry any. This file carries them
 * (setcap, permitted only), copies what the kernel has let through from its permitted set to its inheritable and ambient
 * sets, and executes the agent. The agent drops the ambient set again before it does anything else.
 *
 * The file's capabilities are permitted, not effective: with the effective bit the kernel would refuse to execute it at
 * all when one is missing (capabilities(7), "capability-dumb"), with no word on which. Under no_new_privs the kernel
 * cuts them down to what the executing process holds, so this must be the container's first program: the runtime still
 * holds them then, a shell does not.
 *
 * Static and without options: arguments go to the agent as they are.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef CAP_PERFMON
#define CAP_PERFMON 38
#endif
#ifndef CAP_BPF
#define CAP_BPF 39
#endif

#ifndef PYTHON
#define PYTHON "/opt/vedette/bin/python3"
#endif

/* The agent's own words for this state are exit codes 4 (privileges) and 5 (programs not loaded); docs/agent.md. */
enum { EXIT_PRIVILEGES = 4, EXIT_NOT_EXECUTED = 127 };

static const struct {
	int number;
	const char *name;
	const char *without; /* what does not work; NULL: nothing does */
} wanted[] = {
	{ CAP_BPF, "BPF", NULL },
	{ CAP_PERFMON, "PERFMON", NULL },
	{ CAP_NET_ADMIN, "NET_ADMIN", "DNS answers are not seen" },
	{ CAP_SYS_PTRACE, "SYS_PTRACE", "executables are not hashed and other users' processes are known by name only" },
};
#define WANTED (sizeof wanted / sizeof *wanted)

static int capabilities(long call, struct __user_cap_data_struct data[2])
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };

	return (int)syscall(call, &header, data);
}

static int fail(const char *what)
{
	fprintf(stderr, "vedette-agent: %s: %s\n", what, strerror(errno));
	return EXIT_PRIVILEGES;
}

/* Why a capability did not get here, as something to do about it. */
static const char *why_missing(int number)
{
	if (prctl(PR_CAPBSET_READ, number, 0, 0, 0) != 1)
		return "it was not granted: add it to securityContext.capabilities.add";
	if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)
		return "it was granted, but with no_new_privs (allowPrivilegeEscalation: false) it only arrives when this "
		       "program is the container's first: start nothing around it";
	return "it was granted, but this file has lost its file capabilities (setcap) or lies on a nosuid mount";
}

int main(int argc, char **argv)
{
	struct __user_cap_data_struct data[2];
	unsigned int kept[2] = { 0, 0 };
	int fatal = 0;
	char **arguments;

	if (capabilities(SYS_capget, data) != 0)
		return fail("capget");
	for (size_t i = 0; i < WANTED; i++) {
		unsigned int word = (unsigned int)wanted[i].number / 32, bit = 1u << (wanted[i].number % 32);

		if (data[word].permitted & bit) {
			kept[word] |= bit;
			continue;
		}
		fatal |= wanted[i].without == NULL;
		fprintf(stderr, "vedette-agent: capability %s is missing, %s (%s)\n", wanted[i].name,
			wanted[i].without ? wanted[i].without : "nothing can be watched", why_missing(wanted[i].number));
	}
	if (fatal)
		return EXIT_PRIVILEGES;
	for (int word = 0; word < 2; word++)
		data[word].permitted = data[word].effective = data[word].inheritable = kept[word];
	if (capabilities(SYS_capset, data) != 0)
		return fail("capset");
	for (size_t i = 0; i < WANTED; i++) {
		int number = wanted[i].number;

		if ((kept[number / 32] >> (number % 32) & 1) &&
		    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0) != 0)
			return fail("a capability cannot be made ambient");
	}
	/* -I: neither environment nor working directory decide which code runs with these capabilities. */
	arguments = calloc((size_t)argc + 5, sizeof *arguments);
	if (arguments == NULL)
		return fail("calloc");
	arguments[0] = PYTHON;
	arguments[1] = "-I";
	arguments[2] = "-m";
	arguments[3] = "vedette_agent";
	for (int i = 1; i < argc; i++)
		arguments[i + 3] = argv[i];
	execv(PYTHON, arguments);
	fprintf(stderr, "vedette-agent: %s: %s\n", PYTHON, strerror(errno));
	return EXIT_NOT_EXECUTED;
}
