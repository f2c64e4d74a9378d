/* Acts of the live tests that need C: bare system calls, 32-bit calls, io_uring. Prints what the test compares with. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <pthread.h>

static long int80(long number, long a, long b, long c)
{
	long result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory", "r8", "r9", "r10", "r11");
	return result;
}

/* Memory that a 32-bit call can name */
static void *low(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	if (p == MAP_FAILED)
		exit(98);
	return p;
}

static int ring_submit(struct io_uring_sqe *request)
{
	struct io_uring_params p = {};
	int fd = syscall(SYS_io_uring_setup, 4, &p);
	if (fd < 0)
		return -errno;
	char *sq = mmap(NULL, p.sq_off.array + p.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
	char *cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			IORING_OFF_CQ_RING);
	struct io_uring_sqe *sqes = mmap(NULL, p.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || sqes == MAP_FAILED)
		return -errno;
	sqes[0] = *request;
	((uint32_t *)(sq + p.sq_off.array))[0] = 0;
	__atomic_store_n((uint32_t *)(sq + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return -errno;
	struct io_uring_cqe *done = (void *)(cq + p.cq_off.cqes);
	return done->res;
}

static void *idle(void *argument)
{
	(void)argument;
	usleep(50000);
	return NULL;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	const char *path = argc > 2 ? argv[2] : "";
	if (!strcmp(what, "open32")) {
		char *copy = strcpy(low(8192), path);
		printf("%ld\n", int80(5, (long)copy, O_RDONLY, 0));
	} else if (!strcmp(what, "connect32")) { /* socketcall(SYS_SOCKET), socketcall(SYS_CONNECT) */
		uint32_t *arguments = low(4096);
		struct sockaddr_in *to = (void *)(arguments + 16);
		arguments[0] = AF_INET;
		arguments[1] = SOCK_STREAM;
		arguments[2] = 0;
		long fd = int80(102, 1, (long)arguments, 0);
		to->sin_family = AF_INET;
		to->sin_port = htons(atoi(argv[3]));
		inet_pton(AF_INET, path, &to->sin_addr);
		arguments[0] = fd;
		arguments[1] = (uint32_t)(long)to;
		arguments[2] = sizeof(*to);
		printf("%ld\n", int80(102, 3, (long)arguments, 0));
	} else if (!strcmp(what, "uring_open")) {
		struct io_uring_sqe request = {.opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (uint64_t)path, .open_flags = O_RDONLY};
		printf("%d\n", ring_submit(&request));
	} else if (!strcmp(what, "uring_connect")) {
		struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
		inet_pton(AF_INET, path, &to.sin_addr);
		struct io_uring_sqe request = {
			.opcode = IORING_OP_CONNECT, .fd = socket(AF_INET, SOCK_STREAM, 0), .addr = (uint64_t)&to, .off = sizeof(to)};
		printf("%d\n", ring_submit(&request));
	} else if (!strcmp(what, "uring_unlink")) {
		struct io_uring_sqe request = {.opcode = IORING_OP_UNLINKAT, .fd = AT_FDCWD, .addr = (uint64_t)path};
		printf("%d\n", ring_submit(&request));
	} else if (!strcmp(what, "leader_exits_first")) {
		pthread_t thread;
		pthread_create(&thread, NULL, idle, NULL);
		syscall(SYS_exit, 3); /* this thread only */
	} else if (!strcmp(what, "mprotect_stack")) {
		char here;
		printf("%d\n", mprotect((void *)((long)&here & ~4095L), 4096, PROT_READ | PROT_WRITE | PROT_EXEC));
	} else if (!strcmp(what, "storm")) {
		for (long left = atol(path); left; left--)
			close(syscall(SYS_memfd_create, "storm", 0));
	} else {
		return 99;
	}
	return 0;
}
