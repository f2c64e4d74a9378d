/* What known container escapes do, harmlessly. usage: escape HOW [ARG...] */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    const char *how = argv[1];
    char path[64];
    if (!strcmp(how, "write")) { /* open a file for writing: runc's binary, a release_agent file */
        int fd = open(argv[2], O_WRONLY | O_CLOEXEC);
        if (fd < 0) { perror(argv[2]); return 0; }
        if (argc > 3 && write(fd, argv[3], strlen(argv[3])) < 0) perror("write");
        return 0;
    }
    if (!strcmp(how, "write-by-fd")) { /* CVE-2019-5736: a read-only descriptor, reopened for writing by /proc */
        int fd = open(argv[2], O_RDONLY);
        if (fd < 0) { perror(argv[2]); return 1; }
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (open(path, O_WRONLY | O_APPEND | O_CLOEXEC) < 0) perror(path);
        return 0;
    }
    if (!strcmp(how, "write-exe-of")) { /* the same by /proc/PID/exe */
        snprintf(path, sizeof path, "/proc/%s/exe", argv[2]);
        if (open(path, O_WRONLY | O_APPEND | O_CLOEXEC) < 0) perror(path);
        return 0;
    }
    if (!strcmp(how, "replace")) { /* a new file renamed over the old one */
        char temporary[512];
        snprintf(temporary, sizeof temporary, "%s.new", argv[2]);
        int fd = open(temporary, O_CREAT | O_WRONLY | O_CLOEXEC, 0755);
        if (fd < 0 || write(fd, "x", 1) != 1) { perror(temporary); return 1; }
        close(fd);
        if (rename(temporary, argv[2])) { perror("rename"); unlink(temporary); }
        return 0;
    }
    if (!strcmp(how, "cwd")) { /* CVE-2024-21626's mark: a program whose working directory is a leaked descriptor's */
        int fd = open(argv[2], O_RDONLY | O_DIRECTORY);
        if (fd < 0 || fchdir(fd)) { perror(argv[2]); return 1; }
        if (argc > 4 && chroot(argv[3])) { perror("chroot"); return 1; }
        execv(argv[argc > 4 ? 4 : 3], argv + (argc > 4 ? 4 : 3));
        perror("exec");
        return 1;
    }
    return 2;
}
