/*
 * Runs a program from memory or from a file without a name.
 * usage: fileless HOW PROGRAM [ARG...]
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static void fail(const char *what) { perror(what); exit(1); }

static void copy(const char *from, int to) {
    char buffer[65536];
    ssize_t n;
    int fd = open(from, O_RDONLY);
    if (fd < 0) fail(from);
    while ((n = read(fd, buffer, sizeof buffer)) > 0) if (write(to, buffer, n) != n) fail("write");
    close(fd);
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    const char *how = argv[1];
    char **program = argv + 2, path[64];
    if (!strncmp(how, "memfd", 5)) {
        int fd = syscall(SYS_memfd_create, "", !strcmp(how, "memfd-script") ? 0 : MFD_CLOEXEC);
        if (fd < 0) fail("memfd_create");
        copy(program[0], fd);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (!strcmp(how, "memfd-map")) { /* no exec at all: a library mapped from memory */
            struct stat st;
            fstat(fd, &st);
            if (mmap(0, st.st_size, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) == MAP_FAILED) fail("mmap");
            return 0;
        }
        if (!strcmp(how, "memfd-execveat")) syscall(SYS_execveat, fd, "", program, environ, AT_EMPTY_PATH);
        else if (!strcmp(how, "memfd-proc")) execve(path, program, environ);
        else if (!strcmp(how, "memfd-other")) { /* by way of another process's descriptor table */
            snprintf(path, sizeof path, "/proc/%d/fd/%d", getpid(), fd);
            pid_t pid = fork();
            if (!pid) { execve(path, program, environ); fail("exec"); }
            waitpid(pid, 0, 0);
            return 0;
        } else fexecve(fd, program, environ);
        fail("exec");
    }
    if (!strcmp(how, "unlinked") || !strcmp(how, "tmpfile") || !strcmp(how, "shm")) {
        const char *directory = !strcmp(how, "shm") ? "/dev/shm" : "/tmp";
        char name[128];
        int fd;
        snprintf(name, sizeof name, "%s/.payload-%d", directory, getpid());
        if (!strcmp(how, "tmpfile")) fd = open(directory, O_TMPFILE | O_RDWR, 0700);
        else fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0700);
        if (fd < 0) fail("open");
        copy(program[0], fd);
        if (!strcmp(how, "shm")) { close(fd); execve(name, program, environ); fail("exec"); }
        int ro;
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if ((ro = open(path, O_RDONLY | O_CLOEXEC)) < 0) fail("reopen");
        if (!strcmp(how, "unlinked")) unlink(name);
        close(fd);
        syscall(SYS_execveat, ro, "", program, environ, AT_EMPTY_PATH);
        fail("execveat");
    }
    return 2;
}
