/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Load for the agent's benchmarks and live tests; one static program, no threads.
 *
 *   agent_load storm FIRST COUNT RATE [SECONDS]
 *                                       COUNT times connect(2) of a datagram socket, event number n to the loopback address
 *                                       127.a.b.c, port p, with a.b.c and p made of n: never deduplicated, no packet is
 *                                       sent. RATE per second, 0 for as fast as possible; ends after SECONDS whatever is
 *                                       left. Prints how many and seconds.
 *   agent_load open|connect|exec|getppid COUNT
 *                                       the bare call COUNT times; prints CPU nanoseconds (user, system, children) per call
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static double now(void)
{
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec + at.tv_nsec * 1e-9;
}

static double cpu(int who)
{
	struct rusage usage;
	getrusage(who, &usage);
	return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static void fail(const char *what)
{
	fprintf(stderr, "agent_load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int dial(int fd, uint64_t n)
{
	struct sockaddr_in to = {.sin_family = AF_INET};
	to.sin_addr.s_addr = htonl(127u << 24 | (uint32_t)(n & 0xffffff));
	to.sin_port = htons((uint16_t)(1 + (n >> 24)));
	return connect(fd, (struct sockaddr *)&to, sizeof(to));
}

static int storm(uint64_t first, uint64_t count, double rate, double seconds)
{
	uint64_t i = 0;
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (fd < 0)
		fail("socket");
	double start = now();
	for (; i < count; i++) {
		if (dial(fd, first + i))
			fail("connect");
		if (i % 64 != 63)
			continue;
		if (seconds > 0 && now() - start > seconds)
			break;
		if (rate > 0) {
			double ahead = (i + 1) / rate - (now() - start);
			if (ahead > 0.001) {
				struct timespec wait = {.tv_nsec = (long)(ahead * 1e9) % 1000000000, .tv_sec = (time_t)ahead};
				nanosleep(&wait, NULL);
			}
		}
	}
	printf("%llu %.6f\n", (unsigned long long)i, now() - start);
	return 0;
}

static void one(const char *what, int fd, uint64_t n)
{
	if (what[0] == 'o') {
		int opened = open("/etc/hostname", O_RDONLY | O_CLOEXEC);
		if (opened < 0)
			fail("open");
		close(opened);
	} else if (what[0] == 'c') {
		if (dial(fd, n))
			fail("connect");
	} else if (what[0] == 'g') {
		syscall(SYS_getppid);
	} else {
		char *arguments[] = {"true", NULL};
		pid_t child;
		if (posix_spawn(&child, "/bin/true", NULL, NULL, arguments, environ))
			fail("posix_spawn");
		waitpid(child, NULL, 0);
	}
}

int main(int argc, char **argv)
{
	if (argc >= 5 && argc <= 6 && !strcmp(argv[1], "storm"))
		return storm(strtoull(argv[2], NULL, 10), strtoull(argv[3], NULL, 10), atof(argv[4]), argc == 6 ? atof(argv[5]) : 0);
	if (argc != 3 || !strchr("oceg", argv[1][0])) {
		fprintf(stderr, "usage: agent_load storm FIRST COUNT RATE [SECONDS] | open|connect|exec|getppid COUNT\n");
		return 2;
	}
	uint64_t count = strtoull(argv[2], NULL, 10);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	uint64_t base = (uint64_t)getpid() << 20;
	double start = cpu(RUSAGE_SELF) + cpu(RUSAGE_CHILDREN);
	for (uint64_t i = 0; i < count; i++)
		one(argv[1], fd, base + i);
	printf("%.2f\n", (cpu(RUSAGE_SELF) + cpu(RUSAGE_CHILDREN) - start) / count * 1e9);
	return 0;
}
