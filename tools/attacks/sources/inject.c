/* Changes another process's memory or registers, or looks after its own debugging. usage: inject HOW [PID] */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile long victim_word = 0x1122334455667788;

static pid_t victim(int traced) {
    pid_t pid = fork();
    if (pid) return pid;
    if (traced) { ptrace(PTRACE_TRACEME, 0, 0, 0); raise(SIGSTOP); }
    for (;;) pause();
}

static int finish(pid_t pid) { kill(pid, SIGKILL); waitpid(pid, 0, 0); return 0; }

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    const char *how = argv[1];
    char path[64];
    int status;
    long word = 0x1122334455667788;
    if (!strcmp(how, "traceme")) return ptrace(PTRACE_TRACEME, 0, 0, 0) ? 1 : 0; /* the bare anti-debugging check */
    if (!strcmp(how, "traceme-twice")) { ptrace(PTRACE_TRACEME, 0, 0, 0); return ptrace(PTRACE_TRACEME, 0, 0, 0) == 0; }
    if (!strcmp(how, "own-mem")) { /* a process writing its own memory through /proc */
        int fd = open("/proc/self/mem", O_RDWR);
        if (fd < 0) return 1;
        return pwrite(fd, &word, sizeof word, (off_t)&victim_word) != sizeof word;
    }
    if (!strcmp(how, "peekuser")) { /* fork, TRACEME, PEEKUSER, DETACH: nothing is written */
        pid_t pid = victim(1);
        waitpid(pid, &status, 0);
        errno = 0;
        ptrace(PTRACE_PEEKUSER, pid, 8 * 15, 0);
        ptrace(PTRACE_DETACH, pid, 0, 0);
        return finish(pid);
    }
    pid_t pid = argc > 2 ? atoi(argv[2]) : victim(0);
    usleep(50000);
    if (!strcmp(how, "proc-mem") || !strcmp(how, "proc-mem-task") || !strcmp(how, "proc-mem-relative")) {
        int fd;
        if (!strcmp(how, "proc-mem-task")) snprintf(path, sizeof path, "/proc/%d/task/%d/mem", pid, pid);
        else snprintf(path, sizeof path, "/proc/%d/mem", pid);
        if (!strcmp(how, "proc-mem-relative")) {
            snprintf(path, sizeof path, "/proc/%d", pid);
            int dir = open(path, O_RDONLY | O_DIRECTORY);
            fd = openat(dir, "mem", O_WRONLY);
        } else fd = open(path, O_RDWR);
        if (fd < 0) { perror("open"); finish(pid); return 1; }
        if (pwrite(fd, &word, sizeof word, (off_t)&victim_word) != sizeof word) perror("pwrite");
        return finish(pid);
    }
    if (!strcmp(how, "vm-write") || !strcmp(how, "vm-write-fault")) {
        struct iovec local = {&word, sizeof word};
        struct iovec remote = {!strcmp(how, "vm-write") ? (void *)&victim_word : (void *)8, sizeof word};
        process_vm_writev(pid, &local, 1, &remote, 1, 0);
        return finish(pid);
    }
    if (!strcmp(how, "vm-read")) {
        struct iovec local = {&word, sizeof word}, remote = {(void *)&victim_word, sizeof word};
        process_vm_readv(pid, &local, 1, &remote, 1, 0);
        return finish(pid);
    }
    int seize = strstr(how, "seize") != NULL;
    if (seize) {
        ptrace(PTRACE_SEIZE, pid, 0, 0);
        ptrace(PTRACE_INTERRUPT, pid, 0, 0);
    } else ptrace(PTRACE_ATTACH, pid, 0, 0);
    waitpid(pid, &status, __WALL);
    if (strstr(how, "poketext")) ptrace(PTRACE_POKETEXT, pid, &victim_word, word);
    if (strstr(how, "pokedata")) ptrace(PTRACE_POKEDATA, pid, &victim_word, word);
    if (strstr(how, "pokeuser")) ptrace(PTRACE_POKEUSER, pid, 8 * 15, -1L);
    if (strstr(how, "setregs") && !strstr(how, "setregset")) {
        struct user_regs_struct regs;
        ptrace(PTRACE_GETREGS, pid, 0, &regs);
        ptrace(PTRACE_SETREGS, pid, 0, &regs);
    }
    if (strstr(how, "setregset")) {
        struct user_regs_struct regs;
        struct iovec iov = {&regs, sizeof regs};
        ptrace(PTRACE_GETREGSET, pid, 1 /* NT_PRSTATUS */, &iov);
        ptrace(PTRACE_SETREGSET, pid, 1, &iov);
    }
    ptrace(PTRACE_DETACH, pid, 0, 0);
    return finish(pid);
}
