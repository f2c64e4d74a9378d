/* System calls that a container has no ordinary business with. usage: kernel WHAT [ARG...] */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>
#include <linux/mount.h>

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    const char *what = argv[1], *a = argc > 2 ? argv[2] : "", *b = argc > 3 ? argv[3] : "", *c = argc > 4 ? argv[4] : "";
    if (!strcmp(what, "userfaultfd")) syscall(SYS_userfaultfd, argc > 2 ? atoi(a) : O_CLOEXEC);
    else if (!strcmp(what, "open")) { if (open(a, O_RDWR | O_CLOEXEC) < 0) perror(a); }
    else if (!strcmp(what, "init-module")) syscall(SYS_init_module, "not a module", 12UL, "quiet=1");
    else if (!strcmp(what, "delete-module")) syscall(SYS_delete_module, "vedette_nothing", O_NONBLOCK);
    else if (!strcmp(what, "finit-module")) {
        int fd = open(a, O_RDONLY | O_CLOEXEC);
        syscall(SYS_finit_module, fd, "", 0);
    } else if (!strcmp(what, "mount")) { if (mount(a, b, c, argc > 5 ? strtoul(argv[5], 0, 0) : 0, 0)) perror("mount"); }
    else if (!strcmp(what, "fsopen")) { /* the new interface: fsopen, fsconfig(source), fsmount, move_mount */
        int fs = syscall(SYS_fsopen, c, 0);
        if (fs < 0) { perror("fsopen"); return 1; }
        syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "source", a, 0);
        syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0);
        int made = syscall(SYS_fsmount, fs, 0, 0);
        if (syscall(SYS_move_mount, made, "", AT_FDCWD, b, MOVE_MOUNT_F_EMPTY_PATH)) perror("move_mount");
    } else if (!strcmp(what, "open-tree")) { /* a bind mount by open_tree and move_mount */
        int tree = syscall(SYS_open_tree, AT_FDCWD, a, OPEN_TREE_CLONE | AT_RECURSIVE);
        if (tree < 0) perror("open_tree");
        if (syscall(SYS_move_mount, tree, "", AT_FDCWD, b, MOVE_MOUNT_F_EMPTY_PATH)) perror("move_mount");
    } else if (!strcmp(what, "unix")) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        snprintf(address.sun_path, sizeof address.sun_path, "%s", a);
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(fd, (void *)&address, sizeof address)) perror(a);
        else if (write(fd, "GET /info HTTP/1.0\r\n\r\n", 22) < 0) perror("write");
    } else if (!strcmp(what, "unix-relative")) { /* the directory by chdir, the name without it */
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        if (chdir(a)) perror(a);
        snprintf(address.sun_path, sizeof address.sun_path, "%s", b);
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(fd, (void *)&address, sizeof address)) perror(b);
    } else return 2;
    return 0;
}
