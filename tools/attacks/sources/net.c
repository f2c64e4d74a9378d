/* Speaks to an address. usage: net tcp|udp|udp-connected ADDRESS PORT | net dns|dns-tcp RESOLVER NAME */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int dns = !strncmp(argv[1], "dns", 3), stream = !strcmp(argv[1], "tcp") || !strcmp(argv[1], "dns-tcp");
    int port = dns ? 53 : atoi(argv[3]);
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    int six = inet_pton(AF_INET6, argv[2], &v6.sin6_addr) == 1;
    if (!six && inet_pton(AF_INET, argv[2], &v4.sin_addr) != 1) return 2;
    struct sockaddr *address = six ? (void *)&v6 : (void *)&v4;
    socklen_t length = six ? sizeof v6 : sizeof v4;
    int fd = socket(six ? AF_INET6 : AF_INET, stream ? SOCK_STREAM : SOCK_DGRAM, 0);
    unsigned char message[512] = "ping";
    size_t size = 4;
    if (dns) {
        unsigned char *at = message + 2;
        memcpy(at, "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00", 12);
        at += 12;
        for (char *label = strtok(argv[3], "."); label; label = strtok(0, ".")) {
            *at++ = strlen(label);
            memcpy(at, label, strlen(label));
            at += strlen(label);
        }
        memcpy(at, "\0\0\x01\0\x01", 5);
        at += 5;
        size = at - message;
        message[0] = (size - 2) >> 8;
        message[1] = (size - 2) & 255;
    }
    unsigned char *payload = dns && !stream ? message + 2 : message;
    if (dns && !stream) size -= 2;
    if (!strcmp(argv[1], "udp") || !strcmp(argv[1], "dns")) return sendto(fd, payload, size, 0, address, length) < 0;
    if (connect(fd, address, length)) { perror("connect"); return 0; }
    if (write(fd, payload, size) < 0) perror("write");
    struct pollfd wait = {fd, POLLIN, 0};
    poll(&wait, 1, 200);
    return 0;
}
